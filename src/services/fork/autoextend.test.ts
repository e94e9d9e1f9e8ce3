import { existsSync, mkdtempSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Disks } from '../../device/open.ts';
import { DmError } from '../../errors.ts';
import { Mapper } from '../../mapper/mapper.ts';
import { FakeClock } from '../../testing/fake-clock.ts';
import { bytes } from '../../units.ts';
import { stateFault } from '../daemon/state.ts';
import type { EventBody } from '../events/event.ts';
import { EventLog } from '../events/event-log.ts';
import { Monitor } from '../events/monitor.ts';
import type { ForkOptions } from './fork-control.ts';
import { Forks } from './forks.ts';
import type { SavedRecord } from './records.ts';

const MIB = 1024 * 1024;
const CHUNK = 4096;
/** A header, two areas, and an exception for each of the image's 256 chunks. */
const ENOUGH = (3 + 256) * CHUNK;

let directory: string;
let image: string;
let cow: string;
let mapper: Mapper;
let forks: Forks;
let monitor: Monitor;
let clock: FakeClock;
let told: EventBody[];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-autoextend-'));
  image = join(directory, 'disk.img');
  cow = join(directory, 'dev.cow');
  writeFileSync(image, Buffer.alloc(MIB, 'origin. '));
  begin();
});

afterEach(async () => {
  monitor.close();
  await mapper.close();
  rmSync(directory, { recursive: true });
});

function begin(records: SavedRecord[] = []) {
  told = [];
  clock = new FakeClock();
  mapper = new Mapper({
    opener: new Disks(),
    onChange: (kind, device) => monitor.changed(kind, device),
    enlarge: (device, below) => forks.autoextender.full(device, below),
  });
  forks = new Forks({ mapper, records, emit: (_device, body) => told.push(body) });
  monitor = new Monitor({
    mapper,
    log: new EventLog(),
    filled: (device, below, fill) => forks.autoextender.filled(device, below, fill),
    needed: () => forks.autoextender.needed,
    clock,
  });
}

async function restart() {
  const saved = structuredClone(await forks.state());
  expect(stateFault({ major: 254, ...saved })).toBeUndefined();
  monitor.close();
  await mapper.close();
  begin(saved.forks);
  await mapper.restore(saved.devices);
  await forks.recover(saved.devices);
  monitor.begin();
}

/** A COW file of 20 chunks unless told otherwise. */
const fork = (options: ForkOptions = {}) =>
  forks.fork(image, 'dev', {
    chunkSize: CHUNK,
    cowSize: 20 * CHUNK,
    autoextend: { threshold: 70, percent: 20 },
    ...options,
  });

/** Writes whole chunks of the fork, which take a chunk of its COW file each. */
const write = async (from: number, count: number, name = 'dev') => {
  const data = Buffer.alloc(count * CHUNK, 'changed. ');
  await mapper.device({ name }).write(bytes(from * CHUNK), data, 0, data.length);
};

const status = async () => (await mapper.status({ name: 'dev' }))[0].text;
const cowSize = () => statSync(cow).size;

/** Lets the fork find no room on the disk that its COW file is on. */
function fillDisk() {
  const device = mapper.device({ name: 'dev' }).liveTable!.devices.find((lease) => lease.device.path === cow)!.device;
  device.extend = () => {
    throw new DmError('SYSTEM_ENOSPC', 'ENOSPC', `Cannot extend ${cow}: No space left on device`);
  };
}

describe('a COW file', () => {
  test('grows at its threshold by its percentage, in whole chunks', async () => {
    await fork();
    await write(0, 11);
    clock.pass(1000);
    expect([cowSize(), told]).toEqual([20 * CHUNK, []]);
    await write(11, 1);
    clock.pass(1000);
    expect(told).toEqual([{ event: 'extend', cow, from: 20 * CHUNK, size: 24 * CHUNK }]);
    expect(cowSize()).toBe(24 * CHUNK);
    expect(await status()).toBe('112/192 16');
    clock.pass(10_000);
    expect(told).toHaveLength(1);
  });

  test('is sparse where it grew', async () => {
    await fork({ cowSize: 64 * CHUNK, autoextend: { threshold: 5, percent: 1000 } });
    await write(0, 8);
    clock.pass(1000);
    expect(cowSize()).toBe(ENOUGH);
    expect(statSync(cow).blocks * 512).toBeLessThan(16 * CHUNK);
  });

  test('grows until it is used below its threshold', async () => {
    await fork({ autoextend: { threshold: 10, percent: 5 } });
    await write(0, 5);
    clock.pass(1000);
    expect(told).toHaveLength(1);
    expect((7 * CHUNK * 100) / cowSize()).toBeLessThan(10);
  });

  test.each<[string, ForkOptions]>([
    ['of its own', {}],
    ['that only knows to grow when it is full', { autoextend: { threshold: 100, percent: 1 } }],
    ['without a name', { transient: true }],
  ])('%s is not overflowed by a burst that nobody could look into', async (_what, options) => {
    await fork(options);
    const writes: Promise<void>[] = [];
    for (let chunk = 0; chunk < 256; chunk++) writes.push(write(chunk, 1));
    await Promise.all(writes);
    expect(await status()).toMatch(/^\d+\/\d+ \d+$/);
    expect(told.every(({ event }) => event === 'extend')).toBe(true);
    expect((await mapper.info({ name: 'dev' })).eventNumber).toBe(0);
    const [volume] = await forks.volumes();
    expect(volume).toMatchObject({ state: 'active', used: MIB });
    const size = options.transient ? volume.cowSize! : cowSize();
    expect(size).toBeLessThanOrEqual(ENOUGH);
  });

  test('is not overflowed by a burst of writes to the origin', async () => {
    await fork();
    await write(0, 256, 'disk');
    expect(await forks.volumes()).toMatchObject([{ name: 'dev', state: 'active', used: MIB }, { name: 'disk' }]);
    const found = Buffer.alloc(MIB);
    await mapper.device({ name: 'dev' }).read(bytes(0), found, 0, MIB);
    expect(found.equals(Buffer.alloc(MIB, 'origin. '))).toBe(true);
  });

  test('that can hold everything grows no more, and says nothing of it', async () => {
    await fork({ autoextend: { threshold: 1, percent: 1000 } });
    await write(0, 256);
    clock.pass(5000);
    expect(cowSize()).toBe(ENOUGH);
    expect(told.every(({ event }) => event === 'extend')).toBe(true);
  });

  test('grows to its limit, says once that it is reached, and the fork overflows as it would have', async () => {
    await fork({ autoextend: { threshold: 70, percent: 20, limit: 22 * CHUNK } });
    await write(0, 14);
    clock.pass(1000);
    expect(cowSize()).toBe(22 * CHUNK);
    clock.pass(5000);
    await write(14, 6);
    expect(await status()).toBe('176/176 16');
    await expect((async () => write(20, 1))()).rejects.toMatchObject({ code: 'SNAPSHOT_OVERFLOW' });
    expect(await status()).toBe('Overflow');
    expect(told).toEqual([
      { event: 'extend', cow, from: 20 * CHUNK, size: 22 * CHUNK },
      {
        event: 'extend-failed',
        cow,
        size: 22 * CHUNK,
        code: 'LIMIT',
        message: `its limit of ${22 * CHUNK} bytes is reached`,
      },
    ]);
    expect(cowSize()).toBe(22 * CHUNK);
  });

  test('on a disk that is full says so once, and grows when there is room again', async () => {
    await fork();
    fillDisk();
    await write(0, 15);
    clock.pass(5000);
    expect(told).toEqual([
      {
        event: 'extend-failed',
        cow,
        size: 20 * CHUNK,
        code: 'SYSTEM_ENOSPC',
        message: `Cannot extend ${cow}: No space left on device`,
      },
    ]);
    await restart();
    clock.pass(1000);
    expect(told).toEqual([{ event: 'extend', cow, from: 20 * CHUNK, size: 29 * CHUNK }]);
  });

  test('on a disk that stays full lets the fork overflow, its image unharmed', async () => {
    await fork();
    fillDisk();
    await write(0, 18);
    await expect((async () => write(18, 1))()).rejects.toMatchObject({ code: 'SNAPSHOT_OVERFLOW' });
    expect(told).toHaveLength(1);
    expect(await forks.volumes()).toMatchObject([{ state: 'Overflow' }, { state: 'active' }]);
  });

  test('grows after a restart, and after a rename, as before', async () => {
    await fork();
    await restart();
    await mapper.rename({ name: 'dev' }, 'new');
    await write(0, 100, 'new');
    expect((await forks.volumes()).find(({ name }) => name === 'new')).toMatchObject({ state: 'active' });
    expect(cowSize()).toBeGreaterThan(100 * CHUNK);
  });

  test('is found by another path', async () => {
    symlinkSync(directory, join(directory, 'link'));
    await fork({ cow: join(directory, 'link', 'dev.cow') });
    await write(0, 100);
    expect(await status()).not.toBe('Overflow');
  });

  test('of another table over the fork’s name is left as it is', async () => {
    await fork();
    const other = join(directory, 'other.cow');
    writeFileSync(other, Buffer.alloc(20 * CHUNK));
    await mapper.load({ name: 'dev' }, [
      { start: 0, length: MIB / 512, type: 'snapshot', args: `${image} ${other} PO 8` },
    ]);
    await mapper.resume({ name: 'dev' });
    await expect((async () => write(0, 30))()).rejects.toMatchObject({ code: 'SNAPSHOT_OVERFLOW' });
    expect([statSync(other).size, cowSize(), told]).toEqual([20 * CHUNK, 20 * CHUNK, []]);
  });

  test('that was there before grows from the size it has', async () => {
    await fork({ autoextend: undefined });
    await write(0, 4);
    await forks.drop('dev', { keepCow: true });
    await fork({ cowSize: 30 * CHUNK });
    expect(cowSize()).toBe(30 * CHUNK);
    await write(4, 100);
    expect(await status()).toMatch(/^848\//);
  });

  test('which grows is shown with its fork, one that does not is not', async () => {
    await fork({ autoextend: { threshold: 70, percent: 20, limit: MIB } });
    await forks.fork(image, 'plain');
    expect(await forks.volumes()).toMatchObject([
      { name: 'dev', autoextend: { threshold: 70, percent: 20, limit: MIB }, cowSize: 20 * CHUNK },
      { name: 'disk' },
      { name: 'plain', cowSize: (2 + 64) * 16384 },
    ]);
    expect((await forks.volumes())[2].autoextend).toBeUndefined();
  });
});

test('nothing is looked at when the last fork that grows is gone', async () => {
  await fork();
  clock.pass(1000);
  expect(clock.timers).toBe(1);
  await forks.drop('dev');
  clock.pass(1000);
  expect(clock.timers).toBe(0);
});

test.each<[string, ForkOptions]>([
  ['a threshold of 0', { autoextend: { threshold: 0, percent: 20 } }],
  ['a threshold above 100', { autoextend: { threshold: 101, percent: 20 } }],
  ['half a percent', { autoextend: { threshold: 70, percent: 0.5 } }],
  ['a growth by nothing', { autoextend: { threshold: 70, percent: 0 } }],
  ['a limit below the size', { autoextend: { threshold: 70, percent: 20, limit: 19 * CHUNK } }],
  ['no size to begin with', { cowSize: undefined }],
])('%s is refused, and nothing is made', async (_what, options) => {
  await expect(fork(options)).rejects.toMatchObject({
    code: 'FORK_AUTOEXTEND',
    errno: 'EINVAL',
    hint: expect.any(String),
  });
  expect([await mapper.list(), existsSync(cow)]).toEqual([[], false]);
});

test.each([
  { threshold: 'x', percent: 20, chunkSize: CHUNK },
  { threshold: 70, percent: 20 },
  { threshold: 70, percent: 20, chunkSize: CHUNK, limit: -1 },
  'yes',
])('a state with the policy %j is none', (autoextend) => {
  const record = { uuid: 'u', role: 'fork', image: '/disk.img', autoextend };
  expect(stateFault({ major: 254, devices: [], forks: [record] })).toMatch(/^fork 0 in it is/);
});

test('a COW file that was cut short does not grow: what it had would read as zeroes', async () => {
  await fork();
  await write(0, 11);
  truncateSync(cow, 10 * CHUNK);
  clock.pass(5000);
  await expect((async () => write(20, 1))()).rejects.toMatchObject({ code: 'SNAPSHOT_OVERFLOW' });
  expect([cowSize(), told]).toEqual([10 * CHUNK, []]);
});
