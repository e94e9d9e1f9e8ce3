/** Where the daemon's sockets and its state live, and who may look there. */
import { mkdirSync, statSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { DmError, fromSystem } from '../../errors.ts';
import { printNbdUri } from '../../formats/nbd/uri.ts';

type Environment = Readonly<Record<string, string | undefined>>;

export interface Directories {
  /** Sockets, lock, attachments: gone after a reboot. */
  run: string;
  /** Tables and the log. */
  state: string;
}

const ownUid = () => process.getuid?.() ?? 0;

/** `$DMKIT_DIR`, else `/run/dmkit` for root, else `$XDG_RUNTIME_DIR/dmkit`, else a directory of the user's own under tmp. */
export function directories(env: Environment = process.env, uid = ownUid()): Directories {
  const run =
    env.DMKIT_DIR ||
    (uid === 0
      ? '/run/dmkit'
      : env.XDG_RUNTIME_DIR
        ? join(env.XDG_RUNTIME_DIR, 'dmkit')
        : join(tmpdir(), `dmkit-${uid}`));
  const state =
    env.DMKIT_STATE ||
    (uid === 0 ? '/var/lib/dmkit' : join(env.XDG_STATE_HOME || join(env.HOME || homedir(), '.local/state'), 'dmkit'));
  return { run: resolve(run), state: resolve(state) };
}

/**
 * Makes `path` with mode 0700. Refuses a directory that somebody else owns or may write to: whoever can replace a socket
 * in it can read and change every disk served from it.
 */
export function ensurePrivateDirectory(path: string): void {
  try {
    makeDirectory(path);
    const found = statSync(path);
    if (process.getuid !== undefined && found.uid !== process.getuid())
      throw new DmError('DIRECTORY_NOT_OURS', 'EPERM', `Cannot use ${path}: it belongs to user ${found.uid}`, {
        hint: 'give a directory of your own in DMKIT_DIR and DMKIT_STATE',
      });
    if ((found.mode & 0o022) !== 0)
      throw new DmError('DIRECTORY_NOT_OURS', 'EPERM', `Cannot use ${path}: others may write to it`, {
        hint: `chmod 700 ${path}`,
      });
  } catch (error) {
    throw fromSystem(error, `Cannot make the directory ${path}`);
  }
}

/** With those above it. `recursive` of mkdirSync never comes back where the system answers ENOENT, as in /proc. */
function makeDirectory(path: string, mayLackParent = true): void {
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST' && statSync(path).isDirectory()) return;
    if (code !== 'ENOENT' || !mayLackParent) throw error;
    makeDirectory(dirname(path));
    makeDirectory(path, false);
  }
}

export const controlSocket = (run: string) => join(run, 'control.sock');
export const nbdSocket = (run: string) => join(run, 'nbd.sock');

/** The NBD URI of a mapped device: what `nbdinfo`, `qemu-img`, `nbdcopy` and libguestfs take. */
export const nbdUri = (socket: string, name: string) => printNbdUri({ kind: 'unix', socket, exportName: name });
