import fs from 'node:fs';
import { dirname } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { DmError, type Errno, errnoText, fromSystem } from '../errors.ts';
import { MUST_WAIT, NEVER, SEEK_END, type System, system } from '../lib/system.ts';
import { type Bytes, bytes, SECTOR } from '../units.ts';
import type { BlockDevice, Extent, Maybe, Mode } from './block-device.ts';
import { FlushGroup } from './flush-group.ts';
import { Stalls } from './stalls.ts';
import { ThreadShare } from './thread-share.ts';
import { writer } from './writer.ts';

/** Longer requests go through a thread, so that one copy does not hold up everyone else's requests. */
const INLINE_MAX = 1 << 20;
/** Zeroes up to this length that must stay allocated are written like data. */
const ZEROES_INLINE_MAX = 1 << 16;
/** After a read that was not in the page cache, so many have to be there before the next one is not asked about first. */
const WARY = 64;
/** What is written at a time where zeroes must be written out. */
const zeroes = new Uint8Array(INLINE_MAX);

/** copy_file_range: these two never will. */
const CANNOT_COPY = new Set(['EXDEV', 'EINVAL', 'EOPNOTSUPP', 'ENOSYS', 'EPERM']);

export interface OpenFile {
  fd: number;
  /** Canonical. */
  path: string;
  /** What `dmsetup table` prints. */
  name: string;
  blockSize: number;
  readOnly: boolean;
  /** The pages are the disk (tmpfs): a read never waits, though RWF_NOWAIT is not to be had. */
  inMemory: boolean;
  /** What `asksCache` found. */
  asksCache: boolean;
  /** The size in bytes where another program or machine keeps the file (FUSE, NFS), and any call may wait for it. */
  remoteSize?: number;
}

/**
 * What a regular file and a kernel block device have in common: a descriptor and the page cache.
 *
 * Reads are copied from the page cache at once when it holds them, and wait for the disk on a thread when not. Writes
 * go into the page cache at once, unless even that is likely to wait. Threads are shared out among the disks
 * (thread-share.ts), so that one that is slow, or hangs, holds up nobody else.
 *
 * The size is asked of the kernel whenever `size` is; a request that ends within the size last
 * seen is not checked again (a read then finds the end by itself; a write past the end of a file that has just been
 * truncated makes it longer again, as it does under a loop device).
 */
export abstract class PosixDevice implements BlockDevice {
  readonly name: string;
  readonly blockSize: number;
  readonly path: string;
  protected fd: number;
  protected readonly system: System | undefined = system();
  #readOnly: boolean;
  #known = 0;
  #inMemory: boolean;
  #cacheTells: boolean;
  readonly #asksCache: boolean;
  /** Reads that are asked about before they are tried: one that misses waits until the disk takes its request. */
  #wary = WARY;
  readonly #stalls = new Stalls();
  /** Writes on their way through the writer: they have the file's lock in the kernel. */
  #aside = 0;
  readonly #remote: boolean;
  /** Set while it is asked for; undefined again when it has changed meanwhile. */
  #sizeAsked: Promise<void> | undefined;
  readonly #threads = new ThreadShare();
  readonly #flushes: FlushGroup;
  /** Disks from which the kernel copies nothing to this one. */
  readonly #strangers = new WeakSet<PosixDevice>();
  #upgrading: Promise<void> | undefined;
  /** The read-only descriptor that `allowWrites` replaced: reads may still be under way on it. */
  #replaced = -1;

  constructor(file: OpenFile) {
    this.name = file.name;
    this.blockSize = file.blockSize;
    this.path = file.path;
    this.fd = file.fd;
    this.#readOnly = file.readOnly;
    this.#inMemory = file.inMemory;
    this.#cacheTells = this.system !== undefined;
    this.#asksCache = file.asksCache;
    this.#remote = file.remoteSize !== undefined;
    this.sizeIs(file.remoteSize ?? 0);
    this.#flushes = new FlushGroup(() => this.#sync());
    // A process that was killed may have left writes in the page cache that nobody has flushed.
    if (!file.readOnly) this.#flushes.wrote();
  }

  get readOnly(): boolean {
    return this.#readOnly;
  }

  /** Where another program or machine keeps the file: as it was when last asked, and it is asked again for the next time. */
  get size(): Bytes {
    if (this.#remote) this.#askSize();
    else this.sizeIs(this.system ? Math.max(0, this.system.seek(this.fd, 0, SEEK_END)) : this.slowSize());
    return bytes(this.#known);
  }

  /** Bytes. */
  protected sizeIs(size: number): void {
    this.#known = Math.floor(size / SECTOR) * SECTOR;
    this.#sizeAsked = undefined;
  }

  #askSize(): void {
    if (this.#sizeAsked) return;
    const asked = this.onThread(() => sizeOnThread(this.fd)).then(
      (size) => {
        if (this.#sizeAsked === asked) this.sizeIs(size);
      },
      () => {
        if (this.#sizeAsked === asked) this.#sizeAsked = undefined;
      },
    );
    this.#sizeAsked = asked;
  }

  /** The file is kept by another program or machine: no call on it may be made on this thread. */
  protected get isRemote(): boolean {
    return this.#remote;
  }

  abstract get canDiscard(): boolean;
  /** The size in bytes without system(). */
  protected abstract slowSize(): number;
  /** Opens the same disk again, for writing, and takes the lock that writers hold. */
  protected abstract reopen(): Promise<number>;
  /** Called for a range within a writable device that can discard. Rejects with what the system call threw. */
  protected abstract discardRange(at: number, length: number): Promise<void>;
  /** Resolves with false when zeroes have to be written instead. */
  protected abstract zeroRange(at: number, length: number, mayUnmap: boolean): Promise<boolean>;
  abstract extents(at: Bytes, length: number): Maybe<Extent[]>;

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    this.check('read', at, length);
    let done = 0;
    if (length <= INLINE_MAX) {
      if (this.#cacheTells && this.#mayTry(at, length)) {
        done = this.system!.readCached(this.fd, at, into, start, length);
        if (done === length) {
          if (this.#wary > 0 && this.#threads.running === 0) this.#wary--;
          return;
        }
        this.#wary = WARY;
        if (done === NEVER) this.#cacheTells = false;
        if (done === MUST_WAIT || done === NEVER) done = 0;
      }
      if (this.#inMemory) {
        try {
          done += fs.readSync(this.fd, into, start + done, length - done, at + done);
        } catch (error) {
          throw this.failure('read', at, length, error);
        }
        if (done === length) return;
      }
    }
    return this.#readRest(at, into, start, length, done);
  }

  /**
   * A read of what the page cache lacks makes the disk's request on this thread, and waits where the disk takes no more
   * of them. So when one is likely to miss, the cache is asked first; where it cannot be, it is enough that none waits for
   * a thread. With few threads some are made here all the same: two at a time would be all that such a process reads.
   */
  #mayTry(at: number, length: number): boolean {
    if (this.#wary === 0) return true;
    const known = this.#asksCache ? this.system!.isCached(this.fd, at, length) : undefined;
    const cached = known ?? !this.#threads.isFull;
    if (!cached) this.#wary = WARY;
    return cached || this.#threads.mayRunAhead;
  }

  async #readRest(at: number, into: Uint8Array, start: number, length: number, done: number): Promise<void> {
    const turn = this.#threads.enter();
    if (turn) await turn;
    try {
      for (let position = done; position < length; ) {
        let count: number;
        try {
          count = await readOnThread(this.fd, into, start + position, length - position, at + position);
        } catch (error) {
          throw this.failure('read', at, length, error);
        }
        if (count === 0) throw this.#beyond('read', at, length, this.size);
        position += count;
      }
    } finally {
      this.#threads.leave();
    }
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    this.checkWrite('write', at, length);
    if (length > INLINE_MAX || this.#mayStall(at, length)) return this.#writeOnThread(at, from, start, length);
    if (this.system && writer.wants(this.fd, length)) return this.#writeAside(at, from, start, length);
    this.#writeHere(at, from, start, length);
  }

  #writeHere(at: number, from: Uint8Array, start: number, length: number): void {
    if (!this.#inMemory) this.#stalls.before();
    try {
      for (let done = 0; done < length; )
        done += progress(fs.writeSync(this.fd, from, start + done, length - done, at + done));
    } catch (error) {
      throw this.failure('write', at, length, error);
    } finally {
      this.#flushes.wrote();
      if (!this.#inMemory) this.#stalls.after();
    }
  }

  /** A write into the page cache is likely to wait for the disk, or for another program or machine. */
  #mayStall(at: number, length: number): boolean {
    if (this.#inMemory) return false;
    if (this.#remote || this.#stalls.expected || this.#threads.isStuck) return true;
    if (this.#aside > 0 && writer.isStuck) return true;
    // The rest of a page that is written in part is read first.
    if (!this.#asksCache) return false;
    const { pageSize } = this.system!;
    const end = at + length;
    return (at % pageSize !== 0 && this.#isAbsent(at)) || (end % pageSize !== 0 && this.#isAbsent(end - 1));
  }

  #isAbsent(at: number): boolean {
    return this.system!.isCached(this.fd, at, 1) === false;
  }

  async #writeOnThread(at: number, from: Uint8Array, start: number, length: number): Promise<void> {
    const turn = this.#threads.enter();
    if (turn) await turn;
    try {
      for (let done = 0; done < length; )
        done += progress(await writeOnThread(this.fd, from, start + done, length - done, at + done));
    } catch (error) {
      throw this.failure('write', at, length, error);
    } finally {
      this.#threads.leave();
      this.#flushes.wrote();
    }
  }

  /** Makes a call on a thread of this disk's share. */
  protected async onThread<T>(call: () => Promise<T>, first = false): Promise<T> {
    const turn = this.#threads.enter(first);
    if (turn) await turn;
    try {
      return await call();
    } finally {
      this.#threads.leave();
    }
  }

  async copyFrom(source: BlockDevice, from: Bytes, at: Bytes, length: number): Promise<boolean> {
    if (!this.system || !(source instanceof PosixDevice) || this.#strangers.has(source)) return false;
    this.checkWrite('write', at, length);
    source.check('read', from, length);
    const turn = this.#threads.enter();
    if (turn) await turn;
    try {
      for (let done = 0; done < length; ) {
        const count = await this.system.copyRange(source.fd, from + done, this.fd, at + done, length - done);
        if (count === 0) return false;
        done += count;
      }
      // A flush of what is on its way already waits less. Where that is not to be had, it writes all.
      await this.system.startWriteback(this.fd, at, length).catch(() => {});
      return true;
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code;
      // Anything else may pass; reading and writing tell what it is.
      if (code !== undefined && CANNOT_COPY.has(code)) this.#strangers.add(source);
      return false;
    } finally {
      this.#threads.leave();
      this.#flushes.wrote();
    }
  }

  #writeAside(at: number, from: Uint8Array, start: number, length: number): Promise<void> {
    this.#aside++;
    return new Promise((resolve, reject) => {
      writer.write(this.fd, from, start, length, at, (written) => {
        this.#aside--;
        this.#flushes.wrote();
        // Once more, for what the system says.
        if (!written)
          try {
            this.#writeHere(at, from, start, length);
          } catch (error) {
            return reject(error);
          }
        resolve();
      });
    });
  }

  flush(): Maybe {
    // Pages that are the disk are as durable as they will ever be.
    if (this.#inMemory) return;
    return this.#flushes.flush();
  }

  async #sync(): Promise<void> {
    try {
      await this.onThread(() => syncOnThread(this.fd), true);
    } catch (error) {
      const { errno } = fromSystem(error, '');
      throw new DmError(
        'FLUSH_FAILED',
        errno,
        `Cannot flush ${this.name}: ${errnoText(errno)}. Writes since the last flush may be lost, so no later flush can succeed`,
        { hint: `check the disk below (dmesg), then close and open ${this.name} again`, cause: error },
      );
    }
  }

  discard(at: Bytes, length: number): Maybe {
    this.checkWrite('discard', at, length);
    if (!this.canDiscard)
      throw new DmError(
        'CANNOT_DISCARD',
        'EOPNOTSUPP',
        `Cannot discard on ${this.name}: what holds it cannot give space back`,
      );
    return this.#change(
      'discard',
      at,
      length,
      this.onThread(() => this.discardRange(at, length)),
    );
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    this.checkWrite('zero', at, length);
    if (!mayUnmap && length <= ZEROES_INLINE_MAX) return this.write(at, zeroes, 0, length);
    return this.#change('zero', at, length, this.#zero(at, length, mayUnmap));
  }

  async #zero(at: number, length: number, mayUnmap: boolean): Promise<void> {
    if (await this.onThread(() => this.zeroRange(at, length, mayUnmap))) return;
    for (let done = 0; done < length; ) {
      const piece = Math.min(zeroes.length, length - done);
      await this.write(bytes(at + done), zeroes, 0, piece);
      done += piece;
      if (done < length) await setImmediate();
    }
  }

  async #change(what: string, at: number, length: number, done: Promise<void>): Promise<void> {
    try {
      await done;
    } catch (error) {
      throw this.failure(what, at, length, error);
    } finally {
      this.#flushes.wrote();
    }
  }

  allowWrites(): Promise<void> {
    if (!this.#readOnly) return Promise.resolve();
    this.#upgrading ??= this.#makeWritable().finally(() => {
      this.#upgrading = undefined;
    });
    return this.#upgrading;
  }

  async #makeWritable(): Promise<void> {
    let fd: number;
    try {
      fd = await this.reopen();
    } catch (error) {
      if (isForbidden(error)) return;
      throw error;
    }
    this.#replaced = this.fd;
    this.fd = fd;
    this.#readOnly = false;
    this.#flushes.wrote();
  }

  /** Of its own: what closes a disk that hangs waits for nobody else. */
  async close(): Promise<void> {
    const open = [this.fd, this.#replaced];
    // A number that is given back is soon another file's: a call that comes too late is to fail instead.
    this.fd = -1;
    this.#replaced = -1;
    for (const fd of open) if (fd >= 0) await closeOnThread(fd);
  }

  protected check(what: string, at: number, length: number): void {
    if (at >= 0 && at + length <= this.#known) return;
    const { size } = this;
    if (at < 0 || at + length > size) throw this.#beyond(what, at, length, size);
  }

  protected checkWrite(what: string, at: number, length: number): void {
    if (this.#readOnly)
      throw new DmError(
        'READ_ONLY',
        'EPERM',
        `Cannot ${what} ${length} bytes at ${at} of ${this.name}: it is read-only`,
      );
    this.check(what, at, length);
  }

  protected failure(what: string, at: number, length: number, error: unknown): DmError {
    const attempted = `Cannot ${what} ${length} bytes at ${at} of ${this.name}`;
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ENOSPC' || code === 'EDQUOT')
      return new DmError(
        'NO_SPACE',
        'ENOSPC',
        `${attempted}: ${code === 'EDQUOT' ? 'the quota' : 'the filesystem'} is full`,
        {
          hint: `make room: df -h ${dirname(this.path)}`,
          cause: error,
        },
      );
    return fromSystem(error, attempted);
  }

  #beyond(what: string, at: number, length: number, size: number): DmError {
    return new DmError(
      'OUT_OF_RANGE',
      'EIO',
      `Cannot ${what} ${length} bytes at ${at} of ${this.name}: it ends at ${size}`,
    );
  }
}

/** The disk is there, but must not be written: by permission, a read-only filesystem, or a read-only disk. */
export const isForbidden = (error: unknown) =>
  error instanceof DmError && ['EACCES', 'EPERM', 'EROFS'].includes(error.errno);

/** Opens a disk. A writer adds `writerFlags`. O_NONBLOCK: if a fifo has taken the path's place, do not wait for its end. */
export async function openPath(path: string, mode: Mode, writerFlags = 0): Promise<number> {
  const { O_RDWR, O_RDONLY, O_NONBLOCK } = fs.constants;
  const flags = (mode === 'rw' ? O_RDWR | writerFlags : O_RDONLY) | O_NONBLOCK;
  try {
    return await onThread<number>((settle) => fs.open(path, flags, settle));
  } catch (error) {
    throw fromSystem(error, `Cannot open ${path}${mode === 'rw' ? ' for writing' : ''}`);
  }
}

/**
 * Whether the page cache can be asked what it has of a file. On a file system that lies on another one (overlay) it has
 * nothing of this file, but all of the other's.
 */
export async function asksCache(fd: number): Promise<boolean> {
  try {
    await readOnThread(fd, new Uint8Array(1), 0, 1, 0);
  } catch {
    // Who reads that sector again will hear of it.
  }
  return system()?.isCached(fd, 0, 1) === true;
}

/** A write of nothing would be tried for ever. */
function progress(count: number): number {
  if (count === 0) throw Object.assign(new Error('nothing was written'), { code: 'EIO' satisfies Errno });
  return count;
}

type Settle<T> = (error: Error | null, value: T) => void;
const onThread = <T>(start: (settle: Settle<T>) => void) =>
  new Promise<T>((resolve, reject) => start((error, value) => (error ? reject(error) : resolve(value))));

// node:fs/promises would want a FileHandle and allocates more.
const readOnThread = (fd: number, into: Uint8Array, start: number, length: number, at: number) =>
  onThread<number>((settle) => fs.read(fd, into, start, length, at, settle));
const writeOnThread = (fd: number, from: Uint8Array, start: number, length: number, at: number) =>
  onThread<number>((settle) => fs.write(fd, from, start, length, at, settle));
const syncOnThread = (fd: number) =>
  onThread<void>((settle) => fs.fdatasync(fd, settle as (error: Error | null) => void));
const closeOnThread = (fd: number) => onThread<void>((settle) => fs.close(fd, settle as (error: Error | null) => void));
const sizeOnThread = (fd: number) =>
  onThread<number>((settle) => fs.fstat(fd, (error, stat) => settle(error, stat?.size)));
