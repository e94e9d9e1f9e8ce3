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

/** A slot, asked for until the writer runs. */
async function borrow(writer: Writer): Promise<Uint8Array> {
  for (;;) {
    writer.borrow(CHUNK);
    const slot = writer.borrow(CHUNK);
    if (slot) return slot;
    await nextTurn();
  }
}

function open(): number {
  const fd = fs.openSync(path, 'r+');
  onTestFinished(() => fs.closeSync(fd));
  return fd;
}

test('writes each slot to its place, many in a turn, and tells in order', async () => {
  const writer = new Writer();
  const fd = open();
  writer.giveBack(await borrow(writer));
  const told: number[] = [];
  const waits: Promise<void>[] = [];
  for (let i = 0; i < 500; i++) {
    const own = writer.borrow(CHUNK) ?? (await borrow(writer));
    own.fill(i % 251, 0, 512 * (1 + (i % 7)));
    waits.push(
      new Promise((resolve) => {
        writer.write(fd, i * 4096, own, 0, 512 * (1 + (i % 7)), (written) => {
          expect(written).toBe(true);
          told.push(i);
          writer.giveBack(own);
          resolve();
        });
      }),
    );
  }
  await Promise.all(waits);
  expect(told).toEqual(Array.from({ length: 500 }, (_, i) => i));
  const found = fs.readFileSync(path);
  for (let i = 0; i < 500; i++) {
    const length = 512 * (1 + (i % 7));
    expect(found.subarray(i * 4096, i * 4096 + length).every((byte) => byte === i % 251)).toBe(true);
  }
});

test('lends nothing to the first of a turn, nor for more than a slot holds', async () => {
  const writer = new Writer();
  writer.giveBack(await borrow(writer));
  await nextTurn();
  expect(writer.borrow(CHUNK)).toBeUndefined();
  expect(writer.borrow(CHUNK + 512)).toBeUndefined();
  expect(writer.borrow(CHUNK)).toBeInstanceOf(Uint8Array);
});

test('lends nothing while a disk makes it wait', async () => {
  const clock = new FakeClock();
  const writer = new Writer(clock);
  const slot = await borrow(writer);
  const ended = new Promise((resolve) => writer.write(open(), 0, slot, 0, 512, resolve));
  expect(writer.borrow(CHUNK)).toBeInstanceOf(Uint8Array);
  clock.pass(21);
  expect(writer.borrow(CHUNK)).toBeUndefined();
  expect(await ended).toBe(true);
});

test('says so when a write fails', async () => {
  const writer = new Writer();
  const slot = await borrow(writer);
  expect(await new Promise((resolve) => writer.write(-1, 0, slot, 0, 512, resolve))).toBe(false);
});

describe('a device', () => {
  async function device(): Promise<FileDevice> {
    fs.truncateSync(path, 2 * CHUNK);
    const device = await FileDevice.open(path, 'rw');
    onTestFinished(() => device.close());
    return device;
  }

  test('has what it lends written by the thread, and covers it with its next flush', async () => {
    vi.spyOn(fs.promises, 'statfs').mockResolvedValue({ type: 0xef53 } as never);
    const file = await device();
    await file.flush();
    const slot = await borrow(ofThisThread);
    slot.fill(7);
    const here = vi.spyOn(fs, 'writeSync');
    await file.write(bytes(512), slot, 512, 1024);
    expect(here).not.toHaveBeenCalled();
    file.giveBack(slot);
    const found = fs.readFileSync(path);
    expect([511, 512, 1535, 1536].map((at) => found[at])).toEqual([0, 7, 7, 0]);
    const sync = vi.spyOn(fs, 'fdatasync');
    await file.flush();
    expect(sync).toHaveBeenCalledOnce();
  });

  test('makes a write that the thread could not make, and says why it failed', async () => {
    const file = await device();
    const slot = await borrow(ofThisThread);
    slot.fill(9);
    vi.spyOn(ofThisThread, 'write').mockImplementation((_fd, _at, _slot, _start, _length, ended) =>
      setImmediate(ended, false),
    );
    await file.write(bytes(0), slot, 0, 512);
    expect(fs.readFileSync(path)[511]).toBe(9);
    vi.spyOn(fs, 'writeSync').mockImplementation(() => {
      throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' });
    });
    await expect(file.write(bytes(0), slot, 0, 512)).rejects.toMatchObject({ code: 'NO_SPACE', errno: 'ENOSPC' });
    file.giveBack(slot);
  });
});
