/**
 * A merge that one side began, the other one ends: dmkit and a real Linux kernel hand each other stores that are merged
 * in part, cut off by a suspend, a snapshot table or a loss of power at any moment. Whoever ends it, the origin then
 * holds what the snapshot showed, and other snapshots of that origin still show what they did.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type PowerOptions, PowerSupply, SimulatedDisk } from '../../src/device/simulated.ts';
import { type Prng, prng } from '../../src/lib/prng.ts';
import { Merging } from '../../src/targets/snapshot/merging.ts';
import { Session } from '../support/session.ts';
import { pattern, sha256 } from '../unit/golden.ts';
import { PATTERN_SECTORS, play, sharePatterns } from './play.ts';
import { Kernel } from './vm/vm.ts';

let kernel: Kernel;
beforeAll(async () => {
  kernel = await Kernel.boot();
  await sharePatterns(kernel);
});
afterAll(() => kernel?.close());
// So little at once that a merge of few chunks can be stopped on its way.
Merging.batch = 64 * 1024;

/** Of each case; `KERNEL_SEEDS=20 npm run test:kernel` takes more. */
const SEEDS = Array.from({ length: Number(process.env.KERNEL_SEEDS ?? 1) }, (_, i) => i + 1);
/** How often a merge is cut off in each of the ways there are. */
const CUTS = 2;
/** Milliseconds that each write and flush takes in the kernel, so that a merge can be caught on its way. */
const DELAY = 4;

/** A snapshot that is merged, and others of the same origin. */
interface Scene {
  /** Sectors. */
  chunk: number;
  origin: number;
  /** Of every COW device. */
  cow: number;
  /** `P 8`: the words after the devices, of the other snapshots. */
  others: string[];
  /** Of the writes before the merge. */
  sizes: number[];
}

const scenes: Scene[] = [
  { chunk: 1, origin: 6001, cow: 8192, others: ['P 8'], sizes: [1, 2, 5, 40] },
  { chunk: 8, origin: 12292, cow: 24576, others: ['PO 16', 'P 128'], sizes: [1, 8, 30, 64, 300] },
  { chunk: 16, origin: 16393, cow: 32768, others: [], sizes: [1, 8, 30, 64, 500] },
  { chunk: 128, origin: 32900, cow: 65536, others: ['P 16'], sizes: [1, 200, 500, 1024] },
];
const WRITES = 60;

const nameOther = (_: unknown, i: number) => `other${i}`;
const create = (name: string, table: string) => `run dmsetup create ${name} --table "${table}"`;
const load = (name: string, table: string) => `run dmsetup load ${name} --table "${table}"`;
const over = ({ origin, chunk }: Scene, type: 'snapshot' | 'snapshot-merge', cow = '/dev/loop1') =>
  `0 ${origin} ${type} /dev/mapper/base-real ${cow} P ${chunk}`;
const real = ({ origin }: Scene) => create('base-real', `0 ${origin} linear /dev/loop0 0`);
const others = ({ origin, others }: Scene) =>
  others.map((store, i) =>
    create(`other${i}`, `0 ${origin} snapshot /dev/mapper/base-real /dev/loop${i + 2} ${store}`),
  );
const sumsOfOthers = ({ others }: Scene) => others.map((_, i) => `sum other${i} other${i}`);
const sums = (scene: Scene) => ['sum base base', ...sumsOfOthers(scene)];
const remove = ({ others }: Scene) => ['base', ...others.map(nameOther)].map((name) => `run dmsetup remove ${name}`);

function put(random: Prng, { sizes, origin }: Scene, device: string): string {
  const size = random.pick(sizes);
  return `put b ${device} ${random.below(PATTERN_SECTORS - size + 1)} ${random.below(origin - size + 1)} ${size}`;
}

const begin = (scene: Scene) => [real(scene), ...others(scene), create('base', over(scene, 'snapshot-merge'))];
const finish = (scene: Scene) => [...begin(scene), 'merged base', 'state ended', ...remove(scene)];

/** A session over disks that can lose their power. */
class Here extends Session {
  readonly power: PowerSupply;
  readonly #disks: SimulatedDisk[];

  constructor(disks: readonly Uint8Array[], options: PowerOptions = {}) {
    super();
    this.power = new PowerSupply(options);
    this.#disks = disks.map((contents, i) => {
      const disk = new SimulatedDisk(contents.length, { name: `7:${i}`, power: this.power, contents });
      this.add(i, disk);
      return disk;
    });
  }

  /** Resolves when the disks have seen `count` operations, or lost their power. */
  async reaches(count: number): Promise<void> {
    while (this.power.on && this.power.count < count) await new Promise((resolve) => setImmediate(resolve));
  }

  /** The disks once no device is left. */
  async end(): Promise<Buffer[]> {
    await this.close();
    return this.#disks.map((disk) => Buffer.from(disk.snapshot()));
  }

  crash(seed: number): Buffer[] {
    return this.#disks.map((disk, i) => Buffer.from(disk.crash(seed + i)));
  }
}

interface Played {
  log: string[];
  disks: Buffer[];
}

async function playHere(disks: readonly Buffer[], scenario: string[]): Promise<Played> {
  const session = new Here(disks);
  const log = await session.play(scenario);
  return { log, disks: await session.end() };
}

async function playThere(
  disks: readonly Buffer[],
  scenario: string[],
): Promise<Played & { crashed: [where: string, disks: Buffer[]][] }> {
  kernel.giveUpDisks();
  const made = disks.map((content) => kernel.disk(content.length / 512, content));
  const crashed: [string, Buffer[]][] = [];
  const log = await play(kernel, made, scenario, (name) => crashed.push([name, kernel.crash(made)]));
  return { log, disks: made.map((disk) => disk.read()), crashed };
}

/** All that is written before the merge (interop.test.ts shows that both sides write the same), and what is then seen. */
async function given(scene: Scene, random: Prng) {
  const { origin, cow } = scene;
  const devices = ['snap', 'snap', 'snap', 'base', ...scene.others.map(nameOther)];
  const blank = Array.from({ length: 1 + scene.others.length }, () => Buffer.alloc(cow * 512));
  const session = new Here([pattern('a', 0, origin), ...blank]);
  await session.play([
    ...[real(scene), ...others(scene), create('snap', over(scene, 'snapshot'))],
    create('base', `0 ${origin} snapshot-origin /dev/mapper/base-real`),
    // The last chunk, of which the origin has only a part.
    `put b snap 7 ${origin - 1} 1`,
    ...Array.from({ length: WRITES }, () => put(random, scene, random.pick(devices))),
  ]);
  const shown = await session.play(['sum base snap', ...sumsOfOthers(scene)]);
  const [{ text }] = await session.mapper.status({ name: 'snap' });
  const [allocated, metadata] = text.split(/\/\d+ /).map(Number);
  return { disks: await session.end(), shown, allocated, metadata };
}

const sumsIn = (log: readonly string[]) => log.filter((line) => line.startsWith('sha256 '));
const linesOf = (log: readonly string[], name: string) => log.filter((line) => line.split(' ')[1] === `${name}:`);

/** The store is empty, and the origin and the other snapshots are what they have to be. */
async function expectEnd({ log, disks }: Played, scene: Scene, shown: readonly string[], where: string) {
  const { chunk, origin, cow } = scene;
  const status = `status base: 0 ${origin} snapshot-merge ${2 * chunk}/${cow} ${2 * chunk}`;
  expect(log.filter((line) => line.startsWith('status base: ')).at(-1), where).toBe(status);
  const seen = await playHere(disks, [real(scene), ...others(scene), ...sumsOfOthers(scene)]);
  expect([`sha256 base ${sha256(disks[0])}`, ...sumsIn(seen.log)], where).toEqual(shown);
}

/** How many operations the disks have seen before the merge, and at its end. */
async function operationsOf(scene: Scene, disks: readonly Buffer[], options: PowerOptions): Promise<[number, number]> {
  const session = new Here(disks, options);
  await session.play(begin(scene).slice(0, -1));
  const from = session.power.count;
  await session.play([...begin(scene).slice(-1), 'merged base']);
  return [from, session.power.count];
}

/** Lets dmkit merge until its disks have seen `cutAt` operations. */
async function mergeHere(scene: Scene, disks: readonly Buffer[], cutAt: number, options: PowerOptions): Promise<Here> {
  const session = new Here(disks, options);
  await session.play(begin(scene));
  await session.reaches(cutAt);
  return session;
}

/** The merge in the kernel, on disks that take their time. `then` happens when its store has shrunk below each of `limits`. */
const slowly = (scene: Scene, limits: number[], then: (limit: number) => string[]) => [
  ...[create('base-real', `0 ${scene.origin} delay /dev/loop0 0 0 /dev/loop0 0 ${DELAY}`), ...others(scene)],
  create('cow', `0 ${scene.cow} delay /dev/loop1 0 0 /dev/loop1 0 ${DELAY}`),
  create('base', over(scene, 'snapshot-merge', '/dev/mapper/cow')),
  ...limits.flatMap((limit) => [`below base ${limit}`, ...then(limit)]),
];

const slow = (seed: number) => ({ seed, slow: 0.5 });

/** Instead of the merge a snapshot, which is written to. */
const pause = (scene: Scene, random: Prng, cow?: string) => [
  ...[load('base', over(scene, 'snapshot', cow)), 'run dmsetup suspend base', 'run dmsetup resume base'],
  ...['state paused', ...sums(scene)],
  ...Array.from({ length: 5 }, () => put(random, scene, 'base')),
  ...['state written', ...sums(scene)],
];
const goOn = (scene: Scene) => [
  ...[real(scene), ...others(scene), create('base', over(scene, 'snapshot'))],
  ...['state opened', ...sums(scene), load('base', over(scene, 'snapshot-merge'))],
  ...['run dmsetup suspend base', 'run dmsetup resume base', 'merged base', 'state ended', ...sums(scene)],
  ...remove(scene),
];

/** All that was seen when the merge was paused, before it was written to and afterwards. */
function expectPaused(log: readonly string[], shown: readonly string[]) {
  const seen = sumsIn(log);
  expect(seen.slice(0, shown.length)).toEqual(shown);
  return { written: seen.slice(shown.length), lines: linesOf(log, 'base').slice(-2) };
}

describe.each(scenes)('chunks of $chunk', (scene) => {
  it.each(SEEDS)('a merge of dmkit that lost power is ended by the kernel, seed %i', async (seed) => {
    const random = prng(seed);
    const { disks, shown } = await given(scene, random);
    const [from, to] = await operationsOf(scene, disks, slow(seed));
    for (let i = 0; i < CUTS; i++) {
      const cutAt = from + random.below(to - from);
      const cut = await mergeHere(scene, disks, Number.POSITIVE_INFINITY, { ...slow(seed), cutAt });
      const there = await playThere(cut.crash(cutAt), finish(scene));
      await expectEnd(there, scene, shown, `without power from operation ${cutAt} of ${from} to ${to}`);
    }
  });

  it.each(SEEDS)(
    'a merge of the kernel that lost power, or was suspended, is ended by dmkit, seed %i',
    async (seed) => {
      const random = prng(seed);
      const { disks, shown, allocated, metadata } = await given(scene, random);
      const limits = Array.from({ length: CUTS + 1 }, () => metadata + 1 + random.below(allocated - metadata));
      limits.sort((a, b) => b - a);
      const scenario = slowly(scene, limits, (limit) => [`mark ${limit}`]);
      const there = await playThere(disks, [...scenario, 'run dmsetup suspend base']);
      expect(there.crashed.map(([limit]) => Number(limit))).toEqual(limits);
      for (const [where, left] of [...there.crashed, ['suspended', there.disks] as const])
        await expectEnd(await playHere(left, finish(scene)), scene, shown, `left at ${where}`);
    },
  );

  it.each(SEEDS)('a merge that dmkit stopped is ended by the kernel, seed %i', async (seed) => {
    const random = prng(seed);
    const { disks, shown } = await given(scene, random);
    const [from, to] = await operationsOf(scene, disks, slow(seed));
    for (let i = 0; i < CUTS; i++) {
      const cutAt = from + 1 + random.below(to - from - 1);
      const session = await mergeHere(scene, disks, cutAt, slow(seed));
      await session.dmsetup(['suspend', 'base']);
      const there = await playThere(await session.end(), finish(scene));
      await expectEnd(there, scene, shown, `suspended at operation ${cutAt} of ${from} to ${to}`);
    }
  });

  it.each(SEEDS)('a merge that dmkit paused goes on in the kernel as in dmkit, seed %i', async (seed) => {
    const random = prng(seed);
    const { disks, shown } = await given(scene, random);
    const [from, to] = await operationsOf(scene, disks, slow(seed));
    const session = await mergeHere(scene, disks, from + random.below(to - from), slow(seed));
    const { written, lines } = expectPaused(await session.play(pause(scene, random)), shown);
    const left = await session.end();
    const here = await playHere(left, goOn(scene));
    const there = await playThere(left, goOn(scene));
    expect(there.log).toEqual(here.log);
    expect(linesOf(here.log, 'base').slice(0, 2)).toEqual(lines);
    expect(sumsIn(here.log)).toEqual([...written, ...written]);
    for (const i of [0, 1]) expect(there.disks[i].equals(here.disks[i]), `disk ${i}`).toBe(true);
  });

  it.each(SEEDS)('a merge that the kernel paused goes on in dmkit, seed %i', async (seed) => {
    const random = prng(seed);
    const { disks, shown, allocated, metadata } = await given(scene, random);
    const limit = metadata + 1 + random.below(allocated - metadata);
    const there = await playThere(
      disks,
      slowly(scene, [limit], () => pause(scene, random, '/dev/mapper/cow')),
    );
    const { written, lines } = expectPaused(there.log, shown);
    const here = await playHere(there.disks, goOn(scene));
    expect(linesOf(here.log, 'base')[1]).toBe(lines[1]);
    expect(sumsIn(here.log)).toEqual([...written, ...written]);
  });
});
