import fs from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { LOCK_EX, MUST_WAIT, PUNCH_HOLE, SEEK_DATA, SEEK_END, system } from './system.ts';

const sys = system()!;
let directory: string;
let fd: number;
beforeAll(() => {
  directory = fs.mkdtempSync(join(tmpdir(), 'dmkit-system-'));
  fd = fs.openSync(join(directory, 'file'), 'w+');
  fs.writeSync(
    fd,
    Uint8Array.from({ length: 8192 }, (_, i) => (i >>> 9) + 1),
  );
});
afterAll(() => {
  fs.closeSync(fd);
  fs.rmSync(directory, { recursive: true });
});

test('DMKIT_NO_FFI=1 turns the calls off', () => {
  vi.stubEnv('DMKIT_NO_FFI', '1');
  expect(system()).toBeUndefined();
  vi.unstubAllEnvs();
  expect(system()).toBe(sys);
});

test('reads into any part of any kind of array, and stops at the end of the file', () => {
  const whole = new Uint8Array(16384);
  const far = new Uint8Array(2 ** 24); // Mapped on its own, above 4 GiB, where smaller ones may lie below.
  for (const into of [
    whole,
    far,
    whole.subarray(100, 9000),
    Buffer.alloc(9000),
    new Uint8Array(new SharedArrayBuffer(9000)),
  ]) {
    expect(sys.readCached(fd, 512, into, 7, 1024)).toBe(1024);
    expect([into[6], into[7], into[518], into[519], into[1030], into[1031]]).toEqual([0, 2, 2, 3, 3, 0]);
    into.fill(0);
  }
  expect(sys.readCached(fd, 7680, whole, 0, 4096)).toBe(512);
  expect(sys.readCached(fd, 8192, whole, 0, 4096)).toBe(0);
});

test('refuses to read beyond a buffer, also one whose memory has gone', () => {
  const into = new Uint8Array(4096);
  expect(sys.readCached(fd, 0, into, 0, 4096)).toBe(4096);
  for (const [start, length] of [
    [1, 4096],
    [4096, 1],
    [-1, 512],
    [0, -1],
    [Number.NaN, 512],
  ])
    expect(() => sys.readCached(fd, 0, into, start, length)).toThrow(RangeError);
  structuredClone(into.buffer, { transfer: [into.buffer] });
  expect(() => sys.readCached(fd, 0, into, 0, 512)).toThrow(RangeError);
});

test('copies between files, up to the end of the one', async () => {
  const to = fs.openSync(join(directory, 'copy'), 'w+');
  try {
    expect(await sys.copyRange(fd, 512, to, 1024, 1024)).toBe(1024);
    expect(await sys.copyRange(fd, 7680, to, 4096, 4096)).toBe(512);
    expect(await sys.copyRange(fd, 8192, to, 0, 512)).toBe(0);
    const found = fs.readFileSync(join(directory, 'copy'));
    expect([0, 1023, 1024, 1536, 2047, 2048, 4096, 4607].map((at) => found[at])).toEqual([0, 0, 2, 3, 3, 0, 16, 16]);
    await expect(sys.copyRange(fd, 0, -1, 0, 512)).rejects.toMatchObject({ code: 'EBADF' });
  } finally {
    fs.closeSync(to);
  }
});

test('begins to write a range to the disk', async () => {
  await sys.startWriteback(fd, 512, 1024);
  await expect(sys.startWriteback(-1, 0, 512)).rejects.toMatchObject({ code: 'EBADF' });
});

test('carries the errno of every call', async () => {
  expect(sys.seek(fd, 0, SEEK_END)).toBe(8192);
  expect(sys.seek(fd, 8192, SEEK_DATA)).toBe(-6);
  expect(sys.seek(-1, 0, SEEK_END)).toBe(-9);
  expect(() => sys.lock(-1, LOCK_EX)).toThrow(expect.objectContaining({ code: 'EBADF', syscall: 'flock' }));
  expect(() => sys.ioctlInt(fd, 0x1268)).toThrow(expect.objectContaining({ code: 'ENOTTY' }));
  await expect(sys.ioctlRange(fd, 0x1277, 0, 512)).rejects.toMatchObject({ code: 'ENOTTY' });
  await expect(sys.fallocate(fd, 0x80, 0, 512)).rejects.toMatchObject({ code: 'EOPNOTSUPP' });
});

test('sends and receives what a socket takes and has at once, and says when that is nothing', async () => {
  const server = createServer({ pauseOnConnect: true });
  const accepted = new Promise<Socket>((resolve) => server.once('connection', resolve));
  await new Promise<void>((resolve) => server.listen(join(directory, 's'), resolve));
  const client = connect(join(directory, 's'));
  const socket = await accepted;
  const copy = sys.duplicate((socket as unknown as { _handle: { fd: number } })._handle.fd);
  try {
    const data = Buffer.alloc(3 << 20, 'abcdefg');
    const sent = sys.send(copy, data, 7, data.length - 7);
    expect(sent).toBeGreaterThan(0);
    expect(sent).toBeLessThan(data.length - 7);
    expect(sys.send(copy, data, 0, 2 << 20)).toBe(MUST_WAIT);
    const into = new Uint8Array(20);
    expect(sys.receive(copy, into, 3, 10)).toBe(MUST_WAIT);
    await new Promise((resolve) => client.write('twelve bytes', resolve));
    expect(sys.receive(copy, into, 3, 10)).toBe(10);
    expect(Buffer.from(into).toString('latin1', 2, 14)).toBe('\0twelve byt\0');
    expect(() => sys.receive(copy, into, 11, 10)).toThrow(RangeError);
    let got = 0;
    await new Promise<void>((resolve) => {
      client.on('data', (chunk) => {
        expect(data.compare(chunk, 0, chunk.length, 7 + got, 7 + got + chunk.length)).toBe(0);
        got += chunk.length;
        if (got === sent) resolve();
      });
    });
    socket.destroy();
    client.destroy();
    await new Promise((resolve) => client.once('close', resolve));
    // The other side is gone: no signal ends the process.
    expect(sys.send(copy, data, 0, 7)).toBe(MUST_WAIT);
    expect(() => sys.send(copy, data, 0, data.length + 1)).toThrow(RangeError);
  } finally {
    fs.closeSync(copy);
    server.close();
  }
});

test('gives another descriptor for the same file, which child processes do not get', () => {
  const copy = sys.duplicate(fd);
  try {
    expect(fs.fstatSync(copy).ino).toBe(fs.fstatSync(fd).ino);
    const flags = /flags:\t(\d+)/.exec(fs.readFileSync(`/proc/self/fdinfo/${copy}`, 'utf8'))![1];
    expect(Number.parseInt(flags, 8) & 0o2000000).not.toBe(0);
  } finally {
    fs.closeSync(copy);
  }
  expect(() => sys.duplicate(-1)).toThrow(expect.objectContaining({ code: 'EBADF' }));
});

test('takes more calls at once than there are places on the threads, each with its own errno', async () => {
  const calls = Array.from({ length: 1000 }, (_, i) =>
    sys.fallocate(i % 3 === 0 ? -1 : fd, i % 3 === 1 ? 0x80 : PUNCH_HOLE, 8192, 512).then(
      () => '',
      (error) => error.code,
    ),
  );
  expect(await Promise.all(calls)).toEqual(calls.map((_, i) => ['EBADF', 'EOPNOTSUPP', ''][i % 3]));
});
