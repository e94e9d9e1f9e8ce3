import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { FakeClock } from '../testing/fake-clock.ts';
import { bytes } from '../units.ts';
import { FileDevice } from './file.ts';
import { writer as ofThisThread, Writer } from './writer.ts';

const CHUNK = 65536;

let directory: string;
let path: string;
beforeEach(() => {
  directory = fs.mkdtempSync(join(tmpdir(), 'dmkit-writer-'));
  path = join(directory, 'file');
  fs.writeFileSync(path, '');
});
afterEach(() => {
  vi.restoreAllMocks();
  fs.rmSync(directory, { recursive: true });
});

const nextTurn = () => new Promise((resolve) => setImmediate(resolve));

/** Asks until the thread runs and takes a write. */
async function wanted(writer: Writer, fd = 0): Promise<void> {
  while (!writer.wants(fd, CHUNK) && !writer.wants(fd, CHUNK)) await nextTurn();
}

const write = (writer: Writer, fd: number, from: Uint8Array, start: number, length: number, at: number) =>
  new Promise<boolean>((resolve) => writer.write(fd, from, start, length, at, resolve));

function open(): number {
  const fd = fs.openSync(path, 'r+');
  onTestFinished(() => fs.closeSync(fd));
  return fd;
}

test('writes each to its place, many in a turn, and tells in order', async () => {
  const writer = new Writer();
  const fd = open();
  const told: number[] = [];
  const waits: Promise<unknown>[] = [];
  const expected = Buffer.alloc(100 * 4 * CHUNK);
  for (let i = 0; i < 100; i++) {
    await wanted(writer, fd);
    const length = 512 * (1 + ((i * 7) % 400));
    const from = new Uint8Array(4 * CHUNK).fill(i + 1);
    expected.set(from.subarray(0, length), i * 4 * CHUNK);
    waits.push(
      write(writer, fd, from, i * 3, length, i * 4 * CHUNK).then((written) => {
        expect(written).toBe(true);
        told.push(i);
      }),
    );
  }
  await Promise.all(waits);
  expect(told).toEqual(Array.from({ length: 100 }, (_, i) => i));
  const found = fs.readFileSync(path);
  expect(found.equals(expected.subarray(0, found.length))).toBe(true);
  expect(found.length).toBe(99 * 4 * CHUNK + 512 * (1 + ((99 * 7) % 400)));
});

test('wants nothing that is short, or alone in its turn', async () => {
  const writer = new Writer();
  await wanted(writer);
  await nextTurn();
  expect(writer.wants(0, CHUNK)).toBe(false);
  expect(writer.wants(0, CHUNK - 512)).toBe(false);
  expect(writer.wants(0, CHUNK)).toBe(true);
});

test('wants no more than it has places for, and nothing while a disk makes it wait', async () => {
  const clock = new FakeClock();
  const writer = new Writer(clock);
  const fd = open();
  const from = new Uint8Array(CHUNK);
  await wanted(writer);
  const waits = [write(writer, fd, from, 0, CHUNK, 0)];
  expect(writer.wants(fd, CHUNK)).toBe(true);
  expect(writer.wants(fd + 1, CHUNK)).toBe(false);
  expect(writer.isStuck).toBe(false);
  clock.pass(21);
  expect(writer.isStuck).toBe(true);
  expect(writer.wants(fd, CHUNK)).toBe(false);
  for (let i = 1; i < 32; i++) waits.push(write(writer, fd, from, 0, CHUNK, 0));
  clock.pass(-21);
  expect(writer.wants(fd, CHUNK)).toBe(false);
  expect(new Set(await Promise.all(waits))).toEqual(new Set([true]));
});

test('says so when a write fails', async () => {
  const writer = new Writer();
  await wanted(writer);
  expect(await write(writer, -1, new Uint8Array(CHUNK), 0, CHUNK, 0)).toBe(false);
});

describe('a device', () => {
  async function device(): Promise<FileDevice> {
    fs.truncateSync(path, 2 * CHUNK);
    const device = await FileDevice.open(path, 'rw');
    onTestFinished(() => device.close());
    return device;
  }

  test('has a chunk written by the thread, and covers it with its next flush', async () => {
    vi.spyOn(fs.promises, 'statfs').mockResolvedValue({ type: 0xef53 } as never);
    const file = await device();
    await file.flush();
    await wanted(ofThisThread);
    const here = vi.spyOn(fs, 'writeSync');
    const aside = vi.spyOn(ofThisThread, 'write');
    await file.write(bytes(4096), new Uint8Array(2 * CHUNK).fill(7, 512, 512 + CHUNK), 512, CHUNK);
    expect(aside).toHaveBeenCalledOnce();
    expect(here).not.toHaveBeenCalled();
    const found = fs.readFileSync(path);
    expect([4095, 4096, 4095 + CHUNK, 4096 + CHUNK].map((at) => found[at])).toEqual([0, 7, 7, 0]);
    const sync = vi.spyOn(fs, 'fdatasync');
    await file.flush();
    expect(sync).toHaveBeenCalledOnce();
  });

  test('that hangs on the thread has its further writes, short ones too, wait elsewhere', async () => {
    vi.spyOn(fs.promises, 'statfs').mockResolvedValue({ type: 0xef53 } as never);
    const file = await device();
    let tell = (_written: boolean) => {};
    vi.spyOn(ofThisThread, 'wants').mockImplementation((_fd, length) => length >= CHUNK);
    vi.spyOn(ofThisThread, 'write').mockImplementation((_fd, _from, _start, _length, _at, then) => (tell = then));
    const first = file.write(bytes(0), new Uint8Array(CHUNK), 0, CHUNK);
    vi.spyOn(ofThisThread, 'isStuck', 'get').mockReturnValue(true);
    const here = vi.spyOn(fs, 'writeSync');
    await file.write(bytes(CHUNK), new Uint8Array(4096), 0, 4096);
    expect(here).not.toHaveBeenCalled();
    tell(true);
    await first;
    file.write(bytes(CHUNK), new Uint8Array(4096), 0, 4096);
    expect(here).toHaveBeenCalledOnce();
  });

  test('makes a write that the thread could not make, and says why it failed', async () => {
    const file = await device();
    const data = new Uint8Array(CHUNK).fill(9);
    vi.spyOn(ofThisThread, 'wants').mockReturnValue(true);
    vi.spyOn(ofThisThread, 'write').mockImplementation((_fd, _from, _start, _length, _at, tell) =>
      setImmediate(tell, false),
    );
    await file.write(bytes(0), data, 0, CHUNK);
    expect(fs.readFileSync(path)[CHUNK - 1]).toBe(9);
    vi.spyOn(fs, 'writeSync').mockImplementation(() => {
      throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' });
    });
    await expect(file.write(bytes(0), data, 0, CHUNK)).rejects.toMatchObject({ code: 'NO_SPACE', errno: 'ENOSPC' });
  });
});
