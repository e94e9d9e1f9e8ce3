import fs from 'node:fs';
import { basename, join } from 'node:path';
import { DmError, fromSystem } from '../errors.ts';
import { BLKDISCARD, BLKSSZGET, BLKZEROOUT, PUNCH_HOLE, system } from '../lib/system.ts';
import { type Bytes, bytes, SECTOR } from '../units.ts';
import type { Extent, Maybe, Mode } from './block-device.ts';
import { deviceNumber, locate } from './locate.ts';
import { asksCache, type OpenFile, openPath, PosixDevice } from './posix-device.ts';

/**
 * A block device of the running kernel. Who writes claims it (O_EXCL), so that a disk that is mounted, swapped on, or
 * used by a kernel mapped device or another dmkit is refused; who reads does not.
 *
 * Where system() is missing, sizes come from sysfs, zeroes are written out and discards are refused.
 */
export class KernelDisk extends PosixDevice {
  /** `major:minor`, and the node's path is `path`. */
  readonly canDiscard: boolean;

  /** Throws DmError: DEVICE_IN_USE (EBUSY) when the disk is claimed, READ_ONLY (EROFS), or the error of open(2). */
  static async open(argument: string, mode: Mode): Promise<KernelDisk> {
    const { path, stat } = await locate(argument);
    if (!stat.isBlockDevice())
      throw new DmError('NOT_A_DISK', 'ENODEV', `Cannot open ${path}: it is not a block device`);
    const name = deviceNumber(stat);
    const fd = await openClaimed(path, name, mode);
    try {
      const sys = system();
      const blockSize = sys ? sys.ioctlInt(fd, BLKSSZGET) : number(name, 'queue/logical_block_size');
      const readOnly = mode === 'r';
      return new KernelDisk({ fd, path, name, blockSize, readOnly, inMemory: false, asksCache: await asksCache(fd) });
    } catch (error) {
      fs.closeSync(fd);
      throw fromSystem(error, `Cannot open ${path}`);
    }
  }

  private constructor(file: OpenFile) {
    super(file);
    this.canDiscard = this.system !== undefined && number(file.name, 'queue/discard_max_bytes') > 0;
  }

  /** The kernel does not say what a disk has allocated. */
  override extents(at: Bytes, length: number): Maybe<Extent[]> {
    this.check('map', at, length);
    return [{ length: bytes(length), hole: false, zero: false }];
  }

  protected override slowSize(): number {
    return number(this.name, 'size') * SECTOR;
  }

  /** Discards the whole logical blocks within the range: what is left out keeps its data, as a discard may. */
  protected override async discardRange(at: number, length: number): Promise<void> {
    const from = Math.ceil(at / this.blockSize) * this.blockSize;
    const to = Math.floor((at + length) / this.blockSize) * this.blockSize;
    if (to > from) await this.system!.ioctlRange(this.fd, BLKDISCARD, from, to - from);
  }

  protected override async zeroRange(at: number, length: number, mayUnmap: boolean): Promise<boolean> {
    if (!this.system || at % this.blockSize !== 0 || length % this.blockSize !== 0) return false;
    // fallocate(2) on a block device unmaps where that yields zeroes, else fails; BLKZEROOUT never unmaps.
    if (mayUnmap && (await supported(this.system.fallocate(this.fd, PUNCH_HOLE, at, length)))) return true;
    return supported(this.system.ioctlRange(this.fd, BLKZEROOUT, at, length));
  }

  protected override async reopen(): Promise<number> {
    const { stat } = await locate(this.path);
    if (deviceNumber(stat) !== this.name)
      throw new DmError(
        'REPLACED',
        'EBUSY',
        `Cannot open ${this.path} for writing: it is no longer disk ${this.name}`,
        {
          hint: 'remove the devices that use it, then create them again',
        },
      );
    return openClaimed(this.path, this.name, 'rw');
  }
}

async function openClaimed(path: string, name: string, mode: Mode): Promise<number> {
  // The kernel opens a read-only disk for writing and fails the writes.
  if (mode === 'rw' && number(name, 'ro') === 1)
    throw new DmError('READ_ONLY', 'EROFS', `Cannot open ${path} for writing: the disk is read-only`, {
      hint: `blockdev --setrw ${path} makes it writable if the disk itself is`,
    });
  try {
    return await openPath(path, mode, fs.constants.O_EXCL);
  } catch (error) {
    if ((error as DmError).errno !== 'EBUSY') throw error;
    const users = usersOf(name);
    const by = users.length > 0 ? `: ${users.join(', ')}` : '';
    throw new DmError('DEVICE_IN_USE', 'EBUSY', `Cannot open ${path} for writing: it is in use${by}`, {
      hint: `unmount it or stop what uses it (lsblk ${path}; fuser -v ${path})`,
      cause: error,
    });
  }
}

async function supported(call: Promise<void>): Promise<boolean> {
  try {
    await call;
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EOPNOTSUPP') return false;
    throw error;
  }
}

const sysfs = (name: string, attribute: string) => `/sys/dev/block/${name}/${attribute}`;

/** A number from sysfs. A partition has no queue of its own but its disk's, one directory up. */
function number(name: string, attribute: string): number {
  for (const path of [sysfs(name, attribute), sysfs(name, `../${attribute}`)])
    if (fs.existsSync(path)) return Number(fs.readFileSync(path, 'utf8'));
  throw new DmError('DEVICE_NOT_FOUND', 'ENODEV', `Cannot find disk ${name}: ${sysfs(name, attribute)} does not exist`);
}

/** Who claims a disk or a partition of it, as far as the kernel tells: devices on top, mounts, swap. */
function usersOf(name: string): string[] {
  const numbers = [name];
  const users: string[] = [];
  const directory = sysfs(name, '');
  for (const entry of fs.existsSync(directory) ? fs.readdirSync(directory) : [])
    if (fs.existsSync(join(directory, entry, 'partition')))
      numbers.push(fs.readFileSync(join(directory, entry, 'dev'), 'utf8').trim());
  for (const each of numbers)
    for (const holder of fs.existsSync(sysfs(each, 'holders')) ? fs.readdirSync(sysfs(each, 'holders')) : [])
      users.push(`device ${basename(holder)}`);
  // "36 35 7:0 / /mnt rw - ext4 /dev/loop0 rw"
  for (const line of fs.readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    const words = line.split(' ');
    if (numbers.includes(words[2])) users.push(`mounted on ${words[4]}`);
  }
  return users;
}
