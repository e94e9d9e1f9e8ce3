/**
 * Many clients of one daemon at once, some of which break off: every call ends with success or with an error that says
 * why, and what is there afterwards is the sum of what succeeded. `RACES_SEED` gives other races.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { connect as connectSocket } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { DeviceMapper, DmError, type RemoteMapper } from '../../src/api/index.ts';
import { type Prng, prng } from '../../src/lib/prng.ts';
import { CALLS, type CallName } from '../../src/services/daemon/calls.ts';
import { PROGRAM, World } from './program.ts';

const SEED = Number(process.env.RACES_SEED ?? 1);
const DEVICES = ['a', 'b'];
const FORKS = ['c', 'd'];
/** Of the pool `p`, which comes and goes. */
const VOLUMES = ['e', 'f'];
const ZERO = [{ start: 0, length: 8, type: 'zero', args: '' }];

let world: World;

beforeEach(() => {
  world = new World();
  writeFileSync(world.path('disk.img'), Buffer.alloc(1024 * 1024, 'origin. '));
});

afterEach(() => world.close());

const connect = (start = true) => DeviceMapper.connect({ run: world.run, state: world.state, start });
const image = () => world.path('disk.img');
const pool = () => world.path('p.img');

/** No call runs any more. Also those of clients that have gone. */
async function idle(dm: RemoteMapper): Promise<void> {
  while ((await dm.daemon()).calls > 0) await turn();
}

/** Everything is whole: no device without a table, no COW file without its fork, no origin without a fork, no file without its pool. */
async function expectWhole(dm: RemoteMapper): Promise<string[]> {
  await idle(dm);
  expect((await dm.daemon()).fault).toBeUndefined();
  const volumes = (await dm.volumes()).filter(({ internal }) => !internal);
  for (const { name, state, note } of volumes) {
    expect([name, state, note]).toEqual([name, expect.stringMatching(/active|suspended/), undefined]);
  }
  const forks = volumes.filter(({ type }) => type === 'snapshot');
  const cows = forks.map(({ cow }) => cow).sort();
  const files = readdirSync(world.directory).filter((name) => name.endsWith('.cow'));
  expect(files.map((name) => world.path(name)).sort()).toEqual(cows);
  const origins = volumes.filter(({ type }) => type === 'snapshot-origin');
  expect(origins.map(({ state }) => state)).toEqual(forks.length > 0 ? ['active'] : []);
  expect(existsSync(pool())).toBe(volumes.some(({ name }) => name === 'p'));
  const log = readFileSync(world.path('state/dmkit.log'), 'utf8');
  expect(log).not.toMatch(/^\s+at |unhandled|fatal/m);
  const names = volumes.map(({ name }) => name);
  return names.filter((name) => !origins.some((origin) => origin.name === name));
}

/** What a restart brings back is what was there. */
async function expectKept(dm: RemoteMapper): Promise<void> {
  const show = async () =>
    (await dm.volumes()).map(({ name, type, state, cow }) => [name, type, state === 'suspended', cow]);
  const before = await show();
  await world.kill();
  dm = await connect();
  expect(await show()).toEqual(before);
  await expectThins(dm);
}

/** The pool has the thin devices of its volumes, and no other. */
async function expectThins(dm: RemoteMapper): Promise<void> {
  const ids = (await dm.volumes()).flatMap(({ id }) => (id === undefined ? [] : [id])).sort((a, b) => a - b);
  await world.ok('dmkit', 'down');
  if (!existsSync(pool())) return expect(ids).toEqual([]);
  const rows = await world.ok('dmkit', 'thin', 'ls', '--no-headers', '-o', 'DEV', pool());
  expect(rows.split('\n').filter(Boolean).map(Number)).toEqual(ids);
  await world.ok('dmkit', 'thin', 'check', pool());
}

/** How often each name came and went, by what succeeded. */
class Ledger {
  readonly #count = new Map<string, number>();

  came(name: string, by = 1): void {
    this.#count.set(name, (this.#count.get(name) ?? 0) + by);
  }

  went(name: string): void {
    this.came(name, -1);
  }

  get left(): string[] {
    expect([...this.#count.values()].filter((count) => count !== 0 && count !== 1)).toEqual([]);
    return [...this.#count].filter(([, count]) => count === 1).map(([name]) => name);
  }
}

type Succeeded = (ledger: Ledger) => void;

/** A command that somebody may give at any time, and what its success means. */
function anyCommand(random: Prng): [argv: string[], succeeded?: Succeeded] {
  const [device, other] = [random.pick(DEVICES), random.pick(DEVICES)];
  const fork = random.pick(FORKS);
  const [volume, from] = [random.pick(VOLUMES), random.pick(VOLUMES)];
  const any = random.pick([device, fork, volume]);
  const commands: [string[], Succeeded?][] = [
    [['dmsetup', 'create', device, '--table', '0 8 zero'], (ledger) => ledger.came(device)],
    [['dmsetup', 'create', device, '--table', '0 8 zero'], (ledger) => ledger.came(device)],
    [['dmsetup', 'remove', device], (ledger) => ledger.went(device)],
    [
      ['dmsetup', 'rename', device, other],
      (ledger) => {
        ledger.went(device);
        ledger.came(other);
      },
    ],
    [['fork', image(), fork], (ledger) => ledger.came(fork)],
    [['fork', image(), fork], (ledger) => ledger.came(fork)],
    [['drop', fork], (ledger) => ledger.went(fork)],
    [['revert', fork]],
    [['pool', 'create', pool(), '--size', '1m'], (ledger) => ledger.came('p')],
    [['pool', 'volume', `p/${volume}`, '--size', '1m'], (ledger) => ledger.came(volume)],
    [['fork', from, `p/${volume}`], (ledger) => ledger.came(volume)],
    [['drop', volume], (ledger) => ledger.went(volume)],
    [['drop', 'p'], (ledger) => ledger.went('p')],
    [['pool', 'extend', 'p', '--size', '2m']],
    [['dmsetup', 'suspend', any]],
    [['dmsetup', 'resume', any]],
    [['dmsetup', 'load', device, '--table', '0 16 zero']],
    [['dmsetup', 'status']],
    [['ls', '--json']],
  ];
  return random.pick(commands);
}

/** What commands may answer: the reason, never a stack or silence. */
function expectSensible(argv: readonly string[], { status, stderr }: { status: number; stderr: string }): void {
  expect([argv, status === 0 ? '' : stderr]).toEqual([
    argv,
    status === 0
      ? ''
      : expect.stringMatching(/^(dmkit: |device-mapper: |Cannot |Device .*not exist|Device \S+ not found)/),
  ]);
  expect(stderr).not.toMatch(/^\s+at |INTERNAL|fault in dmkit|went away|[Uu]nexpected/m);
}

test('commands that race, also with the end of the daemon, leave the sum of those that succeeded', async () => {
  const random = prng(SEED);
  const ledger = new Ledger();
  for (let round = 0; round < 6; round++) {
    const commands = Array.from({ length: 12 }, () => anyCommand(random));
    // Half of the rounds end the daemon in the middle of it; whoever comes later starts it again.
    if (round % 2 === 1) commands.splice(4, 0, [['down']]);
    const results = await Promise.all(commands.map(([argv]) => world.dmkit(...argv)));
    for (const [index, [argv, succeeded]] of commands.entries()) {
      expectSensible(argv, results[index]);
      if (results[index].status === 0) succeeded?.(ledger);
    }
    expect(await expectWhole(await connect())).toEqual(ledger.left.sort());
  }
  await expectKept(await connect());
}, 600_000);

/** As the command line, in this process. Rejects as the daemon does. */
async function call(dm: RemoteMapper, [program, ...words]: readonly string[]): Promise<void> {
  const device = { name: words[1] };
  if (program === 'fork' && VOLUMES.includes(words[0]))
    await dm.createVolume('p', words[1].slice(2), { volume: words[0] });
  else if (program === 'fork') await dm.fork(words[0], words[1]);
  else if (program === 'pool' && words[0] === 'create') await dm.createPool(words[1], { size: 2 ** 20 });
  else if (program === 'pool' && words[0] === 'extend') await dm.extendPool(words[1], 2 ** 21);
  else if (program === 'pool') await dm.createVolume('p', words[1].slice(2), { size: 2 ** 20 });
  else if (program === 'drop') await dm.drop(words[0]);
  else if (program === 'revert') await dm.revert({ name: words[0] });
  else if (program === 'ls') await dm.volumes();
  else if (words[0] === 'create') await dm.create(words[1], { table: ZERO });
  else if (words[0] === 'rename') await dm.rename(device, words[2]);
  else if (words[0] === 'load') await dm.load(device, ZERO);
  else if (words[0] === 'status') await dm.list();
  else await dm[words[0] as 'remove' | 'suspend' | 'resume'](device);
}

/** A fork that is merged at once, if no other is at that moment. */
async function forkAndMerge(dm: RemoteMapper, name: string): Promise<void> {
  await dm.fork(image(), name);
  try {
    for (let since: number | undefined, state = (await dm.merge(name)).state; state === 'merging'; )
      ({ state, version: since } = await dm.mergeProgress(name, { since }));
  } catch (error) {
    await dm.drop(name);
    throw error;
  }
}

test('two thousand calls at once leave the sum of those that succeeded', async () => {
  const random = prng(SEED);
  const ledger = new Ledger();
  const dm = await connect();
  let [left, merges] = [2000, 0];
  const client = async () => {
    while (left-- > 0) {
      const [argv, succeeded] = anyCommand(random);
      try {
        if (left % 20 === 0) await forkAndMerge(dm, `merged${left}`).then(() => merges++);
        await call(dm, argv);
        succeeded?.(ledger);
      } catch (error) {
        if (!(error instanceof DmError)) throw error;
        expect([argv, error.code]).toEqual([argv, expect.not.stringMatching(/INTERNAL|PROTOCOL|DAEMON|SYSTEM|^IO$/)]);
      }
    }
  };
  await Promise.all(Array.from({ length: 16 }, client));
  expect(merges).toBeGreaterThan(0);
  expect(await expectWhole(dm)).toEqual(ledger.left.sort());
  await expectKept(dm);
});

/** A request that is right, as bytes. */
function requestOf(name: CallName, body: object): Buffer {
  const text = JSON.stringify(body);
  return Buffer.from(
    `POST /v1/${name} HTTP/1.1\r\nHost: dmkit\r\nContent-Type: application/json\r\nContent-Length: ${text.length}\r\n\r\n${text}`,
  );
}

const EXAMPLES: Partial<Record<CallName, object>> = {
  create: { name: 'new', options: { table: ZERO } },
  load: { device: { name: 'a' }, table: ZERO },
  message: { device: { name: 'a' }, sector: 0, text: 'hello' },
  rename: { device: { name: 'a' }, newName: 'renamed' },
  setUuid: { device: { name: 'a' }, uuid: 'U' },
  setGeometry: { device: { name: 'a' }, geometry: [1, 1, 1, 0] },
  wait: { device: { name: 'a' }, event: 0 },
};

/** The request of any call, about devices that are there. */
function example(name: CallName): object {
  if (EXAMPLES[name]) return EXAMPLES[name];
  const values: Record<string, unknown> = { device: { name: 'a' }, name: 'c', image: image() };
  if (name === 'fork') values.name = 'new';
  return Object.fromEntries(Object.keys(CALLS[name]).flatMap((key) => (key in values ? [[key, values[key]]] : [])));
}

/** Sends bytes and breaks off. Resolves when the connection is gone. */
function breakOff(bytes: Buffer, how: 'destroy' | 'end'): Promise<void> {
  return new Promise((resolve) => {
    const socket = connectSocket(world.path('run/control.sock'), () => {
      if (how === 'end') socket.end(bytes);
      else socket.write(bytes, () => socket.destroy());
    });
    socket.on('error', () => {});
    socket.on('close', () => resolve());
    socket.resume();
  });
}

test('a request that is cut anywhere changes nothing', async () => {
  const dm = await connect();
  await dm.create('a', { table: ZERO });
  await dm.fork(image(), 'c');
  const before = await dm.list();
  const random = prng(SEED);
  for (const name of Object.keys(CALLS) as CallName[]) {
    const request = requestOf(name, example(name));
    const body = request.indexOf('\r\n\r\n') + 4;
    const cuts = [1, body - 2, body, request.length - 1, random.below(request.length), random.below(request.length)];
    await Promise.all(
      cuts
        .filter((cut) => cut < request.length)
        .map((cut, i) => breakOff(request.subarray(0, cut), i % 2 === 0 ? 'destroy' : 'end')),
    );
  }
  expect((await dm.daemon()).pid).toBe(world.pid);
  expect(await dm.list()).toEqual(before);
  expect(await expectWhole(dm)).toEqual(['a', 'c']);
});

test('a call whose client goes before its answer is carried out in full', async () => {
  const dm = await connect();
  await dm.fork(image(), 'c');
  // Neither `suspend` nor `resume`: they end with their client.
  const sequence: [CallName, object][] = [
    ['create', { name: 'a', options: { table: ZERO } }],
    ['create', { name: 'b', options: { table: ZERO } }],
    ['rename', { device: { name: 'b' }, newName: 'e' }],
    ['load', { device: { name: 'a' }, table: [{ ...ZERO[0], length: 16 }] }],
    ['fork', { image: image(), name: 'd' }],
    ['revert', { device: { name: 'd' } }],
    ['drop', { name: 'c' }],
    ['remove', { device: { name: 'e' } }],
  ];
  for (const [name, body] of sequence) {
    await breakOff(requestOf(name, body), 'destroy');
    // The request has been read when a later one is answered; then it is waited for.
    await dm.daemon();
    await idle(dm);
  }
  expect(await expectWhole(dm)).toEqual(['a', 'd']);
  expect(await dm.resume({ name: 'a' })).toMatchObject({ size: 8192 });
  await expectKept(dm);
});

test('a command that is killed leaves its work undone or done', async () => {
  const random = prng(SEED);
  const dm = await connect();
  await dm.fork(image(), 'c');
  for (let round = 0; round < 12; round++) {
    const [argv] = anyCommand(random);
    const child: ChildProcess = spawn(PROGRAM, argv, { cwd: world.directory, env: world.env, stdio: 'ignore' });
    const calls = random.below(3);
    // Before it is loaded, when its request is there, or when it is about to end.
    if (calls > 0) while (child.exitCode === null && (await dm.daemon()).calls < 1) await turn();
    child.kill('SIGKILL');
    await new Promise((ended) =>
      child.exitCode === null && child.signalCode === null ? child.on('exit', ended) : ended(0),
    );
    await expectWhole(dm);
  }
  await expectKept(dm);
});
