import { chmodSync, mkdtempSync, renameSync, rmdirSync } from 'node:fs';
import { unlink } from 'node:fs/promises';
import type { Server } from 'node:net';
import { dirname, join } from 'node:path';
import { DmError, fromSystem } from '../../errors.ts';

/** `sun_path` of unix(7), without its final NUL. */
export const SOCKET_PATH_MAX = 107;

/**
 * Listens on a Unix socket of mode 0600 that is never, not for an instant, open to others: it is made in a directory of
 * mode 0700 and renamed into place. The rename also replaces a stale socket and makes `path` appear only when it answers.
 */
export async function listenPrivately(server: Server, path: string): Promise<void> {
  // The longer of the two names counts: `/.XXXXXX/s`.
  if (Buffer.byteLength(dirname(path)) + 12 > SOCKET_PATH_MAX || Buffer.byteLength(path) > SOCKET_PATH_MAX)
    throw new DmError(
      'SOCKET_PATH',
      'EINVAL',
      `Cannot listen on ${path}: a socket's path has at most ${SOCKET_PATH_MAX} bytes`,
      {
        hint: 'choose a shorter directory: DMKIT_DIR=/run/user/1000/dmkit',
      },
    );
  try {
    const scratch = mkdtempSync(join(dirname(path), '.'));
    const first = join(scratch, 's');
    try {
      await new Promise<void>((done, failed) => {
        server.once('error', failed);
        server.listen(first, () => {
          server.off('error', failed);
          done();
        });
      });
      chmodSync(first, 0o600);
      renameSync(first, path);
    } finally {
      rmdirSync(scratch);
    }
  } catch (error) {
    server.close();
    throw fromSystem(error, `Cannot listen on ${path}`);
  }
}

export async function unlinkSocket(path: string): Promise<void> {
  await unlink(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
  });
}
