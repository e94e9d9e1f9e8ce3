import fs, { type BigIntStats } from 'node:fs';
import { DmError, fromSystem } from '../errors.ts';

/** What a device argument leads to: a regular file or a block device node. */
export interface Located {
  /** Canonical: no symbolic link, absolute. */
  path: string;
  stat: BigIntStats;
}

/**
 * Follows a path, or `major:minor` of a kernel block device, to a disk. Throws DEVICE_NOT_FOUND or NOT_A_DISK, both with
 * the kernel's ENODEV for a path that is no device, or the error of realpath(3).
 */
export async function locate(argument: string): Promise<Located> {
  const numbers = /^\d+:\d+$/.test(argument);
  let path: string;
  try {
    path = await fs.promises.realpath(numbers ? await nodeOf(argument) : argument);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR' || code === 'ERR_INVALID_ARG_VALUE')
      throw new DmError(
        'DEVICE_NOT_FOUND',
        'ENODEV',
        `Cannot open ${argument}: no such ${numbers ? 'disk' : 'file or disk'}`,
        {
          hint: numbers
            ? 'list the disks with lsblk'
            : 'check the path; a relative one starts from the current directory',
          cause: error,
        },
      );
    throw fromSystem(error, `Cannot open ${argument}`);
  }
  const stat = await fs.promises.stat(path, { bigint: true });
  if (!stat.isFile() && !stat.isBlockDevice())
    throw new DmError('NOT_A_DISK', 'ENODEV', `Cannot open ${path}: it is ${kindOf(stat)}, not a disk`, {
      hint: 'name a regular file or a block device',
    });
  return { path, stat };
}

/** The node that devtmpfs or udev made for a kernel device number. */
async function nodeOf(numbers: string): Promise<string> {
  const uevent = await fs.promises.readFile(`/sys/dev/block/${numbers}/uevent`, 'utf8');
  return `/dev/${/^DEVNAME=(.+)$/m.exec(uevent)?.[1] ?? ''}`;
}

function kindOf(stat: BigIntStats): string {
  if (stat.isDirectory()) return 'a directory';
  if (stat.isFIFO()) return 'a fifo';
  if (stat.isSocket()) return 'a socket';
  return 'a character device';
}

/** `major:minor` of a block device node. */
export function deviceNumber({ rdev }: BigIntStats): string {
  // glibc's gnu_dev_major and gnu_dev_minor.
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & ~0xfffn);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & ~0xffn);
  return `${major}:${minor}`;
}
