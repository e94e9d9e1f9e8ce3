/** What is measured, and what must come out: a new row of the table is one more of these. */
import type { Contestant } from './contestants/contestant.ts';
import { besideSlow, dmkit, origin, snapshots } from './contestants/dmkit.ts';
import { forks } from './contestants/dmkit-daemon.ts';
import { thin, thinAlone, thinChain, thinSnapshot } from './contestants/dmkit-thin.ts';
import { nbdkitCow, nbdkitFile } from './contestants/nbdkit.ts';
import { qemuAlone, qemuChain, qemuNbd, qemuSnapshot } from './contestants/qemu-nbd.ts';
import { rawFile } from './contestants/raw-file.ts';
import type { Load } from './fio.ts';

export interface Row {
  workload: string;
  /** `memory` for what the processor does, `disk` for what waits for one. */
  where: 'memory' | 'disk';
  load: Load;
  /** The part of the chunks that is in the store before: 0, 0.5 or 1. */
  filled: number;
  /** Bytes of the image that are used. */
  span: number;
  /** What is compared. */
  figure: 'iops' | 'bandwidth' | 'cpu';
  /** `others`: the first to each of the others, as a ratio above 1 where the first is better. `first`: each to the first. */
  compare: 'others' | 'first';
  entrants: Entrant[];
  /** Much like another row: not part of a smoke run. */
  variant?: boolean;
  /** Takes turns with them, and is compared to the others as the first of them is, in a row of its own. */
  thin?: Contestant;
}

export interface Entrant {
  contestant: Contestant;
  /** Instead of the contestant's name. */
  name?: string;
  /** The goal for the ratio in this line. */
  atLeast?: number;
  /** What differs from the row's. */
  load?: Partial<Load>;
  /** Goes on meanwhile at the contestant's other volumes, which are not measured. */
  beside?: Load;
}

const KIB = 1024;
const GIB = 2 ** 30;

const against = (contestant: Contestant, atLeast?: number): Entrant => ({ contestant, atLeast });
const both = (atLeast: number) => [{ contestant: dmkit }, against(qemuNbd, atLeast), against(nbdkitCow, atLeast)];
const size = (bytes: number) => (bytes < 2 ** 20 ? `${bytes / KIB} KiB` : `${bytes / 2 ** 20} MiB`);

const random: Load = { pattern: 'randread', blockSize: 4 * KIB, depth: 32 };
const overwrite: Load = { ...random, pattern: 'randwrite' };
const firstWrite: Load = { ...overwrite, once: true };
const commit: Load = { ...overwrite, depth: 1, flush: true };

const inMemory = { where: 'memory', span: GIB, figure: 'iops', compare: 'others' } as const;

const throughSnapshot: Row[] = [
  {
    ...inMemory,
    thin,
    workload: 'random 4 KiB read, QD 32',
    load: random,
    filled: 0.5,
    entrants: [...both(3), against(nbdkitFile, 1.2)],
  },
  {
    ...inMemory,
    thin,
    variant: true,
    workload: 'random 4 KiB read, QD 1',
    load: { ...random, depth: 1 },
    filled: 0.5,
    entrants: both(1),
  },
  {
    ...inMemory,
    thin,
    variant: true,
    workload: 'random 4 KiB overwrite, QD 32',
    load: overwrite,
    filled: 1,
    entrants: both(2.5),
  },
  { ...inMemory, thin, workload: 'random 4 KiB first write, QD 32', load: firstWrite, filled: 0, entrants: both(2) },
];

const sequential: Row[] = [128 * KIB, 1024 * KIB].flatMap((blockSize) => {
  const variant = blockSize > 128 * KIB;
  const row = { ...inMemory, thin, figure: 'bandwidth', entrants: both(1) } as const;
  const words = `sequential ${size(blockSize)}`;
  const write: Load = { pattern: 'write', blockSize, depth: 8 };
  return [
    { ...row, variant: true, workload: `${words} read, QD 8`, load: { ...write, pattern: 'read' }, filled: 0.5 },
    { ...row, variant: true, workload: `${words} overwrite, QD 8`, load: write, filled: 1 },
    { ...row, variant, workload: `${words} first write, QD 8`, load: { ...write, once: true }, filled: 0 },
  ];
});

const commits: Row[] = [1, 16].flatMap((connections) => {
  const variant = connections > 1;
  const row = { where: 'disk', span: GIB / 4, figure: 'iops', compare: 'others', thin, variant } as const;
  const load = { ...commit, connections };
  const part = connections === 1 ? 1 / 8 : 1 / 4;
  const words = `${connections} × (4 KiB write, then flush)`;
  // nbdkit's cow filter answers a flush and makes nothing durable: shown, no goal.
  const entrants = [{ contestant: dmkit }, against(qemuNbd, 1), against(nbdkitCow)];
  return [
    { ...row, workload: `${words}, overwrite`, load, filled: 1, entrants: [...entrants, against(rawFile, 0.7)] },
    // Of a fixed amount, or else who is faster would have fewer first writes.
    { ...row, workload: `${words}, first write`, load: { ...load, part }, filled: 0, span: GIB, entrants },
  ];
});

const cpu: Row[] = [
  { ...inMemory, workload: 'random 4 KiB read at 20,000 IOPS', load: random, filled: 0.5, entrants: both(1) },
  { ...inMemory, workload: 'random 4 KiB overwrite at 20,000 IOPS', load: overwrite, filled: 1, entrants: both(1) },
].map((row, i) => ({ ...row, thin, variant: i > 0, figure: 'cpu', load: { ...row.load, depth: 8, rate: 20_000 } }));

const thinVolumes: Row[] = [
  {
    ...inMemory,
    workload: 'new volume, random 4 KiB first write, QD 32',
    load: firstWrite,
    filled: 0,
    span: GIB / 4,
    entrants: [{ contestant: thinAlone(false) }, against(qemuAlone, 2), against(thinAlone(true))],
  },
  {
    ...inMemory,
    workload: 'snapshot of a full volume, random 4 KiB first write, QD 32',
    load: firstWrite,
    filled: 0,
    span: GIB / 4,
    entrants: [{ contestant: thinSnapshot }, against(qemuSnapshot, 2), against(nbdkitCow, 2)],
  },
  {
    ...inMemory,
    workload: 'chain of snapshots, random 4 KiB read, QD 32',
    load: random,
    filled: 0,
    span: GIB / 4,
    entrants: [{ contestant: thinChain(20) }, against(thinChain(1), 0.95), against(qemuChain(20), 3)],
  },
];

const origins: Row[] = [
  {
    ...inMemory,
    variant: true,
    workload: 'origin, random 4 KiB rewrite, QD 32',
    load: overwrite,
    filled: 1,
    span: GIB / 8,
    compare: 'first',
    entrants: [against(origin(0)), against(origin(1), 0.8), against(origin(4)), against(origin(16), 0.5)],
  },
  {
    workload: 'origin, random 4 KiB first write, QD 32',
    where: 'disk',
    load: firstWrite,
    filled: 0,
    span: GIB / 8,
    figure: 'iops',
    compare: 'first',
    entrants: [0, 1, 4, 16].map((n) => against(origin(n))),
  },
];

const connections: Row[] = [
  { load: random, filled: 0.5, words: 'read' },
  { load: overwrite, filled: 1, words: 'overwrite' },
].map(({ words, ...row }) => ({
  ...inMemory,
  ...row,
  variant: true,
  workload: `random 4 KiB ${words} on many connections, QD 32 each`,
  compare: 'first',
  entrants: [
    { contestant: dmkit, name: 'one connection' },
    { contestant: dmkit, name: '8 connections', load: { connections: 8 }, atLeast: 1 },
    ...[4, 16, 64].map((n) => against(snapshots(n), 1)),
  ],
}));

const slow: Row[] = [
  {
    ...inMemory,
    workload: 'random 4 KiB read of a fast volume beside a slow one, QD 32',
    load: random,
    filled: 0.5,
    span: GIB / 8,
    compare: 'first',
    entrants: [
      { contestant: besideSlow(100), name: 'alone' },
      { contestant: besideSlow(100), name: 'beside the slow one', beside: random, atLeast: 0.9 },
    ],
  },
];

const engines: Row[] = [
  { load: random, filled: 0.5, words: 'read' },
  { load: firstWrite, filled: 0, words: 'first write' },
].map(({ words, ...row }, i) => ({
  ...inMemory,
  ...row,
  variant: i > 0,
  workload: `random 4 KiB ${words}, volumes that share nothing, QD 32 each`,
  span: GIB / 2,
  compare: 'first',
  entrants: [against(forks(1, 0)), against(forks(2, 0)), against(forks(2, 2))],
}));

/** Of which `thin` is in the rows of other parts too. */
export const parts: Record<string, Row[]> = {
  snapshot: throughSnapshot,
  sequential,
  commits,
  cpu,
  thin: thinVolumes,
  origins,
  connections,
  slow,
  engines,
};
