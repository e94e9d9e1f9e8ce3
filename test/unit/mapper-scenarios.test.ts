/**
 * What a user of device mapper sees, one scenario after the other. The numbers are those of the scenario list that the
 * command's tests use as well: 13.N. Scenarios about the text that a command prints are tested with the command.
 *
 * Given in all of them: disks A, B, C of 131,072 sectors with the numbers 1:0, 1:1, 1:2; the mapper's major is 254.
 */
import { beforeEach, expect, test } from 'vitest';
import type { MemoryDevice } from '../../src/device/memory.ts';
import type { DmError } from '../../src/errors.ts';
import type { CreateOptions, DeviceInfo, LoadOptions, TargetSpec } from '../../src/mapper/control.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { FailingDevice } from '../../src/testing/failing-device.ts';
import { FakeDisks } from '../../src/testing/fake-disks.ts';
import { SlowDevice } from '../../src/testing/slow-device.ts';
import { bytes, SECTOR } from '../../src/units.ts';

let disks: FakeDisks;
let mapper: Mapper;
let a: MemoryDevice;
let b: MemoryDevice;
let c: MemoryDevice;

beforeEach(() => {
  disks = new FakeDisks();
  [a, b, c] = [0, 1, 2].map((index) => disks.ram(index));
  mapper = new Mapper({ opener: disks });
});

/** `0 8 linear A 0` with A, B, C for the paths of the disks; lines are separated by ` / `. */
const lines = (text: string): TargetSpec[] =>
  text.split(' / ').map((line) => {
    const [start, length, type, ...args] = line.split(' ');
    const words = args.map((word) => ({ A: '/dev/ram0', B: '/dev/ram1', C: '/dev/ram2' })[word] ?? word);
    return { start: Number(start), length: Number(length), type, args: words.join(' ') };
  });

const load = (name: string, text: string, options?: LoadOptions) => mapper.load({ name }, lines(text), options);
const resume = (name: string) => mapper.resume({ name });

/** As the command does: nothing is left when a step fails. */
async function create(name: string, text: string, options: CreateOptions & LoadOptions = {}): Promise<void> {
  await mapper.create(name, options);
  try {
    await load(name, text, options);
    await resume(name);
  } catch (error) {
    await mapper.remove({ name });
    throw error;
  }
}

const reload = async (name: string, text: string) => {
  await load(name, text);
  await resume(name);
};

const state = ({ live, inactive, suspended, readOnly }: DeviceInfo) =>
  `${live ? 'L' : '-'}${inactive ? 'I' : '-'}${suspended ? 's' : '-'}${readOnly ? 'r' : 'w'}`;
const stat = async (name: string) => state(await mapper.info({ name }));
const info = (name: string) => mapper.info({ name });
const table = async (name: string, inactive = false) =>
  (await mapper.table({ name }, { inactive })).map(
    ({ start, length, type, text }) => `${start} ${length} ${type} ${text}`,
  );
const names = async () => (await mapper.list()).map(({ name }) => name);

const fails = (work: Promise<unknown>, errno: string, message?: RegExp) =>
  expect(work).rejects.toMatchObject(message ? { errno, message: expect.stringMatching(message) } : { errno });

const filled = (value: number, sectors = 1) => new Uint8Array(sectors * SECTOR).fill(value);

async function write(name: string, sector: number, value: number, sectors = 1): Promise<void> {
  await mapper.device({ name }).write(bytes(sector * SECTOR), filled(value, sectors), 0, sectors * SECTOR);
}

async function read(from: string | MemoryDevice, sector: number, sectors = 1): Promise<Uint8Array> {
  const device = typeof from === 'string' ? mapper.device({ name: from }) : from;
  const found = filled(0xee, sectors);
  await device.read(bytes(sector * SECTOR), found, 0, found.length);
  return found;
}

/** One number for each sector, which must be filled with it. */
async function values(from: string | MemoryDevice, sector: number, sectors: number): Promise<number[]> {
  const found = await read(from, sector, sectors);
  return Array.from({ length: sectors }, (_, index) => {
    const part = found.subarray(index * SECTOR, (index + 1) * SECTOR);
    return part.every((byte) => byte === part[0]) ? part[0] : Number.NaN;
  });
}

/** Whether a promise has settled once everything that can run without it has run. */
async function settled(promise: Promise<unknown>): Promise<boolean> {
  let done = false;
  const mark = () => (done = true);
  promise.then(mark, mark);
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
  return done;
}

function slow(index: number): SlowDevice {
  const disk = new SlowDevice(disks.disks.get(`1:${index}`)!);
  disks.add(disk, `/dev/ram${index}`);
  return disk;
}

function failing(index: number): FailingDevice {
  const disk = new FailingDevice(disks.disks.get(`1:${index}`)!);
  disks.add(disk, `/dev/ram${index}`);
  return disk;
}

// Creating

test('13.1 a linear device', async () => {
  await create('lin', '0 2048 linear A 0');
  expect(await info('lin')).toMatchObject({ major: 254, minor: 0, size: 2048 * SECTOR });
  expect(await table('lin')).toEqual(['0 2048 linear 1:0 0']);
});

test('13.2 a name in use is refused, the old device untouched', async () => {
  await create('lin', '0 2048 linear A 0');
  await fails(mapper.create('lin'), 'EBUSY');
  expect(await table('lin')).toEqual(['0 2048 linear 1:0 0']);
});

test('13.3 a uuid in use is refused, nothing is created', async () => {
  await mapper.create('first', { uuid: 'U' });
  await fails(mapper.create('second', { uuid: 'U' }), 'EBUSY');
  expect(await names()).toEqual(['first']);
  expect((await mapper.create('third')).minor).toBe(1);
});

test('13.4, 13.5 a device without a table', async () => {
  const made = await mapper.create('a');
  expect(made).toMatchObject({ size: 0, live: false, inactive: false, suspended: false, targetCount: 0 });
  expect(made.readAhead).toBe(undefined);
  expect(await table('a')).toEqual([]);
  expect(await stat('a')).toBe('---w');
  expect(() => mapper.open({ name: 'a' })).toThrow(expect.objectContaining({ errno: 'ENXIO' }));
  await expect(read('a', 0)).rejects.toMatchObject({ errno: 'EIO' });
});

test('13.6 an unknown target type is refused, nothing is left', async () => {
  await fails(create('bad', '0 8 nosuchtarget'), 'EINVAL', /^nosuchtarget: unknown target type$/);
  expect(await names()).toEqual([]);
});

test('13.7 (part) a table without a line, and a type of more than 15 bytes, are refused', async () => {
  await mapper.create('bad');
  await fails(mapper.load({ name: 'bad' }, []), 'EINVAL', /no targets specified/);
  await fails(load('bad', '0 8 sixteen-letters-'), 'EINVAL', /too long/);
  expect(await stat('bad')).toBe('---w');
});

test.each(['0 8 zero / 16 8 zero', '0 8 zero / 4 8 zero', '8 8 zero / 0 8 zero', '8 8 zero'])(
  '13.8 a gap, an overlap, a wrong order, a start other than 0: %s',
  async (text) => {
    await fails(create('bad', text), 'EINVAL', /^zero: Gap in table$/);
    expect(await names()).toEqual([]);
  },
);

test('13.9 empty and too large targets are refused, the largest is not', async () => {
  await fails(create('bad', '0 0 zero'), 'EINVAL', /zero-length target/);
  await fails(create('bad', `0 ${2 ** 54 + 4} zero`), 'EINVAL', /too large device/);
  await fails(create('bad', '0 -8 zero'), 'EINVAL', /too large device/);
  // 2^54 - 1 has no number of its own. It is the same as 2^54 here; the command, which has the digits, refuses 2^54.
  await create('huge', `0 ${2 ** 54 - 1} zero`);
  expect(await values('huge', 2 ** 53 - 2, 1)).toEqual([0]);
  await expect(read('huge', 2 ** 53)).rejects.toMatchObject({ errno: 'EIO' });
});

test('13.12 a table beyond its disk is refused at the first load', async () => {
  await fails(
    create('x', '0 131073 linear A 0'),
    'EINVAL',
    /1:0 too small for target: start=0, len=131073, dev_size=131072/,
  );
  expect(await names()).toEqual([]);
  expect(disks.opened.size).toBe(0);
});

test.each([
  ['/dev/nosuch', 'ENODEV'],
  ['99:99', 'ENXIO'],
  ['9999:1', 'EOVERFLOW'],
  ['1:1048576', 'EOVERFLOW'],
  ['word', 'ENODEV'],
  ['1:0x', 'ENODEV'],
  ['254:7', 'ENXIO'],
])('13.13 linear on %s fails with the errno of the open, %s', async (argument, errno) => {
  await fails(create('x', `0 8 linear ${argument} 0`), errno, /^linear: Device lookup failed: /);
  expect(await names()).toEqual([]);
});

test('13.15 (part) uuid, minor, read-only and two targets', async () => {
  await create('c2', '0 8 linear A 0 / 8 8 zero', { uuid: 'U2', minor: 9, readOnly: true });
  expect(await mapper.info({ uuid: 'U2' })).toMatchObject({ name: 'c2', minor: 9, targetCount: 2 });
  expect(await stat('c2')).toBe('L--r');
});

test('13.17 a table of 300 lines', async () => {
  const text = Array.from({ length: 300 }, (_, index) => `${index * 8} 8 linear ${index % 2 ? 'A' : 'B'} ${index * 8}`);
  await create('many', text.join(' / '));
  expect(await info('many')).toMatchObject({ size: 2400 * SECTOR, targetCount: 300 });
  expect(await table('many')).toHaveLength(300);
  await write('many', 4, 5, 2392);
  expect(new Set(await values('many', 4, 2392))).toEqual(new Set([5]));
  expect(await values(b, 4, 5)).toEqual([5, 5, 5, 5, 0]);
  expect(await values(a, 7, 3)).toEqual([0, 5, 5]);
});

test('13.20 the longest name and uuid; none of them longer, empty or reserved', async () => {
  await mapper.create('n'.repeat(127), { uuid: 'u'.repeat(128) });
  await fails(mapper.create('m'.repeat(128)), 'EINVAL');
  await fails(mapper.create('x', { uuid: 'v'.repeat(129) }), 'EINVAL');
  await fails(mapper.create('é'.repeat(64)), 'EINVAL');
  for (const name of ['', '.', '..', 'control', 'x/y', 'half\ud800']) await fails(mapper.create(name), 'EINVAL');
});

test('13.21 a minor in use is refused, a free one is the lowest', async () => {
  await mapper.create('m1', { minor: 77 });
  await fails(mapper.create('m2', { minor: 77 }), 'ENXIO');
  await fails(mapper.create('m2', { minor: 2 ** 20 }), 'ENXIO');
  expect([(await mapper.create('m2')).minor, (await mapper.create('m3')).minor]).toEqual([0, 1]);
  await mapper.remove({ name: 'm2' });
  expect((await mapper.create('m4')).minor).toBe(0);
});

// Tables and states

test('13.22 to 13.24 the inactive table is seen only when asked for, and becomes live at resume', async () => {
  await mapper.create('a');
  expect(state(await load('a', '0 1024 linear A 0'))).toBe('-I-w');
  expect(await table('a')).toEqual([]);
  expect(await table('a', true)).toEqual(['0 1024 linear 1:0 0']);
  const asked = await mapper.info({ name: 'a' }, { inactive: true });
  expect(asked.deps).toEqual([{ major: 1, minor: 0, name: 'ram0' }]);
  expect(asked.targetCount).toBe(1);
  expect((await info('a')).targetCount).toBe(0);
  expect(state(await mapper.suspend({ name: 'a' }))).toBe('-Isw');

  expect(state(await resume('a'))).toBe('L--w');
  expect(await info('a')).toMatchObject({ size: 1024 * SECTOR, readAhead: 256 });

  expect(state(await load('a', '0 2048 linear B 0'))).toBe('LI-w');
  expect(await info('a')).toMatchObject({ size: 1024 * SECTOR, deps: [{ minor: 0 }] });
  expect(await resume('a')).toMatchObject({ size: 2048 * SECTOR, deps: [{ minor: 1 }] });
  expect([...disks.opened.keys()]).toEqual(['1:1']);
});

test('13.25 clear drops the inactive table, also when there is none', async () => {
  await create('a', '0 1024 linear A 0');
  await load('a', '0 8 linear B 0');
  expect(state(await mapper.clear({ name: 'a' }))).toBe('L--w');
  expect(state(await mapper.clear({ name: 'a' }))).toBe('L--w');
  expect([...disks.opened.keys()]).toEqual(['1:0']);
});

test('13.26 a bad table leaves the live and the inactive one as they were', async () => {
  await create('a', '0 1024 linear A 0');
  await load('a', '0 8 linear B 0');
  await fails(load('a', '0 8 linear C 0 / 8 8 nosuch'), 'EINVAL');
  expect(await table('a')).toEqual(['0 1024 linear 1:0 0']);
  expect(await table('a', true)).toEqual(['0 8 linear 1:1 0']);
  expect([...disks.opened.keys()].sort()).toEqual(['1:0', '1:1']);
});

test('13.27 a table beyond its disk loads onto an existing device, and fails at resume', async () => {
  await create('a', '0 1024 linear A 0');
  await load('a', '0 131073 linear A 0');
  await fails(resume('a'), 'EINVAL', /too small/);
  expect(await stat('a')).toBe('L-sw');
  expect(await table('a')).toEqual(['0 1024 linear 1:0 0']);
  const waiting = write('a', 0, 1);
  await resume('a');
  await waiting;
  expect(await stat('a')).toBe('L--w');
});

test('13.28 a device without a table can be suspended, not resumed', async () => {
  await mapper.create('a');
  await mapper.suspend({ name: 'a' });
  await fails(resume('a'), 'EINVAL');
  expect(await stat('a')).toBe('--sw');
});

test('13.29 suspend and resume twice', async () => {
  await create('a', '0 1024 linear A 0');
  for (const step of [mapper.suspend, mapper.suspend, mapper.resume, mapper.resume])
    await step.call(mapper, { name: 'a' });
  expect(await stat('a')).toBe('L--w');
});

test('13.30 a read-only table makes the device read-only at resume', async () => {
  await create('a', '0 1024 linear A 0');
  await load('a', '0 1024 linear A 0', { readOnly: true });
  expect(await stat('a')).toBe('LI-w');
  expect(state(await mapper.info({ name: 'a' }, { inactive: true }))).toBe('LI-r');
  expect(state(await resume('a'))).toBe('L--r');
  await expect(write('a', 0, 1)).rejects.toMatchObject({ errno: 'EPERM' });
  expect(await values('a', 0, 1)).toEqual([0]);
});

test('13.31 (part) loading a device that does not exist', async () => {
  await fails(load('nosuch', '0 8 zero'), 'ENXIO');
});

test('13.33 error forgets its arguments', async () => {
  await create('e', '0 8 error foo bar');
  expect(await table('e')).toEqual(['0 8 error ']);
});

test('13.34 a device cannot be mapped onto itself, directly or through another, live or inactive', async () => {
  await create('a', '0 8 linear A 0');
  await fails(load('a', '0 8 linear /dev/mapper/a 0'), 'EINVAL', /it would lead back to itself/);
  await create('b', '0 8 linear a 0');
  await fails(load('a', '0 8 linear b 0'), 'EINVAL');
  await mapper.create('c');
  await load('c', '0 8 linear 254:1 0');
  await fails(load('a', '0 8 linear c 0'), 'EINVAL');
  expect(await stat('a')).toBe('L--w');
  await mapper.clear({ name: 'c' });
  await mapper.remove({ name: 'b' });
  await load('c', '0 8 zero');
  await load('a', '0 8 linear c 0');
});

test('13.35 an error in the middle fails what touches it', async () => {
  await create('mix', '0 8 zero / 8 8 error / 16 8 linear A 0');
  await expect(read('mix', 8, 8)).rejects.toMatchObject({ errno: 'EIO' });
  await expect(read('mix', 0, 24)).rejects.toMatchObject({ errno: 'EIO' });
  expect(await values('mix', 0, 1)).toEqual([0]);
  expect(await values('mix', 16, 1)).toEqual([0]);
  // What does not touch it has been written nevertheless.
  await expect(write('mix', 4, 9, 20)).rejects.toMatchObject({ errno: 'EIO' });
  expect(await values(a, 0, 8)).toEqual(Array(8).fill(9));
});

// I/O, suspend, resume

test('13.36 a write that waited goes through the new table', async () => {
  await create('a', '0 1024 linear A 0');
  await mapper.suspend({ name: 'a' });
  const writing = write('a', 3, 6);
  await load('a', '0 1024 linear B 0');
  expect(await settled(writing)).toBe(false);
  await resume('a');
  await writing;
  expect([await values(a, 3, 1), await values(b, 3, 1)]).toEqual([[0], [6]]);
});

test('13.37 a request that waited and now lies beyond the end fails', async () => {
  await create('a', '0 2048 linear A 0');
  await mapper.suspend({ name: 'a' });
  const reading = read('a', 1600);
  await load('a', '0 1024 linear A 0');
  await resume('a');
  await expect(reading).rejects.toMatchObject({ errno: 'EIO' });
});

test('13.39 a suspend that waits for a request below can be interrupted, and leaves the device active', async () => {
  await create('lo', '0 1024 linear A 0');
  await create('hi', '0 1024 linear lo 0');
  await mapper.suspend({ name: 'lo' });
  const writing = write('hi', 5, 7);
  const interrupt = new AbortController();
  const suspending = mapper.suspend({ name: 'hi' }, { signal: interrupt.signal });
  const later = write('hi', 6, 8);
  expect(await settled(suspending)).toBe(false);
  expect(await stat('hi')).toBe('L--w');
  interrupt.abort();
  await fails(suspending, 'EINTR');
  expect(await stat('hi')).toBe('L--w');
  expect([await settled(writing), await settled(later)]).toEqual([false, false]);
  await resume('lo');
  await Promise.all([writing, later]);
  expect(await values(a, 5, 2)).toEqual([7, 8]);
});

test('13.40 a write across two targets', async () => {
  await create('two', '0 100 linear A 0 / 100 100 linear B 0');
  await write('two', 98, 4, 4);
  expect([await values(a, 97, 4), await values(b, 0, 3)]).toEqual([
    [0, 4, 4, 0],
    [4, 4, 0],
  ]);
  expect(await values('two', 97, 6)).toEqual([0, 4, 4, 4, 4, 0]);
});

test('13.41 chunks of a striped target lie where the kernel puts them', async () => {
  await create('s', '0 96 striped 3 8 A 0 B 16 C 32');
  for (let chunk = 0; chunk < 7; chunk++) await write('s', chunk * 8, chunk + 1, 8);
  const row = async (disk: MemoryDevice, start: number) =>
    (await values(disk, start, 24)).filter((_, index) => index % 8 === 0);
  expect([await row(a, 0), await row(b, 16), await row(c, 32)]).toEqual([
    [1, 4, 7],
    [2, 5, 0],
    [3, 6, 0],
  ]);
  expect(mapper.device({ name: 's' }).hints).toEqual({ minimumIo: 4096, optimalIo: 12288 });
});

test('13.42 a discard over stripes', async () => {
  for (const disk of [a, b, c]) disk.write(bytes(0), filled(1, 64), 0, 64 * SECTOR);
  await create('s', '0 192 striped 3 16 A 0 B 0 C 0');
  await mapper.device({ name: 's' }).discard(bytes(8 * SECTOR), 64 * SECTOR);
  const zeroes = async (disk: MemoryDevice) =>
    (await values(disk, 0, 64)).flatMap((value, index) => (value === 0 ? [index] : []));
  const range = (from: number, to: number) => Array.from({ length: to - from }, (_, index) => from + index);
  expect([await zeroes(a), await zeroes(b), await zeroes(c)]).toEqual([range(8, 32), range(0, 24), range(0, 16)]);
});

test('13.43 discards are offered when every target takes them', async () => {
  await create('with', '0 8 linear A 0 / 8 8 zero / 16 8 linear B 0');
  await create('without', '0 8 linear A 0 / 8 8 linear B 0');
  const discard = async (name: string) => mapper.device({ name }).discard(bytes(0), 16 * SECTOR);
  expect(mapper.device({ name: 'with' }).canDiscard).toBe(false);
  await expect(discard('with')).rejects.toMatchObject({ errno: 'EOPNOTSUPP' });
  await write('without', 0, 3, 16);
  await discard('without');
  expect(await values('without', 0, 16)).toEqual(Array(16).fill(0));
  b.canDiscard = false;
  await expect(discard('without')).rejects.toMatchObject({ errno: 'EOPNOTSUPP' });
});

test('13.44 a flush waits for the resume', async () => {
  await create('a', '0 8 linear A 0');
  await mapper.suspend({ name: 'a' });
  const flushing = Promise.resolve(mapper.device({ name: 'a' }).flush());
  expect(await settled(flushing)).toBe(false);
  await resume('a');
  await flushing;
});

test('13.45 a failed write below is the client’s, the device stays active', async () => {
  failing(0).fail(['write']);
  await create('a', '0 8 linear A 0');
  await expect(write('a', 0, 1)).rejects.toMatchObject({ errno: 'EIO' });
  expect(await stat('a')).toBe('L--w');
  expect((await info('a')).eventNumber).toBe(0);
});

test('13.46 a failing stripe is dead in the status and raises an event', async () => {
  await create('bad', '0 48 error');
  await create('s', '0 96 striped 2 8 A 0 bad 0');
  await expect(read('s', 8)).rejects.toMatchObject({ errno: 'EIO' });
  expect((await mapper.status({ name: 's' }))[0].text).toBe('2 1:0 254:0 1 AD');
  expect((await info('s')).eventNumber).toBe(1);
});

test('13.47 no client sees an error while the table is swapped 100 times, and nothing is lost', async () => {
  slow(0);
  await create('a', '0 1024 linear A 0');
  let stop = false;
  const clients = Array.from({ length: 8 }, async (_, client) => {
    let round = 0;
    while (!stop) {
      round = (round % 250) + 1;
      await write('a', client * 8, round, 8);
      expect(await values('a', client * 8, 8)).toEqual(Array(8).fill(round));
    }
    return round;
  });
  const tables = ['0 1024 linear A 0', '0 512 linear A 0 / 512 512 linear A 512', '0 1024 striped 1 8 A 0'];
  for (let swap = 0; swap < 100; swap++) await reload('a', tables[swap % 3]);
  stop = true;
  const last = await Promise.all(clients);
  for (const [client, round] of last.entries()) expect(await values(a, client * 8, 8)).toEqual(Array(8).fill(round));
});

test('13.48 10,000 requests that waited complete in order', async () => {
  await create('a', '0 1024 linear A 0');
  await mapper.suspend({ name: 'a' });
  const order: number[] = [];
  const requests = Array.from({ length: 10_000 }, (_, index) =>
    write('a', index % 1024, index % 251).then(() => order.push(index)),
  );
  await resume('a');
  await Promise.all(requests);
  expect(order).toEqual(Array.from({ length: 10_000 }, (_, index) => index));
  expect(await values(a, 10, 1)).toEqual([(9 * 1024 + 10) % 251]);
});

// Removing

test('13.49 an open device is not removed', async () => {
  await create('a', '0 8 zero');
  const opener = mapper.open({ name: 'a' });
  expect((await info('a')).openCount).toBe(1);
  await fails(mapper.remove({ name: 'a' }), 'EBUSY');
  await opener.close();
  await opener.close();
  await mapper.remove({ name: 'a' });
});

test('13.50 a deferred removal happens when the last opener leaves, unless it is cancelled', async () => {
  await create('lo', '0 8 linear A 0');
  await create('a', '0 8 linear lo 0');
  const openers = [mapper.open({ name: 'a' }), mapper.open({ name: 'a' })];
  await mapper.remove({ name: 'a' }, { deferred: true });
  await mapper.remove({ name: 'lo' }, { deferred: true });
  expect(await info('a')).toMatchObject({ deferredRemove: true, openCount: 2 });
  await mapper.message({ name: 'a' }, 0, '@cancel_deferred_remove');
  expect((await info('a')).deferredRemove).toBe(false);
  await mapper.remove({ name: 'a' }, { deferred: true });
  openers.push(mapper.open({ name: 'a' }));
  for (const opener of openers) {
    expect(await names()).toEqual(['a', 'lo']);
    await opener.close();
  }
  expect(await names()).toEqual([]);
  expect(disks.opened.size).toBe(0);

  await create('b', '0 8 zero');
  const opener = mapper.open({ name: 'b' });
  await mapper.remove({ name: 'b' }, { deferred: true });
  await mapper.message({ name: 'b' }, 0, '@cancel_deferred_remove');
  await opener.close();
  expect(await names()).toEqual(['b']);
  await mapper.remove({ name: 'b' }, { deferred: true });
  expect(await names()).toEqual([]);
});

test('13.51 the upper device goes first; remove_all takes both', async () => {
  await create('a', '0 8 linear A 0');
  await create('top', '0 8 linear a 0');
  await fails(mapper.remove({ name: 'a' }), 'EBUSY');
  expect((await info('a')).usedBy).toEqual(['top']);
  await mapper.remove({ name: 'top' });
  await mapper.remove({ name: 'a' });
  await fails(mapper.remove({ name: 'nosuch' }), 'ENXIO');
  await create('a', '0 8 linear A 0');
  await create('top', '0 8 linear a 0');
  await mapper.removeAll();
  expect(await names()).toEqual([]);
});

test('13.52, 13.55 an error table on an open, suspended device fails the requests that waited', async () => {
  await create('a', '0 2048 linear A 0');
  const opener = mapper.open({ name: 'a' });
  await mapper.suspend({ name: 'a' });
  const reading = read('a', 0);
  await load('a', '0 2048 error');
  await mapper.resume({ name: 'a' }, { noflush: true, nolockfs: true });
  await expect(reading).rejects.toMatchObject({ errno: 'EIO' });
  await fails(mapper.remove({ name: 'a' }), 'EBUSY');
  expect(await table('a')).toEqual(['0 2048 error ']);
  expect(disks.opened.size).toBe(0);
  await opener.close();
  await mapper.remove({ name: 'a' });
});

test('13.53 (part) remove_all leaves open devices, or marks them', async () => {
  await create('a', '0 8 zero');
  await create('b', '0 8 zero');
  const opener = mapper.open({ name: 'a' });
  await mapper.removeAll();
  expect(await names()).toEqual(['a']);
  await mapper.removeAll({ deferred: true });
  expect((await info('a')).deferredRemove).toBe(true);
  await opener.close();
  expect(await names()).toEqual([]);
});

test('13.54 a suspended and closed device is removed', async () => {
  await create('a', '0 8 linear A 0');
  await mapper.suspend({ name: 'a' });
  await mapper.remove({ name: 'a' });
  expect(disks.opened.size).toBe(0);
});

test('13.56 a device above counts once for its two tables, once more for another mode', async () => {
  await create('a', '0 8 linear A 0');
  await create('c', '0 8 linear C 0');
  await create('b', '0 8 linear c 0');
  await load('b', '0 8 linear a 0');
  const count = async () => (await info('a')).openCount;
  expect(await count()).toBe(1);
  await mapper.clear({ name: 'b' });
  expect(await count()).toBe(0);
  await reload('b', '0 4 linear a 0 / 4 4 linear a 4');
  expect(await count()).toBe(1);
  await load('b', '0 8 linear a 0');
  expect(await count()).toBe(1);
  await load('b', '0 8 linear a 0', { readOnly: true });
  expect(await count()).toBe(2);
  await mapper.remove({ name: 'b' });
  expect(await count()).toBe(0);
});

// Names, events, messages

test('13.58 rename keeps the number and raises the event number', async () => {
  await create('a', '0 8 zero');
  await create('b', '0 8 zero');
  await fails(mapper.rename({ name: 'a' }, 'b'), 'EBUSY');
  expect(await mapper.rename({ name: 'a' }, 'c')).toMatchObject({ name: 'c', minor: 0, eventNumber: 1 });
  await fails(mapper.rename({ name: 'nosuch' }, 'd'), 'ENXIO');
  expect(await names()).toEqual(['b', 'c']);
  await mapper.create('a');
});

test('13.59 a uuid is set once', async () => {
  await create('c', '0 8 zero');
  expect(await mapper.setUuid({ name: 'c' }, 'UC')).toMatchObject({ uuid: 'UC', eventNumber: 1 });
  await fails(mapper.setUuid({ name: 'c' }, 'UD'), 'EINVAL');
  await create('d', '0 8 zero');
  await fails(mapper.setUuid({ name: 'd' }, 'UC'), 'EBUSY');
  expect((await mapper.info({ uuid: 'UC' })).name).toBe('c');
});

test('13.60 (part) what can be no name is refused', async () => {
  await create('c', '0 8 zero');
  for (const name of ['x/y', '', '.', 'control']) await fails(mapper.rename({ name: 'c' }, name), 'EINVAL');
  expect(await names()).toEqual(['c']);
});

test('13.61 a wait ends at a rename, and at once when the number differs already', async () => {
  await create('a', '0 8 zero');
  const waiting = mapper.wait({ name: 'a' }, 0);
  expect(await settled(waiting)).toBe(false);
  await mapper.rename({ name: 'a' }, 'b');
  expect(await waiting).toMatchObject({ name: 'b', eventNumber: 1 });
  expect(await mapper.wait({ name: 'b' }, 7)).toMatchObject({ eventNumber: 1 });
});

test('13.62 a wait ends when the device is removed; or when it is interrupted', async () => {
  await create('w', '0 8 zero');
  const waiting = mapper.wait({ name: 'w' }, 0);
  const interrupt = new AbortController();
  const interrupted = mapper.wait({ name: 'w' }, 0, interrupt.signal);
  interrupt.abort();
  await fails(interrupted, 'EINTR');
  await mapper.remove({ name: 'w' });
  expect(await waiting).toBe(undefined);
});

test('13.63 suspend, load and resume are no events', async () => {
  await create('a', '0 8 zero');
  await mapper.suspend({ name: 'a' });
  await reload('a', '0 8 zero');
  expect((await info('a')).eventNumber).toBe(0);
});

test('13.64 (part) messages that nobody takes', async () => {
  await create('a', '0 8 linear A 0');
  await fails(mapper.message({ name: 'a' }, 0, 'hello'), 'EINVAL');
  await fails(mapper.message({ name: 'a' }, 0, ' '), 'EINVAL');
  await fails(mapper.message({ name: 'a' }, 8, 'hello'), 'EINVAL', /beyond/);
  await mapper.create('b');
  await fails(mapper.message({ name: 'b' }, 0, 'hello'), 'EINVAL');
});

test('13.66 the core refuses a message it does not know', async () => {
  await create('a', '0 8 linear A 0');
  await fails(mapper.message({ name: 'a' }, 0, '@foo'), 'EINVAL');
  await fails(mapper.message({ name: 'a' }, 0, '@cancel_deferred_remove now'), 'EINVAL');
});

// Listing

test('13.68 listings walk in byte order of the name', async () => {
  for (const name of ['z', 'b', 'a', 'Z', '\u{1f600}', '\uffee']) await mapper.create(name);
  expect(await names()).toEqual(['Z', 'a', 'b', 'z', '\uffee', '\u{1f600}']);
});

test('13.69 the device opened last comes first among the dependencies, each once', async () => {
  await create('two', '0 8 linear A 0 / 8 8 linear B 0 / 16 8 linear A 8');
  expect((await info('two')).deps.map(({ major, minor }) => [major, minor])).toEqual([
    [1, 1],
    [1, 0],
  ]);
  await create('top', '0 8 linear two 0');
  expect((await info('top')).deps).toEqual([{ major: 254, minor: 0, mapped: 'two', name: 'dm-0' }]);
});

test('errors carry a code and an errno', async () => {
  const error = await mapper.info({ name: 'nosuch' }).catch((thrown: DmError) => thrown);
  expect(error).toMatchObject({ code: 'NO_DEVICE', errno: 'ENXIO', hint: 'look at: dmkit dmsetup ls' });
});
