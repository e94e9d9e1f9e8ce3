/**
 * The Linux system calls that Node does not offer, reached through koffi (docs/decisions/0001-koffi.md). koffi is
 * optional: `system()` is undefined where it is not installed, does not fit the machine, or DMKIT_NO_FFI=1 turns it off, and
 * whoever calls goes the `node:fs` way instead.
 */
import { createRequire } from 'node:module';
import { endianness } from 'node:os';
import { getSystemErrorName } from 'node:util';

/** `lseek` whence. */
export const SEEK_END = 2;
export const SEEK_DATA = 3;
export const SEEK_HOLE = 4;

/** `flock` operations; LOCK_NB is always added. */
export const LOCK_SH = 1;
export const LOCK_EX = 2;
export const LOCK_UN = 8;
const LOCK_NB = 4;

/** `fallocate` modes. Both keep the file's size. */
export const PUNCH_HOLE = 0x02 | 0x01;
export const ZERO_RANGE = 0x10 | 0x01;

/** `ioctl` requests of include/uapi/linux/fs.h, the same number on every machine that `system()` supports. */
export const BLKSSZGET = 0x1268;
export const BLKDISCARD = 0x1277;
export const BLKZEROOUT = 0x127f;

/** `fcntl`, the same number on every machine. */
const F_DUPFD_CLOEXEC = 1030;
const RWF_NOWAIT = 8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const SYNC_FILE_RANGE_WRITE = 2;
/** Of `cachestat`, on every machine: it is newer than the common numbers. The C library has no function for it yet. */
const SYS_CACHESTAT = 451;
const RUSAGE_THREAD = 1;
const EAGAIN = 11;
const EINVAL = 22;
const ENOSYS = 38;
const EOPNOTSUPP = 95;

/** Calls that fail throw or reject with what `node:fs` would: an Error whose `code` is the errno's name. */
export interface System {
  /**
   * Reads what the page cache holds, without ever waiting for a disk. Returns the number of bytes read, which may be
   * fewer than asked for; `MUST_WAIT` when nothing was read because it is not in the cache (or the read failed: a
   * read that may wait tells why), and `NEVER` when the filesystem cannot say.
   */
  readCached(fd: number, at: number, into: Uint8Array, start: number, length: number): number;
  /**
   * Whether the page cache has all of a range, without asking the disk for anything (unlike `readCached`, which begins to read what it
   * does not find). Undefined where the kernel cannot say: before Linux 6.5, or for a file that is not the caller's.
   */
  isCached(fd: number, at: number, length: number): boolean | undefined;
  /** Bytes of a page of the page cache. */
  readonly pageSize: number;
  /** Where `length` bytes at `start` of a buffer of some length lie in memory, as long as somebody holds the buffer. */
  address(buffer: Uint8Array, start: number, length: number): number;
  /** How often the calling thread has slept so far, to wait for something. */
  naps(): number;
  /** The offset found, or a negative errno: -ENXIO where there is none, -EINVAL when the file cannot say. */
  seek(fd: number, at: number, whence: number): number;
  /** `seek` on a thread. */
  seekOnThread(fd: number, at: number, whence: number): Promise<number>;
  /** Runs on a thread: a journal or a disk may hold it up. */
  fallocate(fd: number, mode: number, at: number, length: number): Promise<void>;
  /** Copies from one file to another inside the kernel, on a thread. Resolves with the bytes copied, 0 at the source's end. */
  copyRange(from: number, fromAt: number, to: number, at: number, length: number): Promise<number>;
  /** Begins to write to the disk what the page cache holds of a range; on a thread. A flush still tells what became of it. */
  startWriteback(fd: number, at: number, length: number): Promise<void>;
  /** Sends what the socket takes at once: the number of bytes, or `MUST_WAIT` if it takes none (or broke: a stream tells why). */
  send(fd: number, from: Uint8Array, start: number, length: number): number;
  /** Receives what is there: the number of bytes, 0 at the end, or `MUST_WAIT` if there is nothing (or it broke: a stream tells why). */
  receive(fd: number, into: Uint8Array, start: number, length: number): number;
  /** False: someone else holds the lock. */
  lock(fd: number, operation: number): boolean;
  /** `lock` on a thread: another machine may have to be asked. */
  lockOnThread(fd: number, operation: number): Promise<boolean>;
  /** Another descriptor for the same open file or socket; programs that are started do not get it. */
  duplicate(fd: number): number;
  /** An ioctl that fills an int. */
  ioctlInt(fd: number, request: number): number;
  /** An ioctl that takes a pair of u64, offset and length. Runs on a thread. */
  ioctlRange(fd: number, request: number, at: number, length: number): Promise<void>;
}

export const MUST_WAIT = -1;
export const NEVER = -2;

type Callback = (error: Error | null, result: number) => void;
type Call<A extends unknown[]> = ((...args: A) => number) & { async(...args: [...A, Callback]): void };

interface Koffi {
  load(path: null): { func(name: string, result: string, parameters: string[]): unknown };
  sizeof(type: string): number;
  address(value: ArrayBufferView): bigint;
  errno(): number;
}

let loaded: System | null | undefined;

export function system(): System | undefined {
  if (process.env.DMKIT_NO_FFI === '1') return undefined;
  if (loaded === undefined) {
    try {
      loaded = load();
    } catch {
      // No koffi, no build of it for this machine, or a C library that lacks one of the calls.
      loaded = null;
    }
  }
  return loaded ?? undefined;
}

function load(): System | null {
  // Elsewhere ioctl numbers, variadic calls or struct layouts differ; nobody could test them.
  if (process.platform !== 'linux' || !['x64', 'arm64', 'riscv64', 'loong64'].includes(process.arch)) return null;
  const koffi = createRequire(import.meta.url)('koffi') as Koffi;
  if (koffi.sizeof('void *') !== 8 || endianness() !== 'LE') return null;
  const libc = koffi.load(null);
  const call = <A extends unknown[]>(name: string, result: string, parameters: string[]) =>
    libc.func(name, result, parameters) as Call<A>;

  // off_t is 64 bits wide on these machines. koffi takes a number for an int64_t and is exact below 2^53.
  const preadv2 = call<[number, number, number, number, number]>('preadv2', 'int64_t', [
    'int',
    'intptr_t',
    'int',
    'int64_t',
    'int',
  ]);
  const cachestat = call<[number, number, number, number, number]>('syscall', 'int', [
    'int',
    'int',
    'intptr_t',
    'intptr_t',
    'int',
  ]);
  const getrusage = call<[number, ArrayBufferView]>('getrusage', 'int', ['int', 'void *']);
  const pageSize = call<[]>('getpagesize', 'int', [])();
  const lseek = call<[number, number, number]>('lseek', 'int64_t', ['int', 'int64_t', 'int']);
  const fallocate = call<[number, number, number, number]>('fallocate', 'int', ['int', 'int', 'int64_t', 'int64_t']);
  const copyRange = call<[number, ArrayBufferView, number, ArrayBufferView, number, number]>(
    'copy_file_range',
    'int64_t',
    ['int', 'void *', 'int', 'void *', 'size_t', 'unsigned int'],
  );
  const syncRange = call<[number, number, number, number]>('sync_file_range', 'int', [
    'int',
    'int64_t',
    'int64_t',
    'unsigned int',
  ]);
  const flock = call<[number, number]>('flock', 'int', ['int', 'int']);
  const send = call<[number, number, number, number]>('send', 'int64_t', ['int', 'intptr_t', 'size_t', 'int']);
  const receive = call<[number, number, number, number]>('recv', 'int64_t', ['int', 'intptr_t', 'size_t', 'int']);
  // Variadic in C; on these machines an integer or pointer travels in the same register either way.
  const fcntl = call<[number, number, number]>('fcntl', 'int', ['int', 'int', 'int']);
  const ioctl = call<[number, number, ArrayBufferView]>('ioctl', 'int', ['int', 'unsigned long', 'void *']);

  // One struct iovec for all reads, filled in place: base (u64), length (u64). Its own ArrayBuffer, because V8 moves
  // small typed arrays that have none. Passing addresses as numbers saves koffi two conversions per read.
  const iovec = new Uint32Array(new ArrayBuffer(16));
  const iovecAddress = Number(koffi.address(iovec));
  // struct cachestat_range (offset, length) and struct cachestat, of which the first u64 counts the pages that are there.
  const range = new Uint32Array(new ArrayBuffer(16));
  const rangeAddress = Number(koffi.address(range));
  const found = new Uint32Array(new ArrayBuffer(40));
  const foundAddress = Number(koffi.address(found));
  let cacheTells = true;
  // struct rusage: ru_nvcsw is its 17th long.
  const usage = new Uint32Array(new ArrayBuffer(144));
  // The memory of a buffer stays where it is as long as the buffer is not detached, and then its length is 0.
  const addresses = new WeakMap<Uint8Array, number>();

  /** Where `length` bytes at `start` of a buffer lie. */
  const addressOf = (buffer: Uint8Array, start: number, length: number): number => {
    if (!(start >= 0 && length >= 0 && start + length <= buffer.byteLength))
      throw new RangeError(`${length} bytes at ${start} do not lie in a buffer of ${buffer.byteLength}`);
    let base = addresses.get(buffer);
    if (base === undefined) {
      base = Number(koffi.address(buffer));
      addresses.set(buffer, base);
    }
    return base + start;
  };

  const failure = (name: string, errno: number): NodeJS.ErrnoException => {
    const code = errnoName(errno);
    return Object.assign(new Error(`${code}: ${name}`), { code, errno: -errno, syscall: name });
  };
  /**
   * Calls on one of koffi's threads, or here when too many calls are waiting for one. `args` must outlive the call: the
   * callback's scope holds them.
   */
  const onThread = <A extends unknown[]>(name: string, fn: Call<A>, ...args: A) =>
    new Promise<number>((resolve, reject) => {
      const settle = (result: number) => (result < 0 ? reject(failure(name, koffi.errno())) : resolve(result));
      try {
        fn.async(...args, (error, result) => (error ? reject(error) : settle(result)));
      } catch {
        settle(fn(...args));
      }
    });

  return {
    address: addressOf,
    readCached(fd, at, into, start, length) {
      const base = addressOf(into, start, length);
      iovec[0] = base;
      iovec[1] = base / 2 ** 32;
      iovec[2] = length;
      iovec[3] = length / 2 ** 32;
      const count = preadv2(fd, iovecAddress, 1, at, RWF_NOWAIT);
      if (count >= 0) return count;
      return koffi.errno() === EOPNOTSUPP ? NEVER : MUST_WAIT;
    },
    isCached(fd, at, length) {
      if (!cacheTells) return undefined;
      range[0] = at;
      range[1] = at / 2 ** 32;
      range[2] = length;
      range[3] = length / 2 ** 32;
      if (cachestat(SYS_CACHESTAT, fd, rangeAddress, foundAddress, 0) < 0) {
        if (koffi.errno() === ENOSYS) cacheTells = false;
        return undefined;
      }
      return found[0] === Math.ceil((at + length) / pageSize) - Math.floor(at / pageSize);
    },
    pageSize,
    naps: () => {
      getrusage(RUSAGE_THREAD, usage);
      return usage[32];
    },
    seek(fd, at, whence) {
      const offset = lseek(fd, at, whence);
      return offset >= 0 ? offset : -koffi.errno();
    },
    seekOnThread: (fd, at, whence) =>
      onThread('lseek', lseek, fd, at, whence).catch((error: NodeJS.ErrnoException) => error.errno ?? -EINVAL),
    fallocate: async (fd, mode, at, length) => {
      await onThread('fallocate', fallocate, fd, mode, at, length);
    },
    copyRange(from, fromAt, to, at, length) {
      const offset = (value: number) => BigInt64Array.of(BigInt(value));
      return onThread('copy_file_range', copyRange, from, offset(fromAt), to, offset(at), length, 0);
    },
    async startWriteback(fd, at, length) {
      await onThread('sync_file_range', syncRange, fd, at, length, SYNC_FILE_RANGE_WRITE);
    },
    send(fd, from, start, length) {
      const count = send(fd, addressOf(from, start, length), length, MSG_DONTWAIT | MSG_NOSIGNAL);
      return count >= 0 ? count : MUST_WAIT;
    },
    receive(fd, into, start, length) {
      const count = receive(fd, addressOf(into, start, length), length, MSG_DONTWAIT);
      return count >= 0 ? count : MUST_WAIT;
    },
    lock(fd, operation) {
      if (flock(fd, operation | LOCK_NB) === 0) return true;
      const errno = koffi.errno();
      if (errno === EAGAIN) return false;
      throw failure('flock', errno);
    },
    async lockOnThread(fd, operation) {
      try {
        await onThread('flock', flock, fd, operation | LOCK_NB);
        return true;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return false;
        throw error;
      }
    },
    duplicate(fd) {
      const copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
      if (copy < 0) throw failure('fcntl', koffi.errno());
      return copy;
    },
    ioctlInt(fd, request) {
      const value = new Int32Array(new ArrayBuffer(4));
      if (ioctl(fd, request, value) < 0) throw failure('ioctl', koffi.errno());
      return value[0];
    },
    async ioctlRange(fd, request, at, length) {
      const range = new BigUint64Array(new ArrayBuffer(16));
      range[0] = BigInt(at);
      range[1] = BigInt(length);
      await onThread('ioctl', ioctl, fd, request, range);
    },
  };
}

/** libuv calls EOPNOTSUPP by its POSIX name. */
function errnoName(errno: number): string {
  return errno === EOPNOTSUPP ? 'EOPNOTSUPP' : getSystemErrorName(-errno);
}
