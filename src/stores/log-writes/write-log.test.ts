import { expect, test } from 'vitest';
import { MemoryDevice } from '../../device/memory.ts';
import { prng } from '../../lib/prng.ts';
import { ScriptedDevice } from '../../testing/scripted-device.ts';
import { SECTOR } from '../../units.ts';
import { LogReader } from './log-reader.ts';
import { WriteLog } from './write-log.ts';

const MIB = 2 ** 20;
const logDevice = (size = 64 * MIB) => new ScriptedDevice(new MemoryDevice(size, { name: 'log' }));
const data = (letter: string, length = 4096) => Buffer.alloc(length, letter);

/** `letter at/length`, `flush`, … of every entry. */
async function list(device: ScriptedDevice): Promise<string[]> {
  device.later = false;
  device.hold = undefined;
  const reader = await LogReader.open(device);
  const found: string[] = [];
  for (let entry = await reader.next(); entry; entry = await reader.next()) {
    const { kind, at, length, mark, dataAt } = entry;
    const first = Buffer.alloc(SECTOR);
    if (kind === 'write') device.read(dataAt, first, 0, SECTOR);
    found.push(kind === 'write' ? `${first.toString('latin1', 0, 1)} ${at}/${length}` : (mark ?? kind));
  }
  return found;
}

test('keeps no more than it may: the older half is logged, in order, without a flush', async () => {
  const device = logDevice();
  const log = new WriteLog(device, SECTOR, { keptMax: 20_000 });
  for (const letter of 'abcd') expect(log.wrote(0, data(letter), 0, 4096)).toBeUndefined();
  expect(log.entries).toBe(0);
  const { completed } = log;
  log.wrote(0, data('e'), 0, 4096);
  expect(log.entries).toBe(3);
  expect(log.heldBytes).toBeLessThan(20_000);
  log.flushed(completed);
  await log.mark('m');
  expect(await list(device)).toEqual(['a 0/4096', 'b 0/4096', 'c 0/4096', 'd 0/4096', 'flush', 'm']);
  await log.end();
  expect((await list(device)).slice(5)).toEqual(['m', 'e 0/4096', 'dm-log-writes-end']);
});

test('requests wait while the log device is behind, and go on when it has caught up', async () => {
  const device = logDevice();
  device.hold = () => true;
  const log = new WriteLog(device, SECTOR, { keptMax: 10_000, heldMax: 50_000 });
  const waits: (void | Promise<void>)[] = [];
  while (!waits.at(-1)) waits.push(log.wrote(0, data('x'), 0, 4096));
  expect(log.heldBytes).toBeLessThan(60_000);
  let released = false;
  const last = waits.at(-1)!.then(() => (released = true));
  await new Promise((resolve) => setImmediate(resolve));
  expect(released).toBe(false);
  device.go();
  await last;
  expect(log.heldBytes).toBeLessThanOrEqual(50_000);
});

test('requests that wait for a log device are released when it fails', async () => {
  const device = logDevice();
  device.hold = () => true;
  const log = new WriteLog(device, SECTOR, { keptMax: 0, heldMax: 0 });
  const wait = log.wrote(0, data('x'), 0, 4096);
  expect(wait).toBeInstanceOf(Promise);
  const mark = log.mark('m');
  device.fault = () => 'EIO';
  device.go();
  await Promise.all([wait, mark]);
  expect(log.enabled).toBe(false);
  expect(log.heldBytes).toBe(0);
});

test('a mark is in the log when it was sent, even while others go on writing', async () => {
  const device = logDevice();
  device.hold = () => true;
  const log = new WriteLog(device, SECTOR, { keptMax: 0 });
  const write = () => log.wrote(0, data('x'), 0, 4096);
  const next = async () => {
    await device.held(1);
    device.go(0);
  };
  write();
  const mark = log.mark('here');
  await next();
  await device.held(1);
  write();
  // The mark, then the super block that counts it.
  await next();
  await next();
  await mark;
  await device.held(1);
  expect(await list(device)).toEqual(['x 0/4096', 'here']);
});

test('writes of any size, zeroes and discards come out as they went in', async () => {
  for (const seed of [1, 2, 3, 4, 5, 6]) {
    const random = prng(seed);
    const device = logDevice(256 * MIB);
    device.later = random.chance(0.5);
    const log = new WriteLog(device, SECTOR, { keptMax: random.pick([0, 100_000, 10 * MIB]) });
    const expected: string[] = [];
    for (let step = 0; step < 60; step++) {
      const at = random.below(1000) * SECTOR;
      const length = (1 + random.below(random.pick([4, 100, 5000]))) * SECTOR;
      const letter = String.fromCharCode(97 + random.below(26));
      switch (random.below(8)) {
        case 0:
          await log.discarded(at, length);
          expected.push('discard');
          break;
        case 1:
          await log.zeroed(at, length);
          for (let done = 0; done < length; done += MIB)
            expected.push(`\0 ${at + done}/${Math.min(MIB, length - done)}`);
          break;
        case 2:
          log.flushed(log.completed);
          expected.push('flush');
          break;
        default:
          await log.wrote(at, Buffer.concat([data('-', 3), data(letter, length)]), 3, length);
          expected.push(`${letter} ${at}/${length}`);
      }
    }
    await log.end();
    expect(await list(device)).toEqual([...expected, 'dm-log-writes-end']);
    expect(log.heldBytes).toBe(0);
  }
});

test('a log that becomes full has in its super block what it holds', async () => {
  for (const size of [2, 3, 10, 11, 12, 19, 20, 21, 30]) {
    const device = logDevice(size * SECTOR);
    const log = new WriteLog(device, SECTOR);
    for (const letter of 'abcd') log.wrote(0, data(letter), 0, 4096);
    log.flushed(log.completed);
    await log.end();
    const fitting = Math.max(0, Math.floor((size - 2) / 9));
    expect(log.enabled).toBe(false);
    expect(log.entries).toBe(fitting);
    expect(await list(device)).toEqual([...'abcd'].slice(0, fitting).map((letter) => `${letter} 0/4096`));
    expect(log.heldBytes).toBe(0);
  }
});
