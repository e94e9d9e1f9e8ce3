/** Files that stores are made in. */
import { open, unlink } from 'node:fs/promises';
import { dirname } from 'node:path';
import { fromSystem } from '../errors.ts';
import type { Bytes } from '../units.ts';

/**
 * Sparse, mode 0600, its name durable. False: there is such a file already; it was not touched. Throws what the system says, about
 * `what`, with `hint` where the size is too large for the file system.
 */
export async function createSparseFile(path: string, size: Bytes, what: string, hint: string): Promise<boolean> {
  try {
    const file = await open(path, 'wx', 0o600);
    try {
      await file.truncate(size);
      await file.sync();
    } catch (error) {
      await unlink(path).catch(() => {});
      throw error;
    } finally {
      await file.close();
    }
    const directory = await open(dirname(path), 'r');
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EEXIST') return false;
    throw fromSystem(error, `Cannot make ${what} ${path}`, code === 'EFBIG' ? hint : undefined);
  }
}

/** False: it was gone already. */
export async function deleteFile(path: string, what: string): Promise<boolean> {
  try {
    await unlink(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw fromSystem(error, `Cannot delete ${what} ${path}`);
  }
}
