/**
 * Forks of three images and tables over them come, go, move between threads, are renamed and merged, by several clients at once, and
 * the daemon is killed in the middle of it, again and again. What was acknowledged must be there afterwards, and what was begun be there
 * whole or not at all. `FAULT_ROUNDS` and `FAULT_SEED` as in fault.test.ts.
 */
import { readdirSync, readFileSync, watch, writeFileSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { DeviceMapper, type RemoteMapper } from '../../src/api/index.ts';
import { openDisk } from '../../src/device/open.ts';
import { type Prng, prng } from '../../src/lib/prng.ts';
import { bytes, SECTOR } from '../../src/units.ts';
import { isRunning, World } from './program.ts';

const ROUNDS = Math.ceil(Number(process.env.FAULT_ROUNDS ?? 100) / 10);
const SEED = Number(process.env.FAULT_SEED ?? 1);
const SIZE = 512 * 1024;
const IMAGES = ['a', 'b', 'c'];
/** Saves of a round before the daemon is killed, at most. */
const SAVES_MAX = 60;
/** What a call may be refused with: others are at work on the same devices. */
const REFUSALS = new Set(['ENGINES_SHARED', 'MERGING', 'DEVICE_OPEN']);

let world: World;

beforeEach(() => {
  vi.stubEnv('DMKIT_ENGINES', '2');
  world = new World();
});

afterEach(async () => {
  vi.unstubAllEnvs();
  await world.close();
});

const connect = () => DeviceMapper.connect({ run: world.run, state: world.state, start: true });
const line = (name: string, start: number) => ({ start, length: SIZE / SECTOR, type: 'linear', args: `${name} 0` });

/** A fork that one client has, and nobody else names but in tables. */
interface Held {
  name: string;
  image: string;
  /** What its first sector holds; undefined: what the image has. */
  mark: number | undefined;
}

/** One client, and what it knows. */
class Client {
  readonly number: number;
  readonly #random: Prng;
  forks: Held[] = [];
  /** What is under way: names that may be there or not. */
  pending = new Set<string>();
  /** A table over two forks, or one. */
  table: string[] | undefined;
  #count = 0;

  constructor(number: number, random: Prng) {
    this.number = number;
    this.#random = random;
  }

  async step(dm: RemoteMapper): Promise<void> {
    const random = this.#random;
    const kind = random.below(8);
    if (this.forks.length === 0 || (kind === 0 && this.forks.length < 4)) return this.#fork(dm);
    const fork = random.pick(this.forks);
    if (kind === 1) return this.#gone(fork, () => dm.drop(fork.name));
    if (kind === 2) return this.#merge(dm, fork);
    if (kind === 3) return this.#rename(dm, fork);
    if (kind === 4) return this.#mark(dm, fork);
    if (this.table) return this.#remove(dm);
    return this.#create(dm, fork, random.pick(this.forks));
  }

  async #fork(dm: RemoteMapper): Promise<void> {
    const image = this.#random.pick(IMAGES);
    const name = `f${this.number}-${this.#count++}`;
    this.pending.add(name);
    if (!(await refused(dm.fork(world.path(`${image}.img`), name)))) this.forks.push({ name, image, mark: undefined });
    this.pending.delete(name);
  }

  async #gone(fork: Held, work: () => Promise<unknown>): Promise<void> {
    this.pending.add(fork.name);
    await refused(work()).then((isRefused) => {
      if (!isRefused) this.forks = this.forks.filter((other) => other !== fork);
    });
    this.pending.delete(fork.name);
  }

  /** Only of what has no mark: the image must stay as the others know it. */
  async #merge(dm: RemoteMapper, fork: Held): Promise<void> {
    if (fork.mark === undefined) return this.#gone(fork, () => dm.merge(fork.name));
  }

  async #rename(dm: RemoteMapper, fork: Held): Promise<void> {
    const name = `f${this.number}-${this.#count++}`;
    this.pending.add(fork.name).add(name);
    if (!(await refused(dm.rename({ name: fork.name }, name)))) fork.name = name;
    this.pending.clear();
  }

  async #mark(dm: RemoteMapper, fork: Held): Promise<void> {
    const mark = 1 + this.#random.below(50);
    this.pending.add(fork.name);
    const disk = await openDisk(dm.uri(fork.name), 'rw');
    try {
      await disk.write(bytes(0), Buffer.alloc(SECTOR, mark), 0, SECTOR);
      await disk.flush();
      fork.mark = mark;
    } finally {
      await disk.close();
    }
    this.pending.delete(fork.name);
  }

  async #create(dm: RemoteMapper, one: Held, other: Held): Promise<void> {
    const name = `t${this.number}`;
    const table = one === other ? [line(one.name, 0)] : [line(one.name, 0), line(other.name, SIZE / SECTOR)];
    this.pending.add(name);
    if (!(await refused(dm.create(name, { table })))) this.table = [one.name, other.name];
    this.pending.delete(name);
  }

  async #remove(dm: RemoteMapper): Promise<void> {
    const name = `t${this.number}`;
    this.pending.add(name);
    if (!(await refused(dm.remove({ name })))) this.table = undefined;
    this.pending.delete(name);
  }
}

async function refused(work: Promise<unknown>): Promise<boolean> {
  return work.then(
    () => false,
    (error) => {
      if (!REFUSALS.has(error.code)) throw error;
      return true;
    },
  );
}

/** Killed when the state has just been saved: that is what the next one begins with. */
async function churnAndKill(dm: RemoteMapper, clients: readonly Client[], random: Prng): Promise<void> {
  const { pid } = await dm.daemon();
  let left = 1 + random.below(SAVES_MAX);
  const watcher = watch(world.state, (_event, file) => {
    if (file === 'state.json' && --left === 0) process.kill(pid, 'SIGKILL');
  });
  const run = async (client: Client) => {
    while (left > 0)
      await client.step(dm).catch((error) => {
        if (left > 0) throw error;
      });
  };
  await Promise.all(clients.map(run)).finally(() => watcher.close());
  while (isRunning(pid)) await turn();
}

/** Before anything is brought back. */
function checkSaved(): void {
  const { devices, forks } = JSON.parse(readFileSync(`${world.state}/state.json`, 'utf8')).state;
  const unique = (values: unknown[]) => expect(values.filter((value, at) => values.indexOf(value) !== at)).toEqual([]);
  unique(devices.map(({ name }: { name: string }) => name));
  unique(devices.map(({ uuid }: { uuid: string }) => uuid).filter((uuid: string) => uuid !== ''));
  unique(devices.map(({ minor }: { minor: number }) => minor));
  unique(forks.map(({ uuid }: { uuid: string }) => uuid));
}

/** Merges that go on take their COW files with them. */
async function merged(dm: RemoteMapper): Promise<void> {
  for (const { state } of await dm.volumes()) {
    const [, name] = /^merging (\S+)/.exec(state) ?? [];
    let progress = name === undefined ? undefined : await dm.mergeProgress(name);
    while (progress?.state === 'merging') progress = await dm.mergeProgress(progress.name, { since: progress.version });
  }
}

async function check(dm: RemoteMapper, clients: readonly Client[]): Promise<void> {
  await merged(dm);
  const volumes = new Map((await dm.volumes()).map((volume) => [volume.name, volume]));
  const known = new Set<string>();
  for (const client of clients) {
    for (const fork of [...client.forks]) {
      const renamed = [...client.pending].find((name) => name !== fork.name && volumes.has(name));
      if (client.pending.has(fork.name) && !volumes.has(fork.name)) {
        if (renamed) fork.name = renamed;
        else client.forks = client.forks.filter((other) => other !== fork);
        if (!renamed) continue;
      }
      known.add(fork.name);
      const { state, note } = volumes.get(fork.name) ?? {};
      expect([fork.name, state, note]).toEqual([fork.name, 'active', undefined]);
      const disk = await openDisk(dm.uri(fork.name), 'r');
      const got = Buffer.alloc(SECTOR);
      await disk.read(bytes(0), got, 0, SECTOR);
      await disk.close();
      // A mark under way is there or not.
      const before = fork.mark ?? fork.image.charCodeAt(0);
      if (client.pending.has(fork.name) && got[0] !== before) fork.mark = got[0];
      else expect([fork.name, got[0]]).toEqual([fork.name, before]);
    }
    const table = `t${client.number}`;
    if (client.pending.has(table)) client.table = volumes.has(table) ? [] : undefined;
    expect([table, volumes.has(table)]).toEqual([table, client.table !== undefined]);
    for (const name of client.pending)
      if (volumes.has(name) && !known.has(name) && name !== table) await dm.drop(name).catch(() => known.add(name));
    client.pending.clear();
  }
}

test(`killed while forks come, go and move, nothing is lost, left over or there twice, ${ROUNDS} times`, async () => {
  const random = prng(SEED);
  for (const name of IMAGES) writeFileSync(world.path(`${name}.img`), Buffer.alloc(SIZE, name));
  let dm = await connect();
  const clients = [0, 1, 2].map((number) => new Client(number, prng(random.below(2 ** 32))));
  for (let round = 0; round < ROUNDS; round++) {
    try {
      await churnAndKill(dm, clients, random);
      checkSaved();
      dm = await connect();
      await check(dm, clients);
    } catch (error) {
      throw new Error(`round ${round} of seed ${SEED}: ${(error as Error).message}`, { cause: error });
    }
  }
  for (const client of clients) if (client.table) await dm.remove({ name: `t${client.number}` });
  await merged(dm);
  for (const { name } of (await dm.volumes()).filter(({ type }) => type === 'snapshot')) await dm.drop(name);
  expect(await dm.list()).toEqual([]);
  expect(readdirSync(world.directory).filter((name) => name.endsWith('.cow'))).toEqual([]);
  for (const name of IMAGES)
    expect(readFileSync(world.path(`${name}.img`)).equals(Buffer.alloc(SIZE, name))).toBe(true);
}, 600_000);
