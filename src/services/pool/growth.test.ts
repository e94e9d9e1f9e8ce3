import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Disks } from '../../device/open.ts';
import { systemClock } from '../../lib/clock.ts';
import { Mapper } from '../../mapper/mapper.ts';
import { Pool } from '../../targets/thin/pool.ts';
import { FakeClock } from '../../testing/fake-clock.ts';
import { bytes } from '../../units.ts';
import type { EventBody } from '../events/event.ts';
import { Monitor } from '../events/monitor.ts';
import { Forks } from '../fork/forks.ts';
import { statusOf } from './pool-status.ts';

const KIB = 1024;
const MIB = 1024 * KIB;

let directory: string;
let mapper: Mapper;
let forks: Forks;
let monitor: Monitor;
let clock: FakeClock;
let told: EventBody[];
let log: string[];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-growth-'));
  [told, log] = [[], []];
  clock = new FakeClock();
  begin();
});

function begin(): void {
  mapper = new Mapper({ opener: new Disks(), onChange: (kind, device) => monitor.changed(kind, device) });
  forks = new Forks({ mapper, emit: (_device, body) => told.push(body), log: (line) => log.push(line) });
  monitor = new Monitor({
    mapper,
    log: {
      emit: (_device, body) => told.push(body),
      waiting: 0,
      events: async () => ({ events: [], next: 0, lost: false }),
    },
    pooled: (device, status) => forks.growth.filled(device, status),
    warn: (device, part, percent) => forks.growth.warn(device, part, percent),
    needed: () => forks.growth.needed,
    clock,
  });
}

afterEach(async () => {
  Pool.clock = systemClock;
  monitor.close();
  await mapper.close();
  rmSync(directory, { recursive: true });
});

const file = () => join(directory, 'pool.img');
const meta = () => join(directory, 'pool.meta');

/** 16 blocks of data, and a volume of more than that. */
async function make(options = {}) {
  await forks.createPool(file(), { size: MIB, ...options });
  await forks.createVolume('pool', 'dev', { size: 16 * MIB });
  monitor.begin();
  told.length = 0;
}

const extended = () => told.filter(({ event }) => event.startsWith('pool-extend'));

async function write(at: number, length: number, name = 'dev') {
  const open = mapper.open({ name });
  try {
    await open.device.write(bytes(at), Buffer.alloc(length, 'mine'), 0, length);
    await open.device.flush();
  } finally {
    await open.close();
  }
}

const sizeOf = async () => (await forks.volumes()).find(({ name }) => name === 'pool')!;
const policy = { threshold: 75, percent: 50 };

/** Until what was begun in the background has ended. */
const settled = () => forks.growth.settled();

describe.each([
  ['one file', {}],
  ['two files', { metadata: true }],
])('a pool in %s', (_what, { metadata = false }: { metadata?: boolean }) => {
  const options = (more = {}) => ({ ...(metadata && { metadata: meta() }), ...more });

  test('is extended by command, in use, and keeps what it holds', async () => {
    await make(options());
    const before = statSync(file()).size;
    await write(0, MIB);
    expect(await forks.extendPool('pool', 3 * MIB - 1)).toMatchObject({ name: 'pool', size: 3 * MIB });
    expect(statSync(file()).size).toBe(before + 2 * MIB);
    await write(MIB, 2 * MIB);
    expect(extended()).toEqual([{ event: 'pool-extend', part: 'data', from: MIB, size: 3 * MIB }]);
    const into = Buffer.alloc(4);
    await mapper.device({ name: 'dev' }).read(bytes(3 * MIB - 4096), into, 0, 4);
    expect(into.toString()).toBe('mine');
  });

  test('grows when so much of it is used, before it is full', async () => {
    await make(options({ autoextend: policy }));
    await write(0, 11 * 64 * KIB);
    clock.pass(1000);
    expect(extended()).toEqual([]);
    await write(11 * 64 * KIB, 64 * KIB);
    clock.pass(1000);
    await settled();
    expect(extended()).toEqual([{ event: 'pool-extend', part: 'data', from: MIB, size: 1.5 * MIB }]);
    expect(await sizeOf()).toMatchObject({ size: 1.5 * MIB, used: 0.75 * MIB });
  });

  test('that is filled in one go goes on with what waited for space', async () => {
    await make(options({ autoextend: policy }));
    // Nobody fires this clock: writes wait until there is room.
    Pool.clock = new FakeClock();
    await write(0, 10 * MIB);
    await settled();
    expect((await sizeOf()).size).toBeGreaterThan(10 * MIB);
    expect((await sizeOf()).state).toBe('active');
  });

  test('goes on growing while what waited for space fills it again, before anybody looks', async () => {
    Pool.clock = new FakeClock();
    await make(options({ autoextend: policy }));
    monitor.close();
    const device = mapper.device({ name: 'pool' });
    const writes = write(0, 10 * MIB);
    while (statusOf(device)?.mode !== 'out_of_data_space') await new Promise((turn) => setImmediate(turn));
    forks.growth.filled(device, statusOf(device)!);
    await writes;
  });

  test('grows, also by command, while a volume is forked whose writes wait for space', async () => {
    Pool.clock = new FakeClock();
    await make(options());
    const writes = write(0, 2 * MIB);
    const forked = forks.createVolume('pool', 'fork', { volume: 'dev' });
    expect(await forks.extendPool('pool', 4 * MIB)).toMatchObject({ size: 4 * MIB });
    expect(await forked).toMatchObject({ origin: 'pool/dev' });
    await writes;
  });

  test('stops at its limit, says so once, and then is full', async () => {
    Pool.clock = new FakeClock();
    await make(options({ autoextend: { ...policy, limit: 2 * MIB } }));
    await write(0, 2 * MIB);
    await settled();
    for (let second = 0; second < 3; second++) clock.pass(1000);
    expect((await sizeOf()).size).toBe(2 * MIB);
    expect(extended().filter(({ event }) => event === 'pool-extend-failed')).toEqual([
      { event: 'pool-extend-failed', code: 'LIMIT', message: `its limit of ${2 * MIB} bytes is reached` },
    ]);
    expect(log).toContain(`pool did not grow: its limit of ${2 * MIB} bytes is reached`);
    expect(await sizeOf()).toMatchObject({ note: expect.stringMatching(/^pool is 100% full: dmkit pool extend pool/) });
  });
});

test('the metadata of a pool in two files grows too', async () => {
  await make({ metadata: meta(), autoextend: { threshold: 12, percent: 100, limit: MIB } });
  const before = statSync(meta()).size;
  for (let id = 100; id < 200; id++) await mapper.message({ name: 'pool' }, 0, `create_thin ${id}`);
  clock.pass(1000);
  await settled();
  expect(extended()).toEqual([
    { event: 'pool-extend', part: 'metadata', from: before, size: Math.ceil((2 * before) / MIB) * MIB },
  ]);
  expect((await sizeOf()).metadataSize).toBe(statSync(meta()).size);
  await write(0, MIB);
});

test('without a policy its users are warned in the log, by steps of 5 percent from 80 on', async () => {
  await make();
  for (let block = 0; block < 15; block++) {
    await write(block * 64 * KIB, 64 * KIB);
    clock.pass(1000);
  }
  expect(log).toEqual(['pool: its data is 80% full', 'pool: its data is 85% full', 'pool: its data is 90% full']);
  expect(told.filter(({ event }) => event === 'pool-fill').map((body) => 'percent' in body && body.percent)).toEqual([
    5, 10, 15, 25, 30, 35, 40, 50, 55, 60, 65, 75, 80, 85, 90,
  ]);
  expect(await sizeOf()).toMatchObject({ note: expect.stringMatching(/^pool is 93% full/) });
  expect(await forks.createVolume('pool', 'more', { size: MIB })).toMatchObject({ note: /93% full/ });
});
