import { expect, test } from 'vitest';
import type { BlockDevice } from '../device/block-device.ts';
import { MemoryDevice } from '../device/memory.ts';
import type { Clock } from '../lib/clock.ts';
import { FakeClock } from '../testing/fake-clock.ts';
import { ScriptedDevice } from '../testing/scripted-device.ts';
import { targetSuite } from '../testing/target-suite.ts';
import { bytes, SECTOR, sector } from '../units.ts';
import { delay, delayType } from './delay.ts';

targetSuite(test, {
  type: delay,
  sectors: 100,
  args: ([disk]) => `${disk} 28 0`,
  disks: 1,
  diskSectors: 128,
  data: 'keep',
  refused: [
    { args: '', text: 'Requires exactly 3, 6 or 9 arguments' },
    { args: '1:0 0', text: 'Requires exactly 3, 6 or 9 arguments' },
    { args: '1:0 0 0 1:0 0', text: 'Requires exactly 3, 6 or 9 arguments' },
    { args: '1:0 0 0 1:0 0 0 1:0 0 0 1', text: 'Requires exactly 3, 6 or 9 arguments' },
    { args: '1:0 8s 0', text: 'Invalid device sector' },
    { args: '1:0 0 1.5', text: 'Invalid delay' },
    { args: '1:0 0 4294967296', text: 'Invalid delay' },
    { args: '1:0 0 0 1:0 x 0', text: 'Invalid device sector' },
    { args: '1:0 0 0 1:0 0 0 1:0 0 ms', text: 'Invalid delay' },
    { args: '1:7 0 0', text: 'Device lookup failed: Cannot open 1:7: no such disk' },
    { args: '1:0 0 0 1:7 0 0', text: 'Device lookup failed: Cannot open 1:7: no such disk' },
  ],
});

/** Time jumps to the next moment at which something is to happen, as soon as nothing else does. */
function hastyClock(): Clock {
  let now = 0;
  return {
    now: () => now,
    after(ms, call) {
      const at = now + ms;
      const soon = setImmediate(() => {
        now = Math.max(now, at);
        call();
      });
      return () => clearImmediate(soon);
    },
  };
}

targetSuite((name, run) => test(`three delays: ${name}`, run), {
  type: delayType(hastyClock()),
  sectors: 100,
  args: ([disk]) => `${disk} 28 5 ${disk} 28 7 ${disk} 28 3`,
  disks: 1,
  diskSectors: 128,
  data: 'keep',
  refused: [],
});

async function make(args: string, ...below: BlockDevice[]) {
  const clock = new FakeClock();
  const target = await delayType(clock).create({
    start: sector(0),
    length: sector(64),
    args: args.split(' '),
    readOnly: false,
    open: async (word) => below[Number(word.slice(2))],
    event: () => {},
    owner: new MemoryDevice(0),
    enlarge: () => false,
  });
  return { clock, target };
}

const disk = (index = 0) => new ScriptedDevice(new MemoryDevice(128 * SECTOR, { name: `1:${index}` }));
const block = () => new Uint8Array(SECTOR);
const place = (index: number) => bytes(index * SECTOR);
/** Lets the continuations of what has settled run. */
const turn = () => new Promise((resolve) => setImmediate(resolve));

test('prints three, six or nine words, how many requests it holds, and nothing to measure', async () => {
  for (const args of ['1:0 0 10', '1:0 0 10 1:1 5 20', '1:0 0 10 1:1 5 20 1:2 0 30']) {
    const { target } = await make(args, disk(0), disk(1), disk(2));
    expect(target.status('table')).toBe(args);
    expect(target.status('info')).toBe('0 0 0');
    expect(target.status('measure')).toBe('');
  }
});

test('reads, writes and flushes go to their own device, sector and delay; discards and zeroes are writes', async () => {
  const disks = [disk(0), disk(1), disk(2)];
  const { clock, target } = await make('1:0 1 10 1:1 5 20 1:2 0 30', ...disks);
  const waits = [
    target.read(place(2), block(), 0, SECTOR),
    target.write(place(2), block(), 0, SECTOR),
    target.discard(place(3), SECTOR),
    target.writeZeroes(place(4), SECTOR, true),
    target.flush(),
  ];
  expect(target.status('info')).toBe('1 3 1');
  clock.pass(9);
  expect(target.status('info')).toBe('1 3 1');
  clock.pass(1);
  expect(target.status('info')).toBe('0 3 1');
  clock.pass(10);
  expect(target.status('info')).toBe('0 0 1');
  clock.pass(10);
  expect(target.status('info')).toBe('0 0 0');
  await Promise.all(waits);
  expect(disks.map(({ log }) => log)).toEqual([['R 3+1'], ['W 7+1', 'D 8+1', 'Z 9+1'], ['F']]);
  expect(clock.timers).toBe(0);
});

test('with fewer words, flushes take what writes have, and writes what reads have', async () => {
  const disks = [disk(0), disk(1)];
  const two = await make('1:0 0 1 1:1 8 2', ...disks);
  void two.target.flush();
  expect(two.target.status('info')).toBe('0 0 1');
  two.clock.pass(2);
  expect(disks[1].log).toEqual(['F']);
  const one = await make('1:0 4 3', disks[0]);
  void one.target.write(place(0), block(), 0, SECTOR);
  void one.target.flush();
  expect(one.target.status('info')).toBe('0 1 1');
  one.clock.pass(3);
  expect(disks[0].log).toEqual(['W 4+1', 'F']);
});

test('a delay of 0 answers as the device does, at once', async () => {
  const { target, clock } = await make('1:0 0 0 1:0 0 0 1:0 0 5', disk());
  expect(target.read(place(0), block(), 0, SECTOR)).toBeUndefined();
  expect(target.write(place(0), block(), 0, SECTOR)).toBeUndefined();
  expect(target.discard(place(0), SECTOR)).toBeUndefined();
  expect(target.flush()).toBeInstanceOf(Promise);
  clock.pass(5);
});

test('the delay is added to the time of the device', async () => {
  const slow = disk();
  slow.hold = () => true;
  const { target, clock } = await make('1:0 0 5', slow);
  let done = false;
  const write = Promise.resolve(target.write(place(0), block(), 0, SECTOR)).then(() => (done = true));
  clock.pass(5);
  expect(target.status('info')).toBe('0 0 0');
  await turn();
  expect(done).toBe(false);
  slow.go();
  await write;
});

test('a suspend sends everything at once in the order in which it came, and delays nothing until resume', async () => {
  const below = disk();
  const { target, clock } = await make('1:0 0 4000 1:0 0 3000 1:0 0 2000', below);
  const waits = [
    target.read(place(0), block(), 0, SECTOR),
    target.flush(),
    target.write(place(1), block(), 0, SECTOR),
    target.read(place(2), block(), 0, SECTOR),
  ];
  target.presuspend!();
  await Promise.all(waits);
  expect(below.takeLog()).toEqual(['R 0+1', 'F', 'W 1+1', 'R 2+1']);
  expect(target.status('info')).toBe('0 0 0');
  expect(clock.timers).toBe(0);
  expect(target.write(place(1), block(), 0, SECTOR)).toBeUndefined();
  target.resume!();
  const write = target.write(place(1), block(), 0, SECTOR);
  expect(target.status('info')).toBe('0 1 0');
  clock.pass(3000);
  await write;
});

test('after a suspend that was interrupted it delays again', async () => {
  const { target, clock } = await make('1:0 0 10', disk());
  target.presuspend!();
  target.presuspendUndo!();
  const read = target.read(place(0), block(), 0, SECTOR);
  expect(target.status('info')).toBe('1 0 0');
  clock.pass(10);
  await read;
});

test('many thousand requests wait behind one timer, each for its own time', async () => {
  const below = disk();
  const { target, clock } = await make('1:0 0 50 1:0 0 20', below);
  const waits: unknown[] = [];
  for (let round = 0; round < 200; round++) {
    for (let index = 0; index < 64; index++) {
      waits.push(target.read(place(index), block(), 0, SECTOR));
      waits.push(target.write(place(index), block(), 0, SECTOR));
      expect(clock.timers).toBe(1);
    }
    clock.pass(1);
    expect(target.status('info')).toBe(`${64 * Math.min(round + 1, 49)} ${64 * Math.min(round + 1, 19)} 0`);
  }
  clock.pass(50);
  await Promise.all(waits);
  expect(below.log.length).toBe(2 * 200 * 64);
  expect(clock.timers).toBe(0);
});

test('a failure of the device reaches the request that waited, and no other', async () => {
  const below = disk();
  below.fault = (_, at) => (at === 1 ? 'ENOSPC' : undefined);
  const { target, clock } = await make('1:0 0 10', below);
  const waits = [0, 1, 2].map((index) => target.write(place(index), block(), 0, SECTOR));
  const outcome = Promise.allSettled(waits);
  clock.pass(10);
  expect((await outcome).map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
  await expect(waits[1]).rejects.toMatchObject({ errno: 'ENOSPC' });
});
