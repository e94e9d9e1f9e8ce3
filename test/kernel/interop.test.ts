/**
 * Stores go both ways between dmkit and a real Linux kernel. Both play the same scenario from the same disks, each on
 * what the other left the round before: every line they print and every byte they leave must be equal.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { PowerSupply, SimulatedDisk } from '../../src/device/simulated.ts';
import { type Prng, prng } from '../../src/lib/prng.ts';
import { Session } from '../support/session.ts';
import { pattern } from '../unit/golden.ts';
import { PATTERN_SECTORS, play, sharePatterns } from './play.ts';
import { Kernel } from './vm/vm.ts';

let kernel: Kernel;
beforeAll(async () => {
  kernel = await Kernel.boot();
  await sharePatterns(kernel);
});
afterAll(() => kernel?.close());

interface Snapshot {
  name: string;
  /** `P 8`: the words after the devices. */
  store: string;
  /** Sectors of its COW device. */
  cow: number;
  /** Sectors, where it is shorter than the origin. */
  length?: number;
}

interface Case {
  title: string;
  /** Sectors. */
  origin: number;
  snapshots: Snapshot[];
  /** Lines of one round. */
  writes(random: Prng, round: number): string[];
  /** Nothing is left to choose: one seed is all there is. */
  fixed?: boolean;
  /** Status lines that the last round must end with, so that a case meets what it is there for. */
  ends: RegExp;
}

const ROUNDS = 3;
/** Of each case; `KERNEL_SEEDS=20 npm run test:kernel` takes more. */
const SEEDS = Number(process.env.KERNEL_SEEDS ?? 1);

function put(random: Prng, tag: 'b' | 'c', device: string, seek: number, count: number): string {
  return `put ${tag} ${device} ${random.below(PATTERN_SECTORS - count + 1)} ${seek} ${count}`;
}

/** Writes of random sizes anywhere, to the origin and to every snapshot. */
const anywhere =
  (count: number, sizes: number[], names = ['snap']) =>
  (limit: number) =>
  (random: Prng): string[] =>
    Array.from({ length: count }, () => {
      const device = random.pick(['base', 'base', ...names]);
      const size = random.pick(sizes);
      return put(random, device === 'base' ? 'c' : 'b', device, random.below(limit - size + 1), size);
    });

/** The n-th chunk is written in the n-th step, whole, alternating between both sides where there is no choice. */
const chunkByChunk = (chunk: number, perRound: number, sides: string[]) => (random: Prng, round: number) =>
  Array.from({ length: perRound }, (_, i) =>
    put(random, 'b', sides[i % sides.length], (round * perRound + i) * chunk * 3, chunk),
  );

const one = (store: string, cow: number): Snapshot[] => [{ name: 'snap', store, cow }];

const cases: Case[] = [
  {
    title: 'chunks of 1 sector, crossing areas',
    origin: 300,
    snapshots: one('P 1', 1024),
    writes: anywhere(10, [1, 2, 5, 8, 16])(300),
    ends: /status snap: 0 300 snapshot (1\d\d|2\d\d)\/1024 ([5-9]|10)$/,
  },
  {
    title: 'chunks of 8 sectors, crossing areas, a partial last chunk',
    origin: 8196,
    snapshots: one('P 8', 12288),
    writes: (random, round) => [
      ...anywhere(10, [1, 7, 8, 16, 64, 256, 512])(8196)(random),
      ...(round === 1 ? ['put b snap 5 8195 1', 'put c base 1 6000 2048'] : []),
    ],
    ends: /status snap: 0 8196 snapshot \d+\/12288 (24|32)$/,
  },
  {
    title: 'chunks of 16 sectors, PO, every chunk of the origin copied',
    origin: 8200,
    snapshots: one('PO 16', 16384),
    writes: (random, round) => [
      ...anywhere(6, [1, 15, 16, 17, 200])(8200)(random),
      ...(round === 1 ? ['put b snap 0 0 4096', 'put c base 0 4096 4104'] : []),
    ],
    ends: /status snap: 0 8200 snapshot 8256\/16384 48$/,
  },
  {
    title: 'chunks of 128 sectors, a partial last chunk',
    origin: 8260,
    snapshots: one('P 128', 16384),
    writes: (random, round) => [
      ...anywhere(8, [1, 3, 8, 128, 256])(8260)(random),
      ...(round === 0 ? ['put c base 9 8259 1'] : []),
    ],
    ends: /status snap: 0 8260 snapshot \d+\/16384 256$/,
  },
  {
    title: 'three snapshots of one origin',
    origin: 4100,
    snapshots: [
      { name: 'one', store: 'P 8', cow: 8192 },
      { name: 'two', store: 'PO 128', cow: 8192 },
      { name: 'six', store: 'P 16', cow: 8192 },
    ],
    writes: anywhere(10, [1, 2, 8, 16, 33, 128], ['one', 'two', 'six'])(4100),
    ends: /status two: 0 4100 snapshot \d+\/8192 256$/,
  },
  {
    title: 'a snapshot shorter than its origin',
    origin: 1024,
    snapshots: [{ name: 'snap', store: 'P 8', cow: 2048, length: 512 }],
    writes: (random) => [
      ...anywhere(3, [1, 8, 9])(512)(random),
      ...['put c base 0 511 1', 'put c base 0 512 8', 'put c base 77 900 100'],
    ],
    ends: /status snap: 0 512 snapshot \d+\/2048 16$/,
  },
  {
    title: 'a store that the origin overflows: invalidated',
    origin: 1024,
    snapshots: one('P 8', 100),
    writes: chunkByChunk(8, 5, ['base']),
    fixed: true,
    ends: /status snap: 0 1024 snapshot Invalid$/,
  },
  {
    title: 'a PO store that the snapshot overflows, with a partial chunk at its end',
    origin: 1024,
    snapshots: one('PO 8', 101),
    writes: chunkByChunk(8, 5, ['snap']),
    fixed: true,
    ends: /status snap: 0 1024 snapshot Overflow$/,
  },
  {
    title: 'a P store that the snapshot overflows: invalidated',
    origin: 1024,
    snapshots: one('P 8', 96),
    writes: chunkByChunk(8, 5, ['snap']),
    fixed: true,
    ends: /status snap: 0 1024 snapshot Invalid$/,
  },
  {
    title: 'a COW device that ends where the next area would be (scenario 53): invalidated even with PO',
    origin: 256,
    snapshots: one('PO 1', 34),
    writes: chunkByChunk(1, 11, ['base', 'snap']),
    fixed: true,
    ends: /status snap: 0 256 snapshot Invalid$/,
  },
  {
    title: 'a COW device that ends behind the next area (scenario 53): full and valid',
    origin: 256,
    snapshots: one('P 1', 35),
    writes: (random, round) => chunkByChunk(1, 11, ['snap'])(random, round).slice(0, round === 2 ? 10 : 11),
    fixed: true,
    ends: /status snap: 0 256 snapshot 35\/35 3$/,
  },
];

/** One round: opens everything, says what is there, writes, says it again. */
function roundOf({ origin, snapshots, writes }: Case, random: Prng, round: number): string[] {
  const names = ['base', ...snapshots.map(({ name }) => name)];
  const report = (label: string) => [`state ${label}`, ...names.map((name) => `sum ${name}-${label} ${name}`)];
  return [
    `run dmsetup create base-real --table "0 ${origin} linear /dev/loop0 0"`,
    ...snapshots.map(({ name, store, length = origin }, i) => {
      const line = `0 ${length} snapshot /dev/mapper/base-real /dev/loop${i + 1} ${store}`;
      return `run dmsetup create ${name} --table "${line}"`;
    }),
    `run dmsetup create base --table "0 ${origin} snapshot-origin /dev/mapper/base-real"`,
    ...report('opened'),
    ...writes(random, round),
    ...report('written'),
  ];
}

/** Plays on dmkit: the log, and what is on the disks afterwards. */
async function playHere(disks: readonly Buffer[], scenario: string[]) {
  const session = new Session();
  for (const [i, content] of disks.entries()) session.loop(i, content.length / 512, content);
  const log = await session.play(scenario);
  await session.close();
  return { log, disks: await Promise.all(disks.map((_, i) => session.content(i))) };
}

/** Plays in the kernel. */
async function playThere(disks: readonly Buffer[], scenario: string[]) {
  const made = disks.map((content) => kernel.disk(content.length / 512, content));
  const log = await play(kernel, made, scenario);
  return { log, disks: made.map((disk) => disk.read()) };
}

function expectSameDisks(found: readonly Buffer[], expected: readonly Buffer[], where: string): void {
  for (const [i, content] of found.entries()) {
    if (content.equals(expected[i])) continue;
    const at = content.findIndex((byte, k) => byte !== expected[i][k]);
    const row = (disk: Buffer) => disk.subarray(at - (at % 16), at + 48).toString('hex');
    expect(row(content), `${where}: disk ${i} from byte ${at - (at % 16)}`).toBe(row(expected[i]));
  }
}

describe.each(cases)('$title', (example) => {
  const seeds = example.fixed ? 1 : SEEDS;
  it.each(Array.from({ length: seeds }, (_, i) => i + 1))('goes back and forth, seed %i', async (seed) => {
    const random = prng(seed);
    const blank = example.snapshots.map(({ cow }) => Buffer.alloc(cow * 512));
    let fromHere = [pattern('a', 0, example.origin), ...blank];
    let fromThere = fromHere;
    let ends: string[] = [];
    for (let round = 0; round < ROUNDS; round++) {
      const scenario = roundOf(example, random, round);
      const here = await playHere(fromThere, scenario);
      const there = await playThere(fromHere, scenario);
      expect(here.log, `round ${round}`).toEqual(there.log);
      expectSameDisks(here.disks, there.disks, `round ${round}`);
      [fromHere, fromThere, ends] = [here.disks, there.disks, there.log];
    }
    expect(ends).toContainEqual(expect.stringMatching(example.ends));
  });
});

const ORIGIN = 1024;
const COW = 1024;
const base = `run dmsetup create base --table "0 ${ORIGIN} snapshot-origin /dev/loop0"`;
const snap = (chunk: number) =>
  `run dmsetup create snap --table "0 ${ORIGIN} snapshot /dev/loop0 /dev/loop1 P ${chunk}"`;
const report = ['state opened', 'sum base-opened base', 'sum snap-opened snap'];

it.each([1, 8])('a reverted store opens in the kernel as an empty one and goes on, chunks of %i', async (chunk) => {
  const writes = anywhere(12, [1, 8, 20])(ORIGIN);
  const session = new Session();
  session.loop(0, ORIGIN, pattern('a', 0, ORIGIN));
  session.loop(1, COW);
  await session.play([snap(chunk), base, ...writes(prng(5))]);
  await session.dmsetup(['suspend', 'base']);
  await session.mapper.revert({ name: 'snap' });
  await session.dmsetup(['resume', 'base']);
  const [, , status] = await session
    .play(['state reverted'])
    .then((log) => log.filter((line) => !line.includes('base')));
  expect(status).toBe(`status snap: 0 ${ORIGIN} snapshot ${2 * chunk}/${COW} ${2 * chunk}`);
  expect(await session.sum('snap')).toBe(await session.sum('base'));
  await session.close();

  const disks = [await session.content(0), await session.content(1)];
  const scenario = [snap(chunk), base, ...report, ...writes(prng(6)), ...report];
  const here = await playHere(disks, scenario);
  const there = await playThere(disks, scenario);
  expect(here.log).toEqual(there.log);
  expect(there.log).toContain(status);
  expectSameDisks(here.disks, there.disks, 'after the revert');
});

it('a store that lost power at any moment opens in the kernel with what dmkit finds there', async () => {
  const contents = pattern('a', 0, ORIGIN);
  const scenario = [snap(1), base, ...anywhere(14, [1, 2, 8, 20])(ORIGIN)(prng(9))];
  /** Cuts the power at an operation; the disks as the platters hold them, or nothing if the work was done before. */
  const cut = async (cutAt: number): Promise<Buffer[] | undefined> => {
    const power = new PowerSupply({ seed: cutAt, cutAt });
    const session = new Session();
    const origin = new SimulatedDisk(ORIGIN * 512, { name: '7:0', power, contents });
    const cow = new SimulatedDisk(COW * 512, { name: '7:1', power });
    session.add(0, origin);
    session.add(1, cow);
    await session.play(scenario);
    return power.on ? undefined : [Buffer.from(origin.crash(cutAt)), Buffer.from(cow.crash(cutAt + 1))];
  };
  const whole = new PowerSupply();
  const session = new Session();
  session.add(0, new SimulatedDisk(ORIGIN * 512, { name: '7:0', power: whole, contents }));
  session.add(1, new SimulatedDisk(COW * 512, { name: '7:1', power: whole }));
  await session.play(scenario);

  const reopen = [snap(0), base, ...report];
  let opened = 0;
  const step = Math.max(1, Math.floor(whole.count / 16));
  for (let cutAt = 2; cutAt < whole.count; cutAt += step) {
    const disks = await cut(cutAt);
    if (!disks) break;
    const here = await playHere(disks, reopen);
    const there = await playThere(disks, reopen);
    expect(here.log, `cut at ${cutAt}`).toEqual(there.log);
    expectSameDisks(here.disks, there.disks, `cut at ${cutAt}`);
    expect(there.log.join('\n'), `cut at ${cutAt}`).not.toContain('[exit');
    opened++;
  }
  expect(opened).toBeGreaterThan(10);
});
