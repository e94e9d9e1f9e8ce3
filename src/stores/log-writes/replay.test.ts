import { expect, test } from 'vitest';
import { MemoryDevice } from '../../device/memory.ts';
import { logEntry } from '../../formats/log-writes.ts';
import { prng } from '../../lib/prng.ts';
import { ScriptedDevice } from '../../testing/scripted-device.ts';
import { bytes, SECTOR } from '../../units.ts';
import { LogReader } from './log-reader.ts';
import { replay, skipEntries } from './replay.ts';
import { WriteLog } from './write-log.ts';

const disk = (sectors: number, name = 'disk') => new ScriptedDevice(new MemoryDevice(sectors * SECTOR, { name }));
const CHANGES = 'WDZ';
const changes = (device: ScriptedDevice) => device.log.filter((entry) => CHANGES.includes(entry[0]));

/** 0 write a, 1 flush, 2 mark m1, 3 write b, 4 discard, 5 mark m2, 6 flush, 7 write c (3 MiB), 8 end. */
async function sample(): Promise<ScriptedDevice> {
  const device = disk(16_384, 'log');
  const log = new WriteLog(device, SECTOR);
  const write = (at: number, letter: string, length = 4096) =>
    log.wrote(at * SECTOR, Buffer.alloc(length, letter), 0, length);
  write(0, 'a');
  log.flushed(log.completed);
  await log.mark('m1');
  write(8, 'b');
  log.discarded(0, 2048);
  const { completed } = log;
  write(16, 'c', 3 * 2 ** 20 + 512);
  await log.mark('m2');
  log.flushed(completed);
  await log.end();
  return device;
}

const SAMPLE = ['write', 'flush', 'mark', 'mark', 'write', 'discard', 'flush', 'write', 'mark'];

test('lists what was logged', async () => {
  const reader = await LogReader.open(await sample());
  expect(reader.entries).toBe(9);
  const kinds: string[] = [];
  for (let entry = await reader.next(); entry; entry = await reader.next()) kinds.push(entry.kind);
  expect(kinds).toEqual(SAMPLE);
  expect(reader.position.index).toBe(9);
  expect(await reader.next()).toBeUndefined();
});

test('repeats everything, and flushes', async () => {
  const target = disk(8192);
  target.disk.write(bytes(0), Buffer.alloc(4096, 'x'), 0, 4096);
  const result = await replay(await LogReader.open(await sample()), target);
  const length = 3 * 2 ** 20 + 512;
  expect(result).toEqual({
    first: 0,
    next: 9,
    writes: 3,
    written: 8192 + length,
    discards: 1,
    discardsSkipped: 0,
    atFlush: false,
  });
  expect(target.log).toEqual(['W 0+8', 'W 8+8', 'D 0+4', 'W 16+2048', 'W 2064+2048', 'W 4112+2048', 'W 6160+1', 'F']);
  const found = Buffer.alloc(8192 + length);
  target.read(bytes(0), found, 0, found.length);
  expect(found.toString('latin1', 2048, 8192)).toBe('a'.repeat(2048) + 'b'.repeat(4096));
  expect(found.subarray(8192).every((byte) => byte === 'c'.charCodeAt(0))).toBe(true);
});

test('ends with a mark, a flush or a number of entries, and goes on from there', async () => {
  const target = disk(8192);
  const reader = await LogReader.open(await sample());
  expect(await replay(reader, target, { toMark: 'm1' })).toMatchObject({ first: 0, next: 3, atFlush: false });
  expect(target.takeLog()).toEqual(['W 0+8', 'F']);
  expect(await replay(reader, target, { toFlush: true })).toMatchObject({ first: 3, next: 7, atFlush: true });
  expect(target.takeLog()).toEqual(['W 8+8', 'D 0+4', 'F']);
  expect(await replay(reader, target, { entries: 1 })).toMatchObject({ first: 7, next: 8, writes: 1 });
  expect(await replay(reader, target, { toFlush: true })).toMatchObject({ first: 8, next: 9, atFlush: false });
  expect(await replay(reader, target)).toMatchObject({ first: 9, next: 9 });
});

test('entries can be passed over, but not more than there are', async () => {
  const target = disk(8192);
  const reader = await LogReader.open(await sample());
  await skipEntries(reader, 4);
  expect(await replay(reader, target, { entries: 1 })).toMatchObject({ first: 4, next: 5 });
  expect(changes(target)).toEqual(['W 8+8']);
  await skipEntries(reader, 4);
  await expect(skipEntries(reader, 1)).rejects.toMatchObject({ code: 'WRITE_LOG_ENTRY', errno: 'EINVAL' });
});

test('a discard that the disk cannot do leaves it as it was', async () => {
  const target = disk(8192);
  (target.disk as MemoryDevice).canDiscard = false;
  const result = await replay(await LogReader.open(await sample()), target);
  expect(result).toMatchObject({ discards: 1, discardsSkipped: 1 });
  expect(target.log).not.toContain('D 0+4');
});

test.each<[string, number, object, string]>([
  ['a mark that is not there', 8192, { toMark: 'm3' }, 'WRITE_LOG_MARK'],
  ['a mark behind the entries asked for', 8192, { toMark: 'm2', entries: 3 }, 'WRITE_LOG_MARK'],
  ['a disk that is too small', 8, {}, 'WRITE_LOG_TARGET'],
])('%s leaves the disk as it was', async (_, sectors, options, code) => {
  const target = disk(sectors);
  await expect(replay(await LogReader.open(await sample()), target, options)).rejects.toMatchObject({ code });
  expect(changes(target)).toEqual([]);
});

test('a small disk takes what is for it', async () => {
  const target = disk(8);
  expect(await replay(await LogReader.open(await sample()), target, { toMark: 'm1' })).toMatchObject({ next: 3 });
});

test('a disk that is read-only is refused', async () => {
  const target = disk(8192);
  (target.disk as MemoryDevice).readOnly = true;
  await expect(replay(await LogReader.open(await sample()), target)).rejects.toMatchObject({ code: 'READ_ONLY' });
});

/** A log whose bytes at `at` are changed. */
async function damaged(change: (content: DataView) => void, sectors = 8192): Promise<ScriptedDevice> {
  const log = await sample();
  const content = Buffer.alloc(sectors * SECTOR);
  log.read(bytes(0), content, 0, content.length);
  change(new DataView(content.buffer, content.byteOffset, content.length));
  const device = disk(sectors, 'log');
  device.disk.write(bytes(0), content, 0, content.length);
  return device;
}

const FIRST = 512;

test.each<[string, (content: DataView) => void, RegExp]>([
  ['more entries than fit', (c) => c.setUint32(16, 8192, true), /it counts 8192 entries, and has room for 8191/],
  ['2^64 - 1 entries', (c) => c.setBigUint64(16, 2n ** 64n - 1n, true), /it counts 18446744073709552000 entries/],
  [
    'data beyond the end',
    (c) => c.setUint32(FIRST + 8, 8191, true),
    /entry 0 of log, at 512: its 4193792 bytes of data/,
  ],
  ['2^60 blocks', (c) => c.setBigUint64(FIRST + 8, 2n ** 60n, true), /entry 0 of log, at 512/],
  ['2^64 - 1 blocks', (c) => c.setBigUint64(FIRST + 8, 2n ** 64n - 1n, true), /entry 0 of log, at 512/],
  ['a place at 2^64 - 1', (c) => c.setBigUint64(FIRST, 2n ** 64n - 1n, true), /entry 0 of log, at 512/],
  ['unknown flags', (c) => c.setUint32(FIRST + 16, 64, true), /flags 64 are not known/],
  ['text of 4 GiB', (c) => c.setUint32(FIRST + 28, 1, true), /4294967296 bytes of text/],
])('a log with %s is refused, and the disk stays as it was', async (_, change, message) => {
  const target = disk(8192);
  const attempt = (async () => replay(await LogReader.open(await damaged(change)), target))();
  await expect(attempt).rejects.toMatchObject({ code: 'WRITE_LOG_CORRUPT', message: expect.stringMatching(message) });
  expect(changes(target)).toEqual([]);
});

test('a log that was cut off is refused at the entry where it ends', async () => {
  const log = await damaged(() => {}, 30);
  const reader = await LogReader.open(log);
  await expect(replay(reader, disk(8192))).rejects.toThrow(
    /entry 7 of log, at \d+: its 3146240 bytes of data go beyond/,
  );
});

test('nothing, or something else, is no log', async () => {
  for (const device of [disk(0), disk(1), disk(100)])
    await expect(LogReader.open(device)).rejects.toMatchObject({ code: 'WRITE_LOG_MAGIC' });
});

test('whatever bytes a log holds, it is read to its end or refused', async () => {
  for (let seed = 1; seed <= 150; seed++) {
    const random = prng(seed);
    const log = await damaged((content) => {
      const structures = [16, 24, ...SAMPLE.map((_, index) => FIRST + index * 512)];
      for (let count = 1 + random.below(4); count > 0; count--) {
        const at = random.pick(structures) + random.below(logEntry.size);
        content.setUint8(at, random.pick([0, 1, 255, random.below(256)]));
      }
    }, 1024);
    const target = disk(512);
    try {
      await replay(await LogReader.open(log), target);
    } catch (error) {
      expect(error).toMatchObject({ code: expect.stringMatching(/^WRITE_LOG_/) });
      expect(changes(target)).toEqual([]);
    }
  }
});
