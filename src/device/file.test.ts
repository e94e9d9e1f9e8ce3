import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { DmError } from '../errors.ts';
import { system } from '../lib/system.ts';
import { type Bytes, bytes } from '../units.ts';
import { FileDevice } from './file.ts';
import { MemoryDevice } from './memory.ts';

let directory: string;
let path: string;
let device: FileDevice | undefined;

beforeEach(() => {
  directory = fs.realpathSync(fs.mkdtempSync(join(tmpdir(), 'dmkit-file-')));
  path = join(directory, 'disk.img');
});
afterEach(async () => {
  vi.restoreAllMocks();
  vi.unstubAllEnvs();
  await device?.close();
  device = undefined;
  fs.rmSync(directory, { recursive: true });
});

function make(size: number, fill?: number): void {
  fs.writeFileSync(path, fill === undefined ? '' : new Uint8Array(size).fill(fill));
  fs.truncateSync(path, size);
}

async function open(mode: 'r' | 'rw'): Promise<FileDevice> {
  device = await FileDevice.open(path, mode);
  return device;
}

async function read(at: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length);
  await device!.read(bytes(at), into, 0, length);
  return into;
}

/** The filesystem is said to be of this kind (include/uapi/linux/magic.h), wherever the tests run. */
function onFilesystem(type: number): void {
  vi.spyOn(fs.promises, 'statfs').mockResolvedValue({ type } as never);
}
const EXT4 = 0xef53;
const TMPFS = 0x01021994;

const onlyHas = (data: Uint8Array, value: number) => data.every((byte) => byte === value);

async function failure(operation: () => unknown): Promise<DmError> {
  try {
    await operation();
  } catch (error) {
    expect(error).toBeInstanceOf(DmError);
    return error as DmError;
  }
  return expect.fail('it succeeded');
}

/** Another process that holds the file's lock. */
async function lockedElsewhere(kind: 'exclusive' | 'shared'): Promise<ChildProcess> {
  const script = `
    const koffi = require(${JSON.stringify(createRequire(import.meta.url).resolve('koffi'))});
    const flock = koffi.load(null).func('int flock(int, int)');
    const got = flock(require('node:fs').openSync(process.argv[1], 'r+'), ${kind === 'exclusive' ? 2 : 1} | 4);
    process.stdout.write(got === 0 ? 'locked' : 'busy');
    process.stdin.resume();`;
  const child = spawn(process.execPath, ['-e', script, path], { stdio: ['pipe', 'pipe', 'inherit'] });
  const [said] = await once(child.stdout!, 'data');
  expect(String(said)).toBe('locked');
  return child;
}

async function stop(child: ChildProcess): Promise<void> {
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

describe.each([
  ['with koffi', '0'],
  ['without koffi', '1'],
])('a file %s', (_title, noFfi) => {
  const ffi = noFfi === '0';
  beforeEach(() => vi.stubEnv('DMKIT_NO_FFI', noFfi));

  test('has system calls to use, or not', () => {
    expect(system() !== undefined).toBe(ffi);
  });

  test('reads back what was written beyond 2^32 and 2^43 bytes', async () => {
    const size = 16 * 2 ** 40 - 8192; // The largest that ext4 takes with blocks of 4 KiB is 4 KiB below 16 TiB.
    make(size);
    await open('rw');
    expect(device!.size).toBe(size);
    for (const at of [0, 2 ** 31 - 512, 2 ** 32 - 512, 2 ** 32 + 512, 2 ** 43 + 512, size - 1024]) {
      const data = new Uint8Array(2048).fill((at / 512) % 251 || 7);
      await device!.write(bytes(at), data, 512, 1024);
      const back = new Uint8Array(2048);
      const wait = device!.read(bytes(at), back, 1024, 1024);
      if (ffi) expect(wait).toBeUndefined();
      await wait;
      expect(back.subarray(1024)).toEqual(data.subarray(512, 1536));
      expect(back.subarray(0, 1024)).toEqual(new Uint8Array(1024));
    }
    if (ffi) {
      expect(await device!.extents(bytes(2 ** 43 - 8192), 2 ** 20)).toEqual([
        { length: 8192, hole: true, zero: true },
        { length: 4096, hole: false, zero: false },
        { length: 2 ** 20 - 12288, hole: true, zero: true },
      ]);
      await device!.discard(bytes(2 ** 43), 4096);
      expect(await device!.extents(bytes(2 ** 43), 8192)).toEqual([{ length: 8192, hole: true, zero: true }]);
    }
  });

  test('is named by its canonical path', async () => {
    make(512);
    fs.symlinkSync(path, join(directory, 'link'));
    device = await FileDevice.open(join(directory, '.', 'link'), 'r');
    expect(device.name).toBe(path);
  });

  test('is refused when its size is no multiple of 512, and says what to do', async () => {
    make(1300);
    const error = await failure(() => open('rw'));
    expect(error).toMatchObject({
      code: 'FILE_SIZE',
      errno: 'EINVAL',
      hint: `fill up its last sector: truncate -s 1536 ${path}`,
    });
    expect(error.message).toContain('1300 bytes');
  });

  test('is refused when it is missing, a directory, a device or a socket', async () => {
    expect(await failure(() => open('rw'))).toMatchObject({ code: 'DEVICE_NOT_FOUND', errno: 'ENODEV' });
    expect(fs.existsSync(path)).toBe(false);
    expect(await failure(() => FileDevice.open(directory, 'r'))).toMatchObject({ code: 'NOT_A_DISK', errno: 'ENODEV' });
    expect((await failure(() => FileDevice.open('/dev/null', 'r'))).message).toContain('a character device');
    const server = createServer().listen(path);
    await once(server, 'listening');
    expect((await failure(() => open('r'))).message).toContain('a socket');
    server.close();
    await once(server, 'close');
  });

  test('refuses writes when it was opened to read', async () => {
    make(4096, 1);
    await open('r');
    expect(device!.readOnly).toBe(true);
    const data = new Uint8Array(512);
    for (const operation of [
      () => device!.write(bytes(0), data, 0, 512),
      () => device!.writeZeroes(bytes(0), 512, true),
      () => device!.discard(bytes(0), 512),
    ])
      expect(await failure(operation)).toMatchObject({ code: 'READ_ONLY', errno: 'EPERM' });
    expect(device!.flush()).toBeUndefined();
    expect(await read(0, 4096)).toEqual(new Uint8Array(4096).fill(1));
  });

  test('notices that it grew, at once', async () => {
    make(4096);
    await open('rw');
    const data = new Uint8Array(512).fill(3);
    await failure(() => device!.write(bytes(4096), data, 0, 512));
    fs.truncateSync(path, 8192 + 100);
    expect(device!.size).toBe(8192);
    fs.truncateSync(path, 12288);
    await device!.write(bytes(12288 - 512), data, 0, 512);
    expect(await read(12288 - 512, 512)).toEqual(data);
    expect(device!.size).toBe(12288);
  });

  test('is extended by its descriptor, sparse, wherever its path leads by then', async () => {
    make(8192, 1);
    const file = await open('rw');
    fs.renameSync(path, `${path}.old`);
    make(512, 2);
    file.extend(bytes(2 ** 30));
    expect(file.size).toBe(2 ** 30);
    expect(onlyHas(await read(2 ** 30 - 4096, 4096), 0)).toBe(true);
    expect(onlyHas(await read(0, 8192), 1)).toBe(true);
    const { size, blocks } = fs.statSync(`${path}.old`);
    expect(size).toBe(2 ** 30);
    expect(blocks * 512).toBeLessThan(2 ** 20);
    expect(fs.statSync(path).size).toBe(512);
  });

  test('that cannot be extended says why, and stays as it was', async () => {
    make(8192, 1);
    const file = await open('rw');
    vi.spyOn(fs, 'ftruncateSync').mockImplementationOnce(() => {
      throw Object.assign(new Error('EFBIG: file too large'), { code: 'EFBIG' });
    });
    const error = await failure(() => file.extend(bytes(2 ** 40)));
    expect(error).toMatchObject({ code: 'SYSTEM_EFBIG', errno: 'EFBIG', message: expect.stringContaining(path) });
    expect(file.size).toBe(8192);
  });

  test('notices that it shrank: its size, and a read past the end', async () => {
    make(16384, 5);
    await open('r');
    await read(0, 16384);
    fs.truncateSync(path, 4096);
    const error = await failure(() => read(2048, 8192));
    expect(error).toMatchObject({ code: 'OUT_OF_RANGE', errno: 'EIO' });
    expect(error.message).toContain('it ends at 4096');
    expect(device!.size).toBe(4096);
    expect(await read(0, 4096)).toEqual(new Uint8Array(4096).fill(5));
  });

  test('goes on after short reads and writes', async () => {
    make(65536, 1);
    await open('rw');
    const { writeSync } = fs;
    const data = Uint8Array.from({ length: 8192 }, (_, i) => i % 255);
    const short = vi
      .spyOn(fs, 'writeSync')
      .mockImplementation(((fd: number, from: Uint8Array, start: number, length: number, at: number) =>
        writeSync(fd, from, start, Math.min(length, 1000), at)) as typeof fs.writeSync);
    await device!.write(bytes(512), data, 0, 8192);
    expect(short).toHaveBeenCalledTimes(9);
    const realRead = fs.read as (...words: unknown[]) => void;
    vi.spyOn(fs, 'read').mockImplementation(((
      fd: number,
      into: Uint8Array,
      start: number,
      length: number,
      at: number,
      then: unknown,
    ) => realRead(fd, into, start, Math.min(length, 1000), at, then)) as unknown as typeof fs.read);
    expect(await read(512, 8192)).toEqual(data);
  });

  test('keeps the errno of a failed write, and names a full filesystem', async () => {
    make(4096, 1);
    await open('rw');
    const data = new Uint8Array(512);
    const fail = (code: string) =>
      vi.spyOn(fs, 'writeSync').mockImplementationOnce(() => {
        throw Object.assign(new Error(code), { code });
      });
    fail('ENOSPC');
    const full = await failure(() => device!.write(bytes(0), data, 0, 512));
    expect(full).toMatchObject({ code: 'NO_SPACE', errno: 'ENOSPC', hint: `make room: df -h ${directory}` });
    expect(full.message).toContain(path);
    fail('EIO');
    expect(await failure(() => device!.write(bytes(0), data, 0, 512))).toMatchObject({ code: 'IO', errno: 'EIO' });
  });

  test('flushes once for many, and first of all what an earlier process left', async () => {
    onFilesystem(EXT4);
    make(4096);
    await open('rw');
    const sync = vi.spyOn(fs, 'fdatasync');
    await device!.flush();
    expect(sync).toHaveBeenCalledTimes(1);
    expect(device!.flush()).toBeUndefined();
    await device!.write(bytes(0), new Uint8Array(512), 0, 512);
    await Promise.all([device!.flush(), device!.flush(), device!.flush()]);
    expect(sync).toHaveBeenCalledTimes(2);
  });

  test('has nothing to flush where the page cache is the disk', async () => {
    onFilesystem(TMPFS);
    make(4096);
    await open('rw');
    await device!.write(bytes(0), new Uint8Array(512), 0, 512);
    expect(device!.flush()).toBeUndefined();
  });

  test('has something to flush after every kind of change', async () => {
    onFilesystem(EXT4);
    make(4 * 2 ** 20, 1);
    await open('rw');
    const sync = vi.spyOn(fs, 'fdatasync');
    const data = new Uint8Array(2 * 2 ** 20);
    const changes = [
      () => device!.write(bytes(0), data, 0, 512),
      () => device!.write(bytes(0), data, 0, data.length),
      () => device!.writeZeroes(bytes(0), 4096, false),
      () => device!.writeZeroes(bytes(0), 2 ** 20, false),
      () => device!.writeZeroes(bytes(0), 2 ** 20, true),
    ];
    if (ffi) changes.push(() => device!.discard(bytes(2 ** 20), 2 ** 20));
    for (const change of changes) {
      await device!.flush();
      expect(device!.flush()).toBeUndefined();
      sync.mockClear();
      await change();
      await device!.flush();
      expect(sync).toHaveBeenCalledTimes(1);
    }
  });

  test('never forgets a failed flush', async () => {
    onFilesystem(EXT4);
    make(4096);
    await open('rw');
    vi.spyOn(fs, 'fdatasync').mockImplementationOnce(((_fd: number, then: (error: Error) => void) =>
      setImmediate(then, Object.assign(new Error('EIO'), { code: 'EIO' }))) as unknown as typeof fs.fdatasync);
    expect(await failure(() => device!.flush())).toMatchObject({ code: 'FLUSH_FAILED', errno: 'EIO' });
    await device!.write(bytes(0), new Uint8Array(512), 0, 512);
    expect(await failure(() => device!.flush())).toMatchObject({ code: 'FLUSH_FAILED', errno: 'EIO' });
  });

  test('reaches no other file once it is closed', async () => {
    make(1 << 16, 1);
    const closed = await open('rw');
    await closed.close();
    const other = join(directory, 'other');
    fs.writeFileSync(other, new Uint8Array(1 << 16).fill(2));
    // One of them has the number that was given back.
    const opened = Array.from({ length: 32 }, () => fs.openSync(other, 'r+'));
    onTestFinished(() => {
      for (const fd of opened) fs.closeSync(fd);
    });
    const data = new Uint8Array(1 << 16);
    const calls = [
      () => closed.write(bytes(0), data, 0, 512),
      () => closed.write(bytes(0), data, 0, 1 << 16),
      () => closed.read(bytes(0), data, 0, 512),
      () => closed.flush(),
      () => closed.writeZeroes(bytes(0), 4096, false),
      () => closed.writeZeroes(bytes(0), 4096, true),
    ];
    for (const call of calls) await expect((async () => call())()).rejects.toThrow();
    await closed.close();
    expect(fs.readFileSync(other).every((byte) => byte === 2)).toBe(true);
    for (const fd of opened) expect(fs.fstatSync(fd).size).toBe(1 << 16);
  });

  test('gives space back on discard, or refuses', async () => {
    make(2 ** 20, 7);
    await open('rw');
    const { blocks } = fs.statSync(path);
    if (!ffi) {
      expect(device!.canDiscard).toBe(false);
      expect(await failure(() => device!.discard(bytes(0), 2 ** 20))).toMatchObject({ errno: 'EOPNOTSUPP' });
      return;
    }
    expect(device!.canDiscard).toBe(true);
    await device!.discard(bytes(512), 2 ** 19);
    expect(fs.statSync(path).blocks).toBeLessThanOrEqual(blocks - 2 ** 10 + 8);
    expect(onlyHas(await read(512, 2 ** 19), 0)).toBe(true);
    expect((await read(0, 512))[511]).toBe(7);
  });

  test('tells holes from data, up to its end', async () => {
    make(2 ** 20);
    await open('rw');
    await device!.write(bytes(2 ** 16), new Uint8Array(2 ** 16).fill(1), 0, 2 ** 16);
    const data = { hole: false, zero: false };
    const hole = { hole: true, zero: true };
    expect(await device!.extents(bytes(0), 2 ** 20)).toEqual(
      ffi
        ? [
            { length: 2 ** 16, ...hole },
            { length: 2 ** 16, ...data },
            { length: 2 ** 20 - 2 ** 17, ...hole },
          ]
        : [{ length: 2 ** 20, ...data }],
    );
    expect(await device!.extents(bytes(2 ** 16 + 512), 1024)).toEqual([{ length: 1024, ...data }]);
  });

  test('keeps zeroes allocated unless they may be unmapped', async () => {
    make(2 ** 20, 7);
    await open('rw');
    const { blocks } = fs.statSync(path);
    await device!.writeZeroes(bytes(0), 2 ** 20, false);
    await device!.flush();
    expect(fs.statSync(path).blocks).toBeGreaterThanOrEqual(blocks);
    await device!.writeZeroes(bytes(0), 2 ** 20, true);
    await device!.flush();
    if (ffi) expect(fs.statSync(path).blocks).toBeLessThan(blocks / 2);
    expect(onlyHas(await read(0, 2 ** 20), 0)).toBe(true);
  });

  test('zeroes more than it writes at a time', async () => {
    make(5 * 2 ** 20, 9);
    await open('rw');
    await device!.writeZeroes(bytes(512), 4 * 2 ** 20, false);
    const found = await read(0, 5 * 2 ** 20);
    expect(found.indexOf(0)).toBe(512);
    expect(found.lastIndexOf(0)).toBe(512 + 4 * 2 ** 20 - 1);
    expect(onlyHas(found.subarray(512, 512 + 4 * 2 ** 20), 0)).toBe(true);
  });
});

describe('the lock of a file', () => {
  test('keeps a second writer out and names the first', async () => {
    make(4096);
    const other = await lockedElsewhere('exclusive');
    for (const mode of ['r', 'rw'] as const) {
      const error = await failure(() => open(mode));
      expect(error).toMatchObject({ code: 'DEVICE_IN_USE', errno: 'EBUSY' });
      expect(error.message).toContain(`(pid ${other.pid})`);
      expect(error.message).toMatch(/: \S+ \(pid/);
    }
    await stop(other);
    await open('rw');
  });

  test('lets readers share, and keeps a writer out', async () => {
    make(4096);
    const other = await lockedElsewhere('shared');
    await open('r');
    expect(await failure(() => FileDevice.open(path, 'rw'))).toMatchObject({ errno: 'EBUSY' });
    await stop(other);
  });

  test('holds within one process too', async () => {
    make(4096);
    await open('rw');
    expect((await failure(() => FileDevice.open(path, 'rw'))).message).toContain('this process has it open');
  });
});

describe('allowing writes', () => {
  const size = 4 * 2 ** 20;

  test.each(['0', '1'])('swaps the descriptor under reads in flight (DMKIT_NO_FFI=%s)', async (noFfi) => {
    vi.stubEnv('DMKIT_NO_FFI', noFfi);
    fs.writeFileSync(
      path,
      Uint8Array.from({ length: size }, (_, i) => (i >>> 9) % 251),
    );
    await open('r');
    const reads: { at: number; into: Uint8Array; wait: unknown }[] = [];
    const start = () => {
      const at = ((reads.length * 7919) % (size / 512 - 4096)) * 512;
      const into = new Uint8Array(2 ** 20 + 512); // Too long to be read at once.
      reads.push({ at, into, wait: device!.read(at as Bytes, into, 0, into.length) });
    };
    for (let i = 0; i < 20; i++) start();
    const upgraded = Promise.all([device!.allowWrites(), device!.allowWrites()]);
    for (let i = 0; i < 20; i++) start();
    await upgraded;
    for (let i = 0; i < 20; i++) start();
    for (const { at, into, wait } of reads) {
      await wait;
      expect(into.every((byte, i) => byte === ((at + i) >>> 9) % 251)).toBe(true);
    }
    expect(device!.readOnly).toBe(false);
    await device!.write(bytes(0), new Uint8Array(512).fill(0xff), 0, 512);
    await device!.flush();
    expect(fs.readFileSync(path)[511]).toBe(0xff);
    await device!.allowWrites();
  });

  test('leaves the old descriptor to a read that waits for its thread', async () => {
    vi.stubEnv('DMKIT_NO_FFI', '1');
    make(4096, 6);
    await open('r');
    const realRead = fs.read as (...words: unknown[]) => void;
    let begin = () => {};
    vi.spyOn(fs, 'read').mockImplementationOnce(((...words: unknown[]) => {
      begin = () => realRead(...words);
    }) as unknown as typeof fs.read);
    const waiting = read(0, 4096);
    await device!.allowWrites();
    begin();
    expect(await waiting).toEqual(new Uint8Array(4096).fill(6));
  });

  test('takes the lock of a writer', async () => {
    make(4096);
    await open('r');
    await device!.allowWrites();
    await expect(lockedElsewhere('shared')).rejects.toThrow();
  });

  test('is refused while another process reads, and the device stays as it was', async () => {
    make(4096, 1);
    const other = await lockedElsewhere('shared');
    await open('r');
    const error = await failure(() => device!.allowWrites());
    expect(error).toMatchObject({ code: 'DEVICE_IN_USE', errno: 'EBUSY' });
    expect(error.message).toContain(`(pid ${other.pid})`);
    expect(device!.readOnly).toBe(true);
    expect(await read(0, 4096)).toEqual(new Uint8Array(4096).fill(1));
    await stop(other);
    await expect(lockedElsewhere('exclusive')).rejects.toThrow();
    await device!.allowWrites();
    expect(device!.readOnly).toBe(false);
  });

  test('is refused when another file has taken its place', async () => {
    make(4096);
    await open('r');
    fs.renameSync(path, `${path}.old`);
    make(4096);
    expect(await failure(() => device!.allowWrites())).toMatchObject({ code: 'REPLACED', errno: 'EBUSY' });
    expect(device!.readOnly).toBe(true);
  });
});

describe('copying from another disk', () => {
  const data = Uint8Array.from({ length: 1 << 20 }, (_, i) => (i >>> 9) + (i >>> 17));

  async function pair(): Promise<[source: FileDevice, target: FileDevice]> {
    make(2 << 20, 7);
    const other = join(directory, 'source.img');
    fs.writeFileSync(other, data);
    const source = await FileDevice.open(other, 'r');
    onTestFinished(() => source.close());
    return [source, await open('rw')];
  }

  test('takes the bytes, and nothing beside them', async () => {
    const [source, target] = await pair();
    expect(await target.copyFrom(source, bytes(4096), bytes(8192), 512 * 1024)).toBe(true);
    expect(await read(8192, 512 * 1024)).toEqual(data.slice(4096, 4096 + 512 * 1024));
    expect(onlyHas(await read(0, 8192), 7)).toBe(true);
    expect(onlyHas(await read(8192 + 512 * 1024, 4096), 7)).toBe(true);
  });

  test('refuses what lies outside either of them, and a target that is read-only', async () => {
    const [source, target] = await pair();
    const beyond = { code: 'OUT_OF_RANGE' };
    await expect(target.copyFrom(source, bytes(1 << 20), bytes(0), 512)).rejects.toMatchObject(beyond);
    await expect(target.copyFrom(source, bytes(0), bytes(2 << 20), 512)).rejects.toMatchObject(beyond);
    await expect(source.copyFrom(target, bytes(0), bytes(0), 512)).rejects.toMatchObject({ code: 'READ_ONLY' });
  });

  test('is left to the caller where the kernel cannot, or there is no way to ask it', async () => {
    const [source, target] = await pair();
    expect(await target.copyFrom(new MemoryDevice(4096), bytes(0), bytes(0), 512)).toBe(false);
    vi.spyOn(system()!, 'copyRange').mockRejectedValueOnce(Object.assign(new Error(), { code: 'EIO' }));
    expect(await target.copyFrom(source, bytes(0), bytes(0), 512)).toBe(false);
    expect(await target.copyFrom(source, bytes(0), bytes(0), 512)).toBe(true);
    vi.spyOn(system()!, 'copyRange').mockRejectedValueOnce(Object.assign(new Error(), { code: 'EXDEV' }));
    expect(await target.copyFrom(source, bytes(0), bytes(0), 512)).toBe(false);
    expect(await target.copyFrom(source, bytes(0), bytes(0), 512)).toBe(false);
  });

  test('is covered by a flush', async () => {
    onFilesystem(EXT4);
    const [source, target] = await pair();
    await target.flush();
    const sync = vi.spyOn(fs, 'fdatasync');
    await target.flush();
    expect(sync).not.toHaveBeenCalled();
    await target.copyFrom(source, bytes(0), bytes(0), 512);
    await target.flush();
    expect(sync).toHaveBeenCalledOnce();
  });
});
