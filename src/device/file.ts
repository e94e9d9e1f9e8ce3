import fs from 'node:fs';
import { promisify } from 'node:util';
import { DmError, errnoNumber, fromSystem } from '../errors.ts';
import { PUNCH_HOLE, SEEK_DATA, SEEK_HOLE, system, ZERO_RANGE } from '../lib/system.ts';
import { type Bytes, bytes, SECTOR } from '../units.ts';
import type { Extent, Maybe, Mode } from './block-device.ts';
import { locate } from './locate.ts';
import { inUse, lock } from './lock.ts';
import { asksCache, type OpenFile, openPath, PosixDevice } from './posix-device.ts';

const EXTENTS_MAX = 1024;
/** include/uapi/linux/magic.h */
const TMPFS_MAGIC = 0x01021994;
const RAMFS_MAGIC = 0x858458f6;
/**
 * Of file systems that another program or machine keeps: FUSE, NFS, SMB (three), 9P, Ceph, AFS (two), Lustre,
 * VirtualBox.
 */
const REMOTE = new Set([
  0x65735546, 0x6969, 0x517b, 0xff534d42, 0xfe534d42, 0x01021997, 0x00c36400, 0x5346414f, 0x6b414653, 0x0bd00bd0,
  0x786f4256,
]);

/** A regular file as a disk. It is locked (flock) as long as it is open: shared to read, exclusive to write. */
export class FileDevice extends PosixDevice {
  #canDiscard: boolean;

  /**
   * Opens a regular file. Throws DmError: DEVICE_IN_USE (EBUSY) when another process has it locked, FILE_SIZE (EINVAL)
   * when its size is not a multiple of 512, or the error of open(2).
   */
  static async open(argument: string, mode: Mode): Promise<FileDevice> {
    const { path } = await locate(argument);
    const fd = await openPath(path, mode);
    try {
      const stat = await statOnThread(fd);
      if (!stat.isFile()) throw new DmError('NOT_A_DISK', 'ENODEV', `Cannot open ${path}: it is not a regular file`);
      checkSize(path, Number(stat.size));
      if (!(await lock(fd, mode === 'rw' ? 'exclusive' : 'shared', system()))) throw inUse(path, stat, mode);
      const { type } = await fs.promises.statfs(path);
      const inMemory = type === TMPFS_MAGIC || type === RAMFS_MAGIC;
      const remoteSize = REMOTE.has(type) ? Number(stat.size) : undefined;
      const readOnly = mode === 'r';
      const file = { fd, path, name: path, blockSize: SECTOR, readOnly, inMemory, asksCache: await asksCache(fd) };
      const device = new FileDevice({ ...file, remoteSize });
      if (mode === 'rw') await device.#probe();
      return device;
    } catch (error) {
      fs.closeSync(fd);
      throw fromSystem(error, `Cannot open ${path}`);
    }
  }

  private constructor(file: OpenFile) {
    super(file);
    this.#canDiscard = false;
  }

  get canDiscard(): boolean {
    return this.#canDiscard;
  }

  /** Punches a hole where there is nothing, past the end: that tells whether the filesystem can. */
  async #probe(): Promise<void> {
    try {
      await this.system?.fallocate(this.fd, PUNCH_HOLE, this.size + 2 ** 20, 4096);
      this.#canDiscard = this.system !== undefined;
    } catch (error) {
      this.#canDiscard = (error as NodeJS.ErrnoException).code === 'EFBIG';
    }
  }

  override extents(at: Bytes, length: number): Maybe<Extent[]> {
    this.check('map', at, length);
    const { system } = this;
    if (!system) return [{ length: bytes(length), hole: false, zero: false }];
    const scan = this.#scan(at, at + length);
    let step = scan.next();
    if (!this.isRemote) {
      while (!step.done) step = scan.next(system.seek(this.fd, step.value.from, step.value.whence));
      return step.value;
    }
    return this.onThread(async () => {
      while (!step.done) step = scan.next(await system.seekOnThread(this.fd, step.value.from, step.value.whence));
      return step.value;
    });
  }

  /** Yields the `seek`s to make, and is given what they found. */
  *#scan(at: number, end: number): Generator<{ whence: number; from: number }, Extent[], number> {
    const found: Extent[] = [];
    for (let position = at; position < end && found.length < EXTENTS_MAX; ) {
      const data = this.#edge(SEEK_DATA, position, end, yield { whence: SEEK_DATA, from: position });
      if (data > position) found.push({ length: bytes(data - position), hole: true, zero: true });
      if (data === end) break;
      // At least a sector: if it became a hole in between, it still counts as data, and the loop goes on.
      position = Math.max(this.#edge(SEEK_HOLE, data, end, yield { whence: SEEK_HOLE, from: data }), data + SECTOR);
      found.push({ length: bytes(position - data), hole: false, zero: false });
    }
    return found;
  }

  /** Where the next data or hole begins, at most `end`. A sector that is part data counts as data. */
  #edge(whence: number, from: number, end: number, found: number): number {
    if (found === -errnoNumber('ENXIO')) return end;
    // The filesystem cannot say: data from here on.
    if (found < 0) return whence === SEEK_DATA ? from : end;
    const edge = whence === SEEK_DATA ? Math.floor(found / SECTOR) : Math.ceil(found / SECTOR);
    return Math.min(edge * SECTOR, end);
  }

  /** By the descriptor, whatever has become of the path. */
  extend(size: Bytes): void {
    try {
      fs.ftruncateSync(this.fd, size);
      this.sizeIs(size);
    } catch (error) {
      throw fromSystem(error, `Cannot extend ${this.path} to ${size} bytes`);
    }
  }

  protected override slowSize(): number {
    return fs.fstatSync(this.fd).size;
  }

  protected override discardRange(at: number, length: number): Promise<void> {
    return this.system!.fallocate(this.fd, PUNCH_HOLE, at, length);
  }

  protected override async zeroRange(at: number, length: number, mayUnmap: boolean): Promise<boolean> {
    if (!this.system || (mayUnmap && !this.#canDiscard)) return false;
    try {
      await this.system.fallocate(this.fd, mayUnmap ? PUNCH_HOLE : ZERO_RANGE, at, length);
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EOPNOTSUPP') return false;
      throw error;
    }
  }

  protected override async reopen(): Promise<number> {
    const fd = await openPath(this.path, 'rw');
    try {
      const stat = await statOnThread(fd);
      const now = await statOnThread(this.fd);
      if (stat.ino !== now.ino || stat.dev !== now.dev)
        throw new DmError(
          'REPLACED',
          'EBUSY',
          `Cannot open ${this.path} for writing: another file has taken its place`,
          {
            hint: 'remove the devices that use it, then create them again',
          },
        );
      // Two descriptions of one process exclude each other like two processes, so the shared lock goes first.
      await lock(this.fd, 'none', this.system);
      if (!(await lock(fd, 'exclusive', this.system))) {
        const error = inUse(this.path, stat, 'rw');
        await lock(this.fd, 'shared', this.system);
        throw error;
      }
      return fd;
    } catch (error) {
      fs.closeSync(fd);
      throw fromSystem(error, `Cannot open ${this.path} for writing`);
    }
  }
}

const stat = promisify(fs.fstat);
const statOnThread = (fd: number) => stat(fd, { bigint: true });

function checkSize(path: string, size: number): void {
  if (size % SECTOR === 0) return;
  const next = Math.ceil(size / SECTOR) * SECTOR;
  throw new DmError(
    'FILE_SIZE',
    'EINVAL',
    `Cannot use ${path} as a disk: its ${size} bytes are no multiple of ${SECTOR}`,
    {
      hint: `fill up its last sector: truncate -s ${next} ${path}`,
    },
  );
}
