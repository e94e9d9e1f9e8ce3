/** The lives that seeds lead. A seed draws its disks and chunk sizes from its kind, and what happens from the kind's mix. */
import { prng } from '../../../src/lib/prng.ts';
import type { StackOptions } from './stack.ts';
import type { Mix } from './workload.ts';

export interface Kind {
  readonly mix: Mix;
  options(seed: number): StackOptions;
}

const mix: Mix = {
  operations: 40,
  flush: 0.08,
  read: 0.05,
  settle: 0.08,
  snapshot: 0.07,
  suspend: 0.03,
  reload: 0.02,
  zero: 0.03,
  time: 0.02,
  idle: 0.05,
};

const merging: Mix = { ...mix, snapshot: 0.06, merge: 0.08, idle: 0.08, drop: 0.01, revert: 0.01, reopen: 0.01 };

/** Three sizes that differ. */
const differing = (seed: number): number[] => {
  const random = prng(seed + 7);
  const sizes = [1, 2, 4, 8];
  sizes.splice(random.below(4), 1);
  return random.chance(0.5) ? sizes : sizes.reverse();
};

const among = (seed: number, values: readonly number[]) => prng(seed + 11).pick(values);

export const KINDS: Readonly<Record<string, Kind>> = {
  /** An origin and a snapshot, everything at hand. */
  one: { mix: { ...mix, revert: 0.02 }, options: (seed) => ({ seed, origin: 41, chunks: [2], slow: 0 }) },
  /** Three snapshots of differing chunk sizes, operations that complete out of order. */
  three: {
    mix: { ...mix, revert: 0.02, drop: 0.01, reopen: 0.01 },
    options: (seed) => ({
      seed,
      origin: 30 + (seed % 50),
      chunks: differing(seed),
      slow: among(seed, [0.1, 0.3, 0.9]),
    }),
  },
  /** Lists that go on in the next area. */
  areas: { mix, options: (seed) => ({ seed, origin: 110, chunks: [1, 1], slow: among(seed, [0, 0.2]) }) },
  /** COW devices that run full, on both kinds of store. */
  full: {
    mix: { ...mix, revert: 0.02, merge: 0.02 },
    options: (seed) => ({
      seed,
      origin: 60,
      chunks: [2, 1],
      cow: 24 + (seed % 24),
      store: prng(seed).pick(['P', 'PO']),
      slow: among(seed, [0, 0.3]),
    }),
  },
  /** One snapshot flows back while the others keep their images. */
  merge: {
    mix: merging,
    options: (seed) => ({
      seed,
      origin: 30 + (seed % 40),
      chunks: differing(seed),
      slow: among(seed, [0, 0.3, 0.6, 0.9]),
    }),
  },
  /** Merges of lists that are longer than an area. */
  'merge-areas': {
    mix: { ...merging, flush: 0.04 },
    options: (seed) => ({ seed, origin: 110, chunks: [1, 2], slow: among(seed, [0.2, 0.6]) }),
  },
  /** Read, write and flush errors of any disk. */
  faults: {
    mix: { ...mix, fault: 0.08, revert: 0.01 },
    options: (seed) => ({ seed, origin: 30 + (seed % 40), chunks: differing(seed), slow: among(seed, [0, 0.3, 0.6]) }),
  },
  /** The same while a merge runs. */
  'merge-faults': {
    mix: { ...merging, fault: 0.15, drop: 0 },
    options: (seed) => ({
      seed,
      origin: 30 + (seed % 40),
      chunks: differing(seed),
      slow: among(seed, [0.3, 0.6, 0.9]),
    }),
  },
};

const NAMES = Object.keys(KINDS);

/** The kind of a seed that is run without naming one. */
export const kindOf = (seed: number): string => NAMES[seed % NAMES.length];
