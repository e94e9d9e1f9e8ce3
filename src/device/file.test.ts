import { once } from 'node:events';
import fs from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { device, directory, failure, make, open, path, read, useFile } from '../../test/support/disk-file.ts';
import { system } from '../lib/system.ts';
import { bytes } from '../units.ts';
import { FileDevice } from './file.ts';
import { MemoryDevice } from './memory.ts';

useFile();

/** The filesystem is said to be of this kind (include/uapi/linux/magic.h), wherever the tests run. */
function onFilesystem(type: number): void {
  vi.spyOn(fs.promises, 'statfs').mockResolvedValue({ type } as never);
}
const EXT4 = 0xef53;
const TMPFS = 0x01021994;

const onlyHas = (data: Uint8Array, value: number) => data.every((byte) => byte === value);

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
    await open('r', join(directory, '.', 'link'));
    expect(device!.name).toBe(path);
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
