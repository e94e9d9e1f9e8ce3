import { expect, test } from 'vitest';
import type { BlockDevice } from '../device/block-device.ts';
import { MemoryDevice } from '../device/memory.ts';
import { logEntry } from '../formats/log-writes.ts';
import { prng } from '../lib/prng.ts';
import { LogReader } from '../stores/log-writes/log-reader.ts';
import { replay } from '../stores/log-writes/replay.ts';
import { ScriptedDevice } from '../testing/scripted-device.ts';
import { targetSuite } from '../testing/target-suite.ts';
import { bytes, SECTOR, sector } from '../units.ts';
import { logWrites } from './log-writes.ts';

targetSuite(test, {
  type: logWrites,
  sectors: 100,
  args: (disks) => `${disks[0]} ${disks[1]}`,
  disks: 2,
  flushedDisks: 1,
  diskSectors: 65_536,
  data: 'keep',
  refused: [
    { args: '', text: 'Invalid argument count' },
    { args: '1:0', text: 'Invalid argument count' },
    { args: '1:7 1:1', text: 'Device lookup failed: Cannot open 1:7: no such disk' },
    { args: '1:0 1:0', text: 'Log device cannot be the same as the device' },
    { args: '1:0 1:7', text: 'Log device lookup failed: Cannot open 1:7: no such disk' },
  ],
});

async function make({ device = disk(0), log = disk(1), start = 0 } = {}) {
  const target = await logWrites.create({
    start: sector(start),
    length: sector(1024),
    args: ['1:0', '1:1', 'more', 'words'],
    readOnly: false,
    open: async (word) => (word === '1:0' ? device : log),
    event: () => {},
    owner: new MemoryDevice(0),
    enlarge: () => false,
  });
  target.resume!();
  const status = () => target.status('info');
  const write = (at: number, letter: string, sectors = 8) =>
    target.write(bytes(at * SECTOR), Buffer.alloc(sectors * SECTOR, letter), 0, sectors * SECTOR);
  return { target, device, log, status, write };
}

const disk = (index: number, sectors = 4096, blockSize = SECTOR) =>
  new ScriptedDevice(new MemoryDevice(sectors * SECTOR, { name: `1:${index}`, blockSize }));

async function readBytes(device: BlockDevice, at: number, length: number): Promise<Buffer> {
  const found = Buffer.alloc(length);
  await device.read(bytes(at), found, 0, length);
  return found;
}

/** `at+length flags text` of each entry, as many as the super block counts, with the first letter of the data. */
async function entries(log: BlockDevice, blockSize = SECTOR): Promise<string[]> {
  const content = await readBytes(log, 0, log.size);
  expect(content.subarray(0, 16).toString('hex')).toBe('7268737766736a000100000000000000');
  expect(content.readUInt32LE(24)).toBe(blockSize);
  const found: string[] = [];
  let at = blockSize;
  for (let index = 0; index < content.readUInt32LE(16); index++) {
    const view = new DataView(content.buffer, content.byteOffset + at, blockSize);
    const { sector, nrSectors, flags, dataLen } = logEntry.get(view, 0);
    const text = content.toString('latin1', at + 32, at + 32 + dataLen);
    at += blockSize;
    const letter = nrSectors > 0 && flags === 0 ? String.fromCharCode(content[at] || 48) : '';
    found.push(`${sector}+${nrSectors} ${flags} ${text}${letter}`.trim());
    if (flags !== 4) at += nrSectors * blockSize;
  }
  return found;
}

const settle = async (operation: () => unknown) => operation();

test('prints both devices, and nothing to measure', async () => {
  const { target } = await make();
  expect(target.status('table')).toBe('1:0 1:1');
  expect(target.status('info')).toBe('0 0');
  expect(target.status('measure')).toBe('');
});

test('a log, entry by entry', async () => {
  const { target, log, status, write } = await make();
  expect(write(0, 'a')).toBeUndefined();
  expect(status()).toBe('0 0');
  expect(target.flush()).toBeUndefined();
  expect(status()).toBe('2 10');
  expect(await target.message!(['MARK', 'm1'])).toBe('');
  expect(status()).toBe('3 11');
  write(8, 'b');
  target.flush();
  expect(status()).toBe('5 21');
  target.discard(bytes(16 * SECTOR), 8 * SECTOR);
  expect(status()).toBe('5 21');
  target.flush();
  expect(status()).toBe('7 23');
  await target.close();
  expect(await entries(log)).toEqual([
    '0+8 0 a',
    '0+0 1',
    '0+0 8 m1',
    '8+8 0 b',
    '0+0 1',
    '16+8 4',
    '0+0 1',
    '0+0 8 dm-log-writes-end',
  ]);
});

test('the sector is that of the mapped device, whatever the start of the target', async () => {
  const { target, device, log, write } = await make({ start: 1024 });
  write(8, 'x');
  target.flush();
  expect((await readBytes(device, 1032 * SECTOR, 1)).toString()).toBe('x');
  expect(await entries(log)).toEqual(['1032+8 0 x', '0+0 1']);
});

test('writes are logged in the order of completion; a flush takes what had completed when it was issued', async () => {
  const device = disk(0);
  device.hold = () => true;
  const { target, log, status, write } = await make({ device });
  const [a, b] = [write(0, 'a'), write(0, 'b')];
  device.go(1);
  await b;
  const flush = target.flush();
  device.go(0);
  await a;
  expect(status()).toBe('0 0');
  device.go(0);
  await flush;
  expect(status()).toBe('2 10');
  device.go();
  await target.flush();
  expect(await entries(log)).toEqual(['0+8 0 b', '0+0 1', '0+8 0 a', '0+0 1']);
});

test('two flushes that overlap keep the order of the writes', async () => {
  const device = disk(0);
  device.hold = (operation) => operation === 'flush';
  const { target, log, write } = await make({ device });
  write(0, 'a');
  const first = target.flush();
  write(0, 'b');
  const second = target.flush();
  device.go(1);
  await second;
  expect(await entries(log)).toEqual(['0+8 0 a', '0+8 0 b', '0+0 1']);
  device.go();
  await first;
  expect(await entries(log)).toEqual(['0+8 0 a', '0+8 0 b', '0+0 1', '0+0 1']);
});

test('what failed is not logged, and what a failed flush left stays for the next', async () => {
  const device = disk(0);
  const { target, log, write } = await make({ device });
  write(0, 'a');
  device.fault = () => 'EIO';
  for (const request of [
    () => write(8, 'x'),
    () => target.flush(),
    () => target.discard(bytes(0), SECTOR),
    () => target.writeZeroes(bytes(0), SECTOR, true),
  ])
    await expect(settle(request)).rejects.toMatchObject({ errno: 'EIO' });
  device.fault = undefined;
  expect(target.status('info')).toBe('0 0');
  target.flush();
  expect(await entries(log)).toEqual(['0+8 0 a', '0+0 1']);
});

test('zeroes are logged as writes of zeroes, in pieces of 1 MiB, over what the log device held before', async () => {
  const log = disk(1, 32_768);
  log.disk.write(bytes(0), Buffer.alloc(32_768 * SECTOR, 0xee), 0, 32_768 * SECTOR);
  const { target, status } = await make({ device: disk(0, 8192), log });
  await target.writeZeroes(bytes(8 * SECTOR), 5000 * SECTOR, true);
  await target.flush();
  expect(status()).toBe('4 5004');
  await target.message!(['mark', 'done']);
  expect(await entries(log)).toEqual(['8+2048 0 0', '2056+2048 0 0', '4104+904 0 0', '0+0 1', '0+0 8 done']);
  const data = await readBytes(log, 2 * SECTOR, 2048 * SECTOR);
  expect(data.every((byte) => byte === 0)).toBe(true);
});

test('a discard that the device cannot do is logged, and succeeds', async () => {
  const device = disk(0);
  (device.disk as MemoryDevice).canDiscard = false;
  const { target, log } = await make({ device });
  expect(target.canDiscard).toBe(true);
  target.discard(bytes(0), 8 * SECTOR);
  target.flush();
  expect(device.log).toEqual(['F']);
  expect(await entries(log)).toEqual(['0+8 4', '0+0 1']);
});

test('a full log switches logging off; I/O goes on, and the entries that fit can be read', async () => {
  const { target, log, status, write } = await make({ log: disk(1, 20) });
  for (const letter of ['a', 'b', 'c']) {
    write(0, letter);
    target.flush();
  }
  // The entry that did not fit moves the end all the same, as the kernel's does.
  expect(status()).toBe('2 19 logging_disabled');
  write(0, 'd');
  target.flush();
  await target.message!(['mark', 'm']);
  await target.close();
  expect(status()).toBe('2 19 logging_disabled');
  expect(await entries(log)).toEqual(['0+8 0 a', '0+0 1']);
});

test('an entry that would end with the log device is refused, as by the kernel', async () => {
  const { target, status, write } = await make({ log: disk(1, 11) });
  write(0, 'a');
  target.flush();
  expect(status()).toBe('1 10 logging_disabled');
});

test('of a batch that does not fit, the entries that do are logged and counted', async () => {
  const { target, log, status, write } = await make({ log: disk(1, 24) });
  for (const letter of ['a', 'b', 'c', 'd']) write(0, letter);
  target.flush();
  expect(status()).toBe('2 27 logging_disabled');
  await target.close();
  expect(await entries(log)).toEqual(['0+8 0 a', '0+8 0 b']);
});

test('a log device that fails switches logging off; I/O goes on', async () => {
  const log = disk(1);
  log.fault = (operation) => (operation === 'write' ? 'EIO' : undefined);
  const { target, device, status, write } = await make({ log });
  write(0, 'a');
  expect(target.flush()).toBeUndefined();
  expect(status()).toBe('2 10 logging_disabled');
  write(0, 'b');
  target.flush();
  expect((await readBytes(device, 0, 1)).toString()).toBe('b');
  await target.message!(['mark', 'lost']);
  await target.close();
});

test('a mark is cut to what its block holds', async () => {
  const { target, log } = await make();
  await target.message!(['mark', 'x'.repeat(2000)]);
  expect(await entries(log)).toEqual([`0+0 8 ${'x'.repeat(512 - 32 - 1)}`]);
});

test.each([[['mark']], [['mark', 'a', 'b']], [['note', 'a']], [[]]])('refuses the message %j', async (words) => {
  const { target } = await make();
  await expect(target.message!(words)).rejects.toMatchObject({ code: 'MESSAGE_INVALID', errno: 'EINVAL' });
});

test('a table that was never live leaves the log device as it is', async () => {
  const log = disk(1);
  const target = await logWrites.create({
    start: sector(0),
    length: sector(1024),
    args: ['1:0', '1:1'],
    readOnly: false,
    open: async (word) => (word === '1:0' ? disk(0) : log),
    event: () => {},
    owner: new MemoryDevice(0),
    enlarge: () => false,
  });
  await target.close();
  expect(log.log).toEqual([]);
});

test('a suspend keeps the log going, and its own flush is not in it', async () => {
  const { target, log, write } = await make();
  write(0, 'a');
  target.presuspend!();
  target.flush();
  target.resume!();
  write(8, 'b');
  target.flush();
  expect(await entries(log)).toEqual(['0+8 0 a', '8+8 0 b', '0+0 1']);
});

test('on a device of 4096-byte blocks the log is in such blocks, and a part of one is logged whole', async () => {
  const { target, log, write, status } = await make({ device: disk(0, 4096, 4096), log: disk(1, 4096) });
  write(0, 'a', 8);
  await write(3, 'b', 1);
  await write(9, 'c', 10);
  target.flush();
  expect(status()).toBe('4 71');
  await target.message!(['mark', 'm']);
  expect(await entries(log, 4096)).toEqual(['0+1 0 a', '0+1 0 a', '1+2 0 0', '0+0 1', '0+0 8 m']);
  const block = await readBytes(log, 4 * 4096, 4096);
  expect([0, 1536, 2047, 2048].map((at) => String.fromCharCode(block[at]))).toEqual(['a', 'b', 'b', 'a']);
});

test('64 clients at once: the log leads to the same content', async () => {
  const device = disk(0);
  const { target, log } = await make({ device, log: disk(1, 65_536) });
  device.later = true;
  log.later = true;
  await Promise.all(
    Array.from({ length: 64 }, async (_, client) => {
      for (let round = 0; round < 12; round++) {
        const at = (client * 7 + round * 13) % 1000;
        await target.write(bytes(at * SECTOR), Buffer.alloc(8 * SECTOR, 1 + ((client + round) % 250)), 0, 8 * SECTOR);
        if (round % 4 === 3) await target.flush();
      }
    }),
  );
  await target.flush();
  await target.close();
  log.later = false;
  device.later = false;
  const content = await readBytes(log, 0, log.size);
  const replayed = Buffer.alloc(device.size);
  let at = SECTOR;
  let writes = 0;
  for (let index = 0; index < content.readUInt32LE(16); index++) {
    const from = content.readUInt32LE(at) * SECTOR;
    const length = content.readUInt32LE(at + 8) * SECTOR;
    content.copy(replayed, from, at + SECTOR, at + SECTOR + length);
    at += SECTOR + length;
    if (length > 0) writes++;
  }
  expect(writes).toBe(64 * 12);
  expect(replayed.equals(await readBytes(device, 0, device.size))).toBe(true);
});

test('what a write brought is kept as it was, although its buffer is used again', async () => {
  const { target, log } = await make();
  const buffer = Buffer.alloc(8 * SECTOR);
  for (const [index, letter] of ['a', 'b'].entries()) {
    buffer.fill(letter);
    target.write(bytes(8 * index * SECTOR), buffer, 0, buffer.length);
  }
  target.flush();
  expect(await entries(log)).toEqual(['0+8 0 a', '8+8 0 b', '0+0 1']);
});

/** A power cut at a flush that was acknowledged: everything that had completed when it was issued is there. */
test('replayed to each flush, the disk is what had completed when the flush was issued', async () => {
  for (let seed = 1; seed <= 20; seed++) {
    const random = prng(seed);
    const device = disk(0);
    const { target, log } = await make({ device, log: disk(1, 65_536) });
    device.later = seed % 2 === 0;
    log.later = seed % 3 === 0;
    // In the order of completion, which is that of arrival on disks that all answer in the next turn.
    const content = Buffer.alloc(64 * SECTOR);
    const states: Buffer[] = [];
    const client = async (letter: number) => {
      for (let step = 0; step < 20; step++) {
        const at = random.below(60);
        const length = (1 + random.below(4)) * SECTOR;
        if (random.chance(0.2)) {
          await target.writeZeroes(bytes(at * SECTOR), length, true);
          content.fill(0, at * SECTOR, at * SECTOR + length);
        } else {
          const data = Buffer.alloc(length, letter + step);
          await target.write(bytes(at * SECTOR), data, 0, length);
          data.copy(content, at * SECTOR);
        }
      }
    };
    let running = true;
    const flusher = async () => {
      while (running) {
        const state = Buffer.from(content);
        await target.flush();
        states.push(state);
        await new Promise((resolve) => setImmediate(resolve));
      }
    };
    const flushing = flusher();
    await Promise.all(Array.from({ length: 8 }, (_, index) => client(1 + index * 20)));
    running = false;
    await flushing;
    await target.close();
    log.later = false;
    const reader = await LogReader.open(log);
    const copy = disk(2);
    for (const [index, state] of states.entries()) {
      const { atFlush } = await replay(reader, copy, { toFlush: true });
      expect(atFlush).toBe(true);
      expect((await readBytes(copy, 0, state.length)).equals(state), `seed ${seed}, flush ${index}`).toBe(true);
    }
  }
});
