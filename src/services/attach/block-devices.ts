/**
 * What the kernel says about a block device: who uses it, what feeds it. It may be this very process that feeds it, so
 * whatever can start I/O on the device (open, fsync, close) runs on a thread and never here.
 */
import { constants, readlinkSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { entriesOf, textOf } from '../../lib/proc.ts';

/** `loop3` and its partitions `loop3p1`. */
function withPartitions(path: string): string[] {
  const name = basename(path);
  return [name, ...entriesOf(`/sys/block/${name}`).filter((entry) => entry.startsWith(name))];
}

/**
 * Who uses the block device at `path`, in words: a mount point, a process, a device stacked on it. Undefined: nobody
 * that can be seen from here, and the kernel gives it to us alone.
 */
export async function whoUses(path: string): Promise<string | undefined> {
  const names = withPartitions(path);
  const numbers = new Set(names.map((name) => textOf(`/sys/class/block/${name}/dev`)));
  for (const line of (textOf('/proc/self/mountinfo') ?? '').split('\n')) {
    const [, , number, , mountPoint] = line.split(' ');
    if (numbers.has(number)) return `mounted on ${unescapeMount(mountPoint)}`;
  }
  for (const name of names)
    for (const holder of entriesOf(`/sys/class/block/${name}/holders`)) return `used by the block device ${holder}`;
  const paths = new Set(names.map((name) => `/dev/${name}`));
  for (const pid of entriesOf('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue;
    for (const fd of entriesOf(`/proc/${pid}/fd`)) {
      try {
        if (paths.has(readlinkSync(`/proc/${pid}/fd/${fd}`)))
          return `open in ${textOf(`/proc/${pid}/comm`)} (pid ${pid})`;
      } catch {
        // Closed meanwhile.
      }
    }
  }
  for (const name of names) {
    try {
      await (await open(`/dev/${name}`, constants.O_RDONLY | constants.O_EXCL)).close();
    } catch (error) {
      // A mount in another mount namespace shows only here.
      if ((error as NodeJS.ErrnoException).code === 'EBUSY')
        return 'mounted or claimed where this process cannot see it';
    }
  }
  return undefined;
}

/** Octal escapes of /proc/self/mountinfo. */
const unescapeMount = (text: string) =>
  text.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)));

/** Sends what the kernel has cached for the device to what feeds it. Throws the error of fsync(2). */
export async function flushBlockDevice(path: string): Promise<void> {
  const device = await open(path, 'r');
  try {
    await device.sync();
  } finally {
    await device.close();
  }
}

/** The file under a loop device, or undefined if it has none. */
export const loopFile = (path: string) => textOf(`/sys/block/${basename(path)}/loop/backing_file`);

/** The process that feeds a kernel NBD device, or undefined if it is not connected. */
export const nbdPid = (path: string) => textOf(`/sys/block/${basename(path)}/pid`);

/** The first kernel NBD device that nothing is connected to. */
export function freeNbdDevice(): string | undefined {
  const names = entriesOf('/sys/block').filter((name) => /^nbd\d+$/.test(name));
  names.sort((a, b) => Number(a.slice(3)) - Number(b.slice(3)));
  const free = names.find((name) => nbdPid(name) === undefined && textOf(`/sys/block/${name}/size`) === '0');
  return free && join('/dev', free);
}

export const exists = (path: string): boolean => {
  try {
    statSync(path);
    return true;
  } catch {
    return false;
  }
};

/** Looks for a program in PATH and where Debian keeps the administrator's. */
export function hasProgram(name: string): boolean {
  const path = `${process.env.PATH ?? ''}:/usr/sbin:/sbin:/usr/bin:/bin`;
  return path.split(':').some((directory) => directory !== '' && exists(join(directory, name)));
}
