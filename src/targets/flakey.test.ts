import { expect, test } from 'vitest';
import type { BlockDevice } from '../device/block-device.ts';
import { MemoryDevice } from '../device/memory.ts';
import { FakeClock } from '../testing/fake-clock.ts';
import { ScriptedDevice } from '../testing/scripted-device.ts';
import { targetSuite } from '../testing/target-suite.ts';
import { bytes, SECTOR, sector } from '../units.ts';
import { flakey, flakeyType } from './flakey.ts';

const refusals: Record<string, string> = {
  '': 'Invalid argument count',
  '1:0 0 1': 'Invalid argument count',
  '1:0 x 1 1': 'Invalid device sector',
  '1:0 0 up 1': 'Invalid up interval',
  '1:0 0 4294967296 1': 'Invalid up interval',
  '1:0 0 1 -1': 'Invalid down interval',
  '1:0 0 0 0': 'Total (up + down) interval is zero',
  '1:0 0 4294967295 1': 'Total (up + down) interval is zero',
  '1:0 0 4294967295 2': 'Interval overflow',
  '1:0 0 1 1 7': 'Invalid number of feature args',
  '1:0 0 1 1 two': 'Invalid number of feature args',
  '1:0 0 1 1 1': 'Invalid number of feature args',
  '1:0 0 1 1 2 drop_writes drop_writes': 'Feature drop_writes duplicated',
  '1:0 0 1 1 2 error_writes ERROR_WRITES': 'Feature error_writes duplicated',
  '1:0 0 1 1 2 drop_writes error_writes': 'Feature error_writes conflicts with feature drop_writes',
  '1:0 0 1 1 2 error_writes drop_writes': 'Feature drop_writes conflicts with feature error_writes',
  '1:0 0 1 1 1 corrupt_bio_byte': 'Feature corrupt_bio_byte requires parameters',
  '1:0 0 1 1 1 corrupt_bio_byte 1 r 1 0': 'Feature corrupt_bio_byte requires parameters',
  '1:0 0 1 1 2 corrupt_bio_byte 1 r 1 0': 'Insufficient feature arguments',
  '1:0 0 1 1 5 corrupt_bio_byte 0 r 1 0': 'Invalid corrupt bio byte',
  '1:0 0 1 1 5 corrupt_bio_byte 1 x 1 0': 'Invalid corrupt bio direction (r or w)',
  '1:0 0 1 1 2 corrupt_bio_byte 1': 'Invalid corrupt bio direction (r or w)',
  '1:0 0 1 1 5 corrupt_bio_byte 1 r 256 0': 'Invalid corrupt value to write into bio byte (0-255)',
  '1:0 0 1 1 5 corrupt_bio_byte 1 r 1 x': 'Invalid corrupt bio flags mask',
  '1:0 0 1 1 1 error_reads': 'Unrecognised flakey feature requested',
  '1:0 0 1 1 6 drop_writes corrupt_bio_byte 1 w 1 0':
    'drop_writes is incompatible with corrupt_bio_byte with the WRITE flag set',
  '1:0 0 1 1 6 corrupt_bio_byte 1 w 1 0 error_writes':
    'error_writes is incompatible with corrupt_bio_byte with the WRITE flag set',
  '1:7 0 1 1': 'Device lookup failed: Cannot open 1:7: no such disk',
};

const alwaysUp = { type: flakey, sectors: 100, disks: 1, diskSectors: 128, data: 'keep' } as const;
targetSuite(test, {
  ...alwaysUp,
  args: ([disk]) => `${disk} 28 180 0`,
  refused: Object.entries(refusals).map(([args, text]) => ({ args, text })),
});
targetSuite((name, run) => test(`never down, with features: ${name}`, run), {
  ...alwaysUp,
  args: ([disk]) => `${disk} 28 1 0 6 drop_writes corrupt_bio_byte 1 r 1 0`,
  refused: [],
});
targetSuite((name, run) => test(`down, and nothing matches: ${name}`, run), {
  ...alwaysUp,
  args: ([disk]) => `${disk} 28 0 1 5 corrupt_bio_byte 1 w 1 2048`,
  refused: [],
});

async function make(words: string, below: BlockDevice = new MemoryDevice(128 * SECTOR, { name: '1:0' })) {
  const clock = new FakeClock();
  const target = await flakeyType(clock).create({
    start: sector(0),
    length: sector(64),
    args: `1:0 0 ${words}`.split(' '),
    readOnly: false,
    open: async () => below,
    event: () => {},
    owner: new MemoryDevice(0),
    enlarge: () => false,
  });
  return { clock, target, below };
}

const text = (letters: string) => Buffer.from(letters.padEnd(SECTOR, '.'));
const START = bytes(0);

function show(device: Pick<BlockDevice, 'read'>, letters = 6): string {
  const into = Buffer.alloc(SECTOR);
  expect(device.read(START, into, 0, SECTOR)).toBeUndefined();
  return into.toString('latin1', 0, letters);
}

test.each([
  ['0 5', '0 5 0 '],
  ['0 5 0', '0 5 0 '],
  ['0 5 1 DROP_writes', '0 5 1 drop_writes '],
  ['0 5 1 error_writes ignored words', '0 5 1 error_writes '],
  ['+3 +1000 5 corrupt_bio_byte 3 W 66 0', '3 1000 5 corrupt_bio_byte 3 w 66 0 '],
  ['0 5 6 corrupt_bio_byte 1 r 0 2048 error_writes', '0 5 6 error_writes corrupt_bio_byte 1 r 0 2048 '],
])('the table of "%s" ends in a blank; status and measure are empty', async (words, printed) => {
  const { target } = await make(words);
  expect(target.status('table')).toBe(`1:0 0 ${printed}`);
  expect(target.status('info')).toBe('');
  expect(target.status('measure')).toBe('');
});

test('works for some whole seconds, then does not, in turn, from the moment it was loaded', async () => {
  const { target, clock } = await make('2 3');
  const states: boolean[] = [];
  for (let second = 0; second < 10; second++) {
    for (const ms of [1, 998, 1]) {
      let works = true;
      try {
        target.read(START, Buffer.alloc(SECTOR), 0, SECTOR);
      } catch {
        works = false;
      }
      states.push(works);
      clock.pass(ms);
    }
  }
  expect(states.map(Number).join('').match(/.{3}/g)).toEqual(
    [1, 1, 0, 0, 0, 1, 1, 0, 0, 0].map((up) => (up ? '111' : '000')),
  );
});

test('down without features, everything fails, and nothing reaches the device', async () => {
  const { target, below } = await make('0 1000', new ScriptedDevice(new MemoryDevice(128 * SECTOR)));
  const requests = [
    () => target.read(START, Buffer.alloc(SECTOR), 0, SECTOR),
    () => target.write(START, text('x'), 0, SECTOR),
    () => target.flush(),
    () => target.discard(START, SECTOR),
    () => target.writeZeroes(START, SECTOR, true),
    () => target.extents(START, SECTOR),
  ];
  for (const request of requests) expect(request).toThrow(expect.objectContaining({ errno: 'EIO' }));
  expect((below as ScriptedDevice).log).toEqual([]);
});

test('drop_writes: whatever would change the device succeeds and does nothing', async () => {
  const below = new ScriptedDevice(new MemoryDevice(128 * SECTOR));
  below.write(START, text('before'), 0, SECTOR);
  below.takeLog();
  const { target } = await make('0 1000 1 drop_writes', below);
  target.write(START, text('after!'), 0, SECTOR);
  target.discard(START, SECTOR);
  target.writeZeroes(START, SECTOR, true);
  target.flush();
  expect(below.log).toEqual([]);
  expect(show(target)).toBe('before');
});

test('error_writes: whatever would change the device fails; reads work', async () => {
  const { target, below } = await make('0 1000 1 error_writes');
  below.write(START, text('before'), 0, SECTOR);
  const requests = [
    () => target.write(START, text('after!'), 0, SECTOR),
    () => target.discard(START, SECTOR),
    () => target.writeZeroes(START, SECTOR, true),
    () => target.flush(),
  ];
  for (const request of requests) expect(request).toThrow(expect.objectContaining({ errno: 'EIO' }));
  expect(show(target)).toBe('before');
  expect(show(below)).toBe('before');
});

test('corrupt_bio_byte r changes what is read, not the device; writes pass', async () => {
  const { target, below } = await make('0 1000 5 corrupt_bio_byte 3 r 65 0');
  target.write(START, text('abcdef'), 0, SECTOR);
  expect(show(target)).toBe('abAdef');
  expect(show(below)).toBe('abcdef');
  const into = Buffer.alloc(SECTOR + 10);
  target.read(START, into, 10, SECTOR);
  expect(into.toString('latin1', 10, 16)).toBe('abAdef');
});

test('corrupt_bio_byte w changes what is written, on a copy; reads pass', async () => {
  const { target, below } = await make('0 1000 5 corrupt_bio_byte 3 w 66 0');
  const data = Buffer.concat([Buffer.from('--'), text('abcdef')]);
  target.write(START, data, 2, SECTOR);
  expect(data.toString('latin1', 0, 8)).toBe('--abcdef');
  expect(show(below)).toBe('abBdef');
  expect(show(target)).toBe('abBdef');
});

test('a request shorter than the byte to corrupt is left alone', async () => {
  for (const direction of ['r', 'w']) {
    const { target, below } = await make(`0 1000 5 corrupt_bio_byte 513 ${direction} 66 0`);
    target.write(START, text('abcdef'), 0, SECTOR);
    expect(show(target, SECTOR)).toBe(text('abcdef').toString());
    expect(show(below, SECTOR)).toBe(text('abcdef').toString());
    const two = Buffer.alloc(2 * SECTOR);
    target.write(START, two, 0, two.length);
    target.read(START, two, 0, two.length);
    expect(two[512]).toBe(66);
  }
});

test('a mask of request flags matches only what every request has', async () => {
  for (const [flags, expected] of [
    [0, 'abBdef'],
    [1, 'abBdef'],
    [2048, 'abcdef'],
    [4294967295, 'abcdef'],
  ]) {
    const { target, below } = await make(`0 1000 5 corrupt_bio_byte 3 w 66 ${flags}`);
    target.write(START, text('abcdef'), 0, SECTOR);
    expect(show(below)).toBe(expected);
  }
});

test('corrupts a read that began while it was down, when the data arrives', async () => {
  const below = new ScriptedDevice(new MemoryDevice(128 * SECTOR));
  below.write(START, text('abcdef'), 0, SECTOR);
  below.later = true;
  const { target, clock } = await make('1 1 5 corrupt_bio_byte 3 r 65 0', below);
  const [up, down] = [Buffer.alloc(SECTOR), Buffer.alloc(SECTOR)];
  const first = target.read(START, up, 0, SECTOR);
  clock.pass(1000);
  const second = target.read(START, down, 0, SECTOR);
  clock.pass(1000);
  await Promise.all([first, second]);
  expect([up, down].map((data) => data.toString('latin1', 0, 6))).toEqual(['abcdef', 'abAdef']);
});

test('while reads are corrupted no extent reads as zeroes for sure', async () => {
  const { target, clock } = await make('1 1 5 corrupt_bio_byte 3 r 65 0');
  expect(target.extents(START, SECTOR)).toEqual([{ length: SECTOR, hole: true, zero: true }]);
  clock.pass(1000);
  expect(target.extents(START, SECTOR)).toEqual([{ length: SECTOR, hole: false, zero: false }]);
});

test('a device that is down can be suspended; afterwards flushes fail again', async () => {
  const { target } = await make('0 1000');
  target.presuspend!();
  expect(target.flush()).toBeUndefined();
  target.resume!();
  expect(() => target.flush()).toThrow(expect.objectContaining({ errno: 'EIO' }));
  target.presuspend!();
  target.presuspendUndo!();
  expect(() => target.flush()).toThrow(expect.objectContaining({ errno: 'EIO' }));
});
