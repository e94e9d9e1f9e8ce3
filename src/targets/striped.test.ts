import { expect, test } from 'vitest';
import type { BlockDevice } from '../device/block-device.ts';
import { MemoryDevice } from '../device/memory.ts';
import { DmError } from '../errors.ts';
import { FailingDevice } from '../testing/failing-device.ts';
import { SlowDevice } from '../testing/slow-device.ts';
import { targetSuite } from '../testing/target-suite.ts';
import { bytes, SECTOR, sector } from '../units.ts';
import { striped } from './striped.ts';
import type { Target } from './target.ts';

const refused = [
  { args: '', text: 'Not enough arguments' },
  { args: '2', text: 'Not enough arguments' },
  { args: '0 8', text: 'Invalid stripe count' },
  { args: 'two 8', text: 'Invalid stripe count' },
  { args: '2 0', text: 'Invalid chunk_size' },
  { args: '2 4294967296', text: 'Invalid chunk_size' },
  { args: '7 8', sectors: 96, text: 'Target length not divisible by number of stripes' },
  { args: '2 7', sectors: 96, text: 'Target length not divisible by chunk size' },
  { args: '2 8 1:0 0', sectors: 96, text: 'Not enough destinations specified' },
  { args: '2 8 1:0 0 1:1 0 1:2 0', sectors: 96, text: 'Not enough destinations specified' },
  { args: '2 8 1:0 0 1:1 x', sectors: 96, text: "Couldn't parse stripe destination" },
  { args: '2 8 1:0 0 1:9 0', sectors: 96, text: "Couldn't parse stripe destination: Cannot open 1:9" },
];

targetSuite(test, {
  type: striped,
  sectors: 96,
  args: (disks) => `3 4 ${disks[0]} 0 ${disks[1]} 16 ${disks[2]} 32`,
  disks: 3,
  diskSectors: 64,
  data: 'keep',
  refused,
});
targetSuite((name, run) => test(`one stripe: ${name}`, run), {
  type: striped,
  sectors: 96,
  args: (disks) => `1 12 ${disks[0]} 3`,
  disks: 1,
  diskSectors: 128,
  data: 'keep',
  refused: [],
});
targetSuite((name, run) => test(`large chunks: ${name}`, run), {
  type: striped,
  sectors: 1000,
  args: (disks) => `2 125 ${disks[0]} 1 ${disks[1]} 2`,
  disks: 2,
  diskSectors: 512,
  data: 'keep',
  refused: [],
});

async function make(disks: BlockDevice[], args: string, length: number, event = () => {}): Promise<Target> {
  return striped.create({
    start: sector(0),
    length: sector(length),
    args: args.split(' '),
    readOnly: false,
    open: async (word) => disks[Number(word.slice(2))],
    event,
    owner: new MemoryDevice(0),
    enlarge: () => false,
  });
}

const memory = (index: number, sectors = 512) => new MemoryDevice(sectors * SECTOR, { name: `1:${index}` });

test('texts of table, status and measure', async () => {
  const target = await make([memory(0), memory(1)], '2 8 1:0 0 1:1 16', 96);
  expect(target.status('table')).toBe('2 8 1:0 0 1:1 16');
  expect(target.status('info')).toBe('2 1:0 1:1 1 AA');
  expect(target.status('measure')).toBe(
    'target_name=striped,target_version=1.6.0,stripes=2,chunk_size=8' +
      ',stripe_0_device_name=1:0,stripe_0_physical_start=0,stripe_0_status=A' +
      ',stripe_1_device_name=1:1,stripe_1_physical_start=16,stripe_1_status=A;',
  );
  expect(target.hints).toEqual({ minimumIo: 4096, optimalIo: 8192 });
});

test('a request of many small chunks is one request for each stripe', async () => {
  const disks = [0, 1, 2].map((index) => new SlowDevice(memory(index)));
  const target = await make(disks, '3 8 1:0 0 1:1 0 1:2 0', 480);
  const data = new Uint8Array(400 * SECTOR).map((_, i) => i / SECTOR);
  await target.write(bytes(4 * SECTOR), data, 0, data.length);
  const found = new Uint8Array(data.length);
  await target.read(bytes(4 * SECTOR), found, 0, found.length);
  expect(found).toEqual(data);
  expect(disks.map(({ seen }) => seen.map(({ operation }) => operation))).toEqual(Array(3).fill(['write', 'read']));
});

test('a discard takes of each stripe exactly what lies in its range', async () => {
  const disks = [0, 1, 2].map((index) => new SlowDevice(memory(index)));
  const target = await make(disks, '3 16 1:0 0 1:1 0 1:2 0', 480);
  await target.discard(bytes(8 * SECTOR), 64 * SECTOR);
  const ranges = disks.map(({ seen }) => seen.map(({ at, length }) => [at / SECTOR, (at + length) / SECTOR]));
  expect(ranges).toEqual([[[8, 32]], [[0, 24]], [[0, 16]]]);
});

test('each failed request raises an event until the device has failed 15 times', async () => {
  let events = 0;
  const bad = new FailingDevice(memory(1));
  const target = await make([memory(0), bad], '2 8 1:0 0 1:1 0', 96, () => events++);
  bad.fail(['read']);
  const read = () => target.read(bytes(8 * SECTOR), new Uint8Array(512), 0, 512);
  for (let count = 1; count <= 20; count++) {
    expect(read).toThrow(DmError);
    expect(events).toBe(Math.min(count, 14));
  }
  expect(target.status('info')).toBe('2 1:0 1:1 1 AD');
});

test('a device listed twice carries its errors on both stripes', async () => {
  const bad = new FailingDevice(memory(0));
  let events = 0;
  const target = await make([bad], '2 8 1:0 0 1:0 256', 96, () => events++);
  bad.fail(['write'], { from: 256 * SECTOR });
  expect(() => target.write(bytes(8 * SECTOR), new Uint8Array(512), 0, 512)).toThrow(DmError);
  expect(target.status('info')).toBe('2 1:0 1:0 1 DD');
  expect(events).toBe(1);
});

test('a request that is not supported is no error of the device', async () => {
  const bad = new FailingDevice(memory(0));
  const target = await make([bad], '1 8 1:0 0', 96);
  bad.fail(['discard'], { errno: 'EOPNOTSUPP' });
  expect(() => target.discard(bytes(0), 4096)).toThrow(DmError);
  expect(target.status('info')).toBe('1 1:0 1 A');
});

test('the extents of a huge empty target are few', async () => {
  const disks = [0, 1].map((index) => new MemoryDevice(2 ** 40, { name: `1:${index}` }));
  for (const disk of disks) disk.extents = (_at, length) => [{ length: bytes(length), hole: true, zero: true }];
  const target = await make(disks, '2 8 1:0 0 1:1 0', 2 ** 32);
  expect(await target.extents(bytes(512), 2 ** 41 - 512)).toEqual([{ length: 2 ** 41 - 512, hole: true, zero: true }]);
});

test('requests of many rows that overlap in time keep their data apart', async () => {
  const disks = [0, 1].map((index) => new SlowDevice(memory(index)));
  const target = await make(disks, '2 8 1:0 0 1:1 0', 960);
  const data = [1, 2, 3].map((value) => new Uint8Array(64 * SECTOR).fill(value));
  const place = (index: number) => bytes(index * 64 * SECTOR);
  await Promise.all(data.map((each, index) => target.write(place(index), each, 0, each.length)));
  const found = data.map((each) => new Uint8Array(each.length));
  await Promise.all(found.map((each, index) => target.read(place(index), each, 0, each.length)));
  expect(found).toEqual(data);
});

test('extents of stripes that differ follow the chunks, from anywhere', async () => {
  const disks = [memory(0), memory(1)];
  const target = await make(disks, '2 128 1:0 0 1:1 0', 512);
  disks[1].write(bytes(128 * SECTOR), new Uint8Array(512), 0, 512);
  const list = async (from: number) =>
    (await target.extents(bytes(from * SECTOR), (512 - from) * SECTOR))?.map(({ length, hole }) => [
      length / SECTOR,
      hole,
    ]);
  expect(await list(0)).toEqual([
    [384, true],
    [128, false],
  ]);
  expect(await list(200)).toEqual([
    [184, true],
    [128, false],
  ]);
  expect(await list(400)).toEqual([[112, false]]);
});
