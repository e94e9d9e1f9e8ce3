import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import type { Clock } from '../../lib/clock.ts';
import { Mapper } from '../../mapper/mapper.ts';
import { controlClient } from './control-client.ts';
import { ControlServer, type Handlers, stops } from './control-server.ts';
import { Daemon, type DaemonOptions } from './daemon.ts';
import { controlSocket } from './directories.ts';
import { lockInstance } from './instance-lock.ts';
import { startDaemon } from './start.ts';
import { StateFile } from './state-file.ts';

let directory: string;
let run: string;
let state: string;
let daemon: Daemon | undefined;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-daemon-'));
  run = join(directory, 'run');
  state = join(directory, 'state');
});

afterEach(async () => {
  await daemon?.end();
  await daemon?.closeControl();
  daemon = undefined;
  rmSync(directory, { recursive: true });
});

function once() {
  let fire = () => {};
  const fired = new Promise<void>((resolve) => (fire = resolve));
  return { fire, fired };
}

async function start(options: Partial<DaemonOptions> = {}) {
  daemon = await Daemon.start({ run, state, version: '0', log: () => {}, ...options });
  return controlClient(controlSocket(run));
}

describe('a state file that is JSON but', () => {
  test.each([
    ['has no list of devices', 5, /major/],
    ['has a major number that is none', { major: 1e9, devices: [], forks: [] }, /major number is 1000000000/],
    ['has no devices', { major: 252, forks: [] }, /no list of devices/],
    ['has no forks', { major: 252, devices: [] }, /no list of forks/],
    ['has a device that is null', { major: 252, devices: [null], forks: [] }, /device 0 in it is null/],
    ['has an empty device', { major: 252, devices: [{}], forks: [] }, /device 0 in it is {}/],
    [
      'has a table without arguments',
      {
        major: 252,
        devices: [{ name: 'a', uuid: '', minor: 0, table: [{ start: 0, length: 8, type: 'zero' }] }],
        forks: [],
      },
      /device 0 in it is {"name":"a"/,
    ],
    [
      'has two devices with one number',
      {
        major: 252,
        devices: [
          { name: 'a', uuid: '', minor: 0 },
          { name: 'b', uuid: '', minor: 0 },
        ],
        forks: [],
      },
      /Cannot take the minor 0/,
    ],
    ['has a fork that is null', { major: 252, devices: [], forks: [null] }, /fork 0 in it is null/],
  ])('%s is refused with what to do, and stays as it is', async (_what, content, why) => {
    mkdirSync(state, { mode: 0o700 });
    const text = JSON.stringify({ version: 1, state: content });
    writeFileSync(join(state, 'state.json'), text);
    await expect(start()).rejects.toMatchObject({
      code: 'STATE_CORRUPT',
      message: expect.stringMatching(why),
      hint: expect.stringContaining('state.json.bad'),
    });
    expect(readFileSync(join(state, 'state.json'), 'utf8')).toBe(text);
    // The locks are given back.
    rmSync(join(state, 'state.json'));
    await start();
  });
});

test('a daemon that has ended leaves the control socket to the next one', async () => {
  await start();
  const first = daemon!;
  await first.end();
  const client = await start();
  await first.closeControl();
  expect(await client.list()).toEqual([]);
});

test('nothing is started for a command while another daemon starts or ends; it finds the next one', async () => {
  mkdirSync(run, { mode: 0o700 });
  const lock = lockInstance(run);
  let asked = 0;
  const daemon = async () => {
    asked++;
    throw stops();
  };
  const ending = new ControlServer({ daemon } as unknown as Handlers);
  await ending.listen(controlSocket(run));
  const found = startDaemon({ run, state });
  // Whoever asks again has looked whether one has to be started.
  while (asked < 2) await turn();
  await ending.close();
  lock.release();
  await start();
  expect((await (await found).daemon()).pid).toBe(process.pid);
  // Of a process that is started.
  expect(readdirSync(state)).not.toContain('dmkit.log');
});

const ZERO = [{ start: 0, length: 8, type: 'zero', args: '' }];

test('what is saved while the devices are closed has them all, and is saved before the next daemon may start', async () => {
  const client = await start();
  await client.create('a', { table: ZERO });
  let saving = 0;
  const { save } = StateFile.prototype;
  vi.spyOn(StateFile.prototype, 'save').mockImplementation(function (this: StateFile<unknown>, content) {
    const saved = save.call(this, content);
    // As a device that tells of a change while the last state is written; its turn comes when that is done.
    const late = async () => {
      for (let turns = 0; turns < 10_000; turns++) await turn();
      return content();
    };
    saving++;
    save.call(this, late).catch(() => saving--);
    return saved;
  });
  await daemon!.end();
  expect(saving).toBe(0);
  await daemon!.closeControl();
  vi.restoreAllMocks();
  expect((await (await start()).list()).map(({ name }) => name)).toEqual(['a']);
});

describe('calls that run when the daemon is stopped', () => {
  const after: Clock['after'] = (_ms, call) => {
    late.push(call);
    return () => {};
  };
  let late: (() => void)[];
  let held: Record<string, ReturnType<typeof once>>;
  let calls: Record<string, Promise<unknown>>;

  /** Two of them, until each is let go. */
  beforeEach(async () => {
    late = [];
    const client = await start({ clock: { now: () => 0, after } });
    const { create } = Mapper.prototype;
    vi.spyOn(Mapper.prototype, 'create').mockImplementation(async function (this: Mapper, ...args) {
      await held[args[0]].fired;
      return create.apply(this, args);
    });
    held = { a: once(), b: once() };
    const begin = (name: string) => client.create(name, { table: ZERO });
    calls = { a: begin('a'), b: begin('b') };
    while ((await client.daemon()).calls < 2) await turn();
  });

  afterEach(() => vi.restoreAllMocks());

  const kept = async () => {
    await daemon!.closeControl();
    vi.restoreAllMocks();
    return (await (await start()).list()).map(({ name }) => name);
  };

  test('are waited for one after the other', async () => {
    const ended = daemon!.end();
    while (late.length === 0) await turn();
    held.a.fire();
    await calls.a;
    for (let turns = 0; turns < 10_000; turns++) await turn();
    held.b.fire();
    await ended;
    await calls.b;
    expect(await kept()).toEqual(['a', 'b']);
  });

  test('and outlast all patience have not succeeded', async () => {
    const refused = expect(calls.b).rejects.toMatchObject({ code: 'DAEMON_STOPS' });
    const ended = daemon!.end();
    held.a.fire();
    await calls.a;
    while (late.length < 2) await turn();
    late[1]();
    await ended;
    held.b.fire();
    await refused;
    expect(await kept()).toEqual(['a']);
  });
});

test('a call that waits when the daemon is stopped says so', async () => {
  const client = await start();
  await client.create('a', { table: ZERO });
  const { eventNumber } = await client.info({ name: 'a' });
  const waiting = expect(client.wait({ name: 'a' }, eventNumber)).rejects.toMatchObject({ code: 'DAEMON_STOPS' });
  while ((await client.daemon()).calls === 0) await turn();
  await client.down();
  await daemon!.closeControl();
  await waiting;
});

test('a fork is not begun when the state cannot be saved, as a crash would lose it', async () => {
  const client = await start();
  const image = join(directory, 'disk.img');
  writeFileSync(image, Buffer.alloc(65536));
  mkdirSync(join(state, 'state.json.new'));
  await expect(client.fork(image, 'dev')).rejects.toMatchObject({
    message: expect.stringContaining('Cannot save the tables'),
  });
  expect(await client.volumes()).toEqual([]);
  expect(readdirSync(directory).sort()).toEqual(['disk.img', 'run', 'state']);
  rmSync(join(state, 'state.json.new'), { recursive: true });
  await client.fork(image, 'dev');
  expect((await client.daemon()).fault).toBeUndefined();
});

test('no device is made and no table made live that could not be saved; what is there goes on', async () => {
  const client = await start();
  const zero = [{ start: 0, length: 8, type: 'zero', args: '' }];
  const a = { name: 'a' };
  await client.create('a');
  await client.load(a, zero);
  await client.resume(a);
  mkdirSync(join(state, 'state.json.new'));
  const refused = { message: expect.stringContaining('Cannot save the tables') };
  await expect(client.create('b')).rejects.toMatchObject(refused);
  await client.load(a, [{ ...zero[0], length: 16 }]);
  await expect(client.resume(a)).rejects.toMatchObject(refused);
  await client.clear(a);
  await client.suspend(a);
  await client.resume(a);
  expect((await client.list()).map(({ name, size }) => [name, size])).toEqual([['a', 4096]]);
  rmSync(join(state, 'state.json.new'), { recursive: true });
  await client.create('b');
  expect(await client.list()).toHaveLength(2);
});
