/** Engines that are told what to answer, and when: what other calls meet while devices move. */
import { setImmediate as turn } from 'node:timers/promises';
import { beforeEach, expect, test } from 'vitest';
import type { SavedDevice } from '../../mapper/saved-device.ts';
import { FakeClock } from '../../testing/fake-clock.ts';
import type { ForksState } from '../fork/records.ts';
import { Engines, type StartedEngine } from './engines.ts';
import { Registry } from './registry.ts';

const MAJOR = 254;
const OVER = [{ start: 0, length: 8, type: 'linear', args: 'fa 0' }];
const OVER_BOTH = [...OVER, { start: 8, length: 8, type: 'linear', args: 'fb 0' }];

class Fake implements StartedEngine {
  devices: SavedDevice[] = [];
  /** In the order of coming, with the signal. */
  calls: [call: string, signal?: AbortSignal][] = [];
  /** Calls that wait for what is here. */
  answers: Record<string, Promise<unknown>> = {};
  readonly #number: number;

  constructor(number: number) {
    this.#number = number;
  }

  async state(): Promise<ForksState> {
    return { devices: this.devices, forks: [] };
  }

  async call<T>(call: string, args: readonly unknown[], signal?: AbortSignal): Promise<T> {
    this.calls.push([call, signal]);
    return ((await this.answers[call]) ?? (await this.#answer(call, args))) as T;
  }

  async end(): Promise<void> {}

  async #answer(call: string, args: readonly unknown[]): Promise<unknown> {
    const { devices } = this;
    if (call === 'state') return this.state();
    if (call === 'holds') return false;
    if (call === 'isBound') return true;
    if (call === 'leave') {
      const left = devices.filter(({ name }) => (args[0] as string[]).includes(name));
      this.devices = devices.filter((device) => !left.includes(device));
      return { devices: left, forks: [] };
    }
    if (call === 'join') {
      const { devices: joining } = args[0] as ForksState;
      for (const { name, uuid, minor } of joining) await registry.claimsOf(this.#number).add(name, uuid, minor);
      this.devices = [...devices, ...joining];
      return [];
    }
  }

  came(call: string): number {
    return this.calls.filter(([name]) => name === call).length;
  }
}

let clock: FakeClock;
let registry: Registry;
let engines: Engines;
let fakes: Fake[];

beforeEach(async () => {
  clock = new FakeClock();
  registry = new Registry(MAJOR, () => {});
  fakes = [new Fake(0), new Fake(1)];
  const start = async () => fakes[1];
  engines = new Engines({ major: MAJOR, registry, local: fakes[0], max: 1, start, clock });
  await engines.fork('/nonexistent/a.img', 'fa', {}, []);
  await add('fa', 0);
  await engines.fork('/nonexistent/b.img', 'fb', {}, []);
  await add('fb', 1, '/nonexistent/b.img 0');
  expect(fakes.map((fake) => fake.came('fork'))).toEqual([1, 1]);
});

async function add(name: string, engine: number, args = ''): Promise<void> {
  const flags = { readOnly: false, suspended: false, deferredRemove: false, readAheadMinimum: false };
  const table = [{ start: 0, length: 8, type: 'linear', args }];
  const minor = await registry.claimsOf(engine).add(name, '', undefined);
  fakes[engine].devices.push({ name, uuid: '', minor, table, eventNumber: 0, ...flags });
}

function wait<T = unknown>() {
  let [resolve, reject] = [(_value: T) => {}, (_error: Error) => {}];
  const promise = new Promise<T>((yes, no) => ([resolve, reject] = [yes, no]));
  promise.catch(() => {});
  return { promise, resolve, reject };
}

async function until(condition: () => boolean): Promise<void> {
  for (let turns = 0; !condition(); turns++) {
    if (turns > 10_000) throw new Error('it does not come');
    await turn();
  }
}

const create = () => engines.load('x', OVER_BOTH, undefined, 'create', ['x']);
const names = async () => (await engines.state()).devices.map(({ name }) => name).sort();

test('what cannot be flushed soon stays where it is, and others wait for two seconds at most', async () => {
  const leaving = wait();
  fakes[1].answers.leave = leaving.promise;
  const creating = expect(create()).rejects.toMatchObject({ code: 'ENGINES_SHARED', errno: 'EBUSY' });
  await until(() => fakes[1].came('leave') === 1);
  const other = engines.call({ name: 'fa' }, 'status', []);
  const [, signal] = fakes[1].calls.at(-1)!;
  expect(signal?.aborted).toBe(false);
  clock.pass(2000);
  await turn();
  expect(signal?.aborted).toBe(true);
  leaving.reject(new Error('interrupted'));
  await creating;
  await other;
  expect(await names()).toEqual(['fa', 'fb']);
  await engines.call({ name: 'fb' }, 'status', []);
  expect(fakes[1].came('status')).toBe(1);
  expect(fakes[0].came('join')).toBe(0);
  delete fakes[1].answers.leave;
  await create();
  expect(fakes[0].came('create')).toBe(1);
});

test('of a disk that stops to answer in the middle only those hear who use it, until it has arrived', async () => {
  const leaving = wait<ForksState>();
  fakes[1].answers.leave = leaving.promise;
  const creating = expect(create()).rejects.toMatchObject({ code: 'ENGINES_SHARED' });
  await until(() => fakes[1].came('leave') === 1);
  clock.pass(4000);
  await creating;
  await engines.call({ name: 'fa' }, 'status', []);
  await engines.load('y', OVER, undefined, 'create', ['y']);
  const moving = { code: 'ENGINES_MOVING', errno: 'EBUSY' };
  expect(() => engines.of({ name: 'fb' })).toThrow(expect.objectContaining(moving));
  await expect(engines.call({ name: 'fb' }, 'remove', [])).rejects.toMatchObject(moving);
  await expect(create()).rejects.toMatchObject(moving);
  await expect(engines.fork('/nonexistent/b.img', 'other', {}, [])).rejects.toMatchObject(moving);
  await expect(engines.each('removeAll', [])).rejects.toMatchObject(moving);
  const left = { devices: fakes[1].devices, forks: [] };
  fakes[1].devices = [];
  expect(await names()).toEqual(['fa', 'fb']);
  leaving.resolve(left);
  await until(() => fakes[0].came('join') === 1);
  await turn();
  await engines.call({ name: 'fb' }, 'status', []);
  expect(fakes[0].came('status')).toBe(2);
  expect(await names()).toEqual(['fa', 'fb']);
});

test('nothing begins to move when the time is over', async () => {
  const bound = wait();
  fakes[1].answers.bound = bound.promise;
  const creating = expect(create()).rejects.toMatchObject({ code: 'ENGINES_SHARED' });
  await until(() => fakes[1].came('bound') === 1);
  clock.pass(4000);
  await creating;
  bound.resolve(undefined);
  await turn();
  expect(fakes[1].came('leave')).toBe(0);
});

test('who waits for an event, and gives up, does not wait for a move', async () => {
  const leaving = wait();
  fakes[1].answers.leave = leaving.promise;
  const creating = create();
  await until(() => fakes[1].came('leave') === 1);
  const abort = new AbortController();
  const waiting = engines.call({ name: 'fa' }, 'wait', [], abort.signal);
  const removing = engines.call({ name: 'fa' }, 'remove', [], abort.signal);
  abort.abort();
  await expect(waiting).rejects.toMatchObject({ code: 'INTERRUPTED' });
  leaving.reject(new Error('interrupted'));
  await expect(creating).rejects.toMatchObject({ code: 'ENGINES_SHARED' });
  // What was asked for is carried out, whoever has gone.
  await removing;
  expect([fakes[0].came('wait'), fakes[0].came('remove')]).toEqual([0, 1]);
});

test('what has left and cannot arrive is saved, and its name is not free', async () => {
  fakes[0].answers.join = Promise.reject(new Error('cannot'));
  fakes[0].answers.join.catch(() => {});
  await expect(create()).rejects.toMatchObject({ code: 'ENGINES_SHARED' });
  expect(await names()).toEqual(['fa', 'fb']);
  await expect(engines.call({ name: 'fb' }, 'status', [])).rejects.toMatchObject({ code: 'ENGINES_MOVING' });
  await expect(engines.fork('/nonexistent/c.img', 'fb', {}, [])).rejects.toMatchObject({ code: 'NAME_IN_USE' });
});

test('what is saved is what has left, not what was asked for before', async () => {
  const joining = wait();
  fakes[0].answers.join = joining.promise;
  fakes[1].answers.leave = (async () => {
    const [device] = fakes[1].devices;
    fakes[1].devices = [];
    return { devices: [{ ...device, eventNumber: 7 }], forks: [] };
  })();
  void create().catch(() => {});
  await until(() => fakes[0].came('join') === 1);
  expect((await engines.state()).devices.find(({ name }) => name === 'fb')?.eventNumber).toBe(7);
  joining.resolve([]);
});

test('a fork of the name of one whose merge is about to begin, elsewhere, waits, and is refused', async () => {
  const merge = wait();
  fakes[1].answers.merge = merge.promise;
  const merging = engines.ofFork('fb', 'merge', []);
  const forking = engines.fork('/nonexistent/a.img', 'fb', {}, []);
  await until(() => fakes[1].came('merge') === 1);
  await turn();
  fakes[1].answers.mergeOf = Promise.resolve('running');
  registry.claimsOf(1).hide(1);
  merge.resolve({});
  await merging;
  await expect(forking).rejects.toMatchObject({ code: 'MERGING' });
  expect(fakes[0].came('fork')).toBe(1);
});

test('a table for no device moves nothing', async () => {
  await engines.load({ name: 'none' }, OVER_BOTH, undefined, 'load', []);
  expect(fakes.map((fake) => [fake.came('load'), fake.came('leave')])).toEqual([
    [1, 0],
    [0, 0],
  ]);
});
