/**
 * The promises on what a write means, at every power cut of seeded runs. A few seeds of each kind; `npm run crash` takes
 * thousands, and says how to see again what went wrong.
 */
import { expect, test } from 'vitest';
import { KINDS } from './kinds.ts';
import { runSeed } from './run.ts';

/** Seeds of each kind. */
const SEEDS = Number(process.env.CRASH_SEEDS ?? 40);

/** A test of each kind that is wanted. */
export function fewSeeds(wanted: (kind: string) => boolean): void {
  test.each(Object.keys(KINDS).filter(wanted))(
    '%s',
    async (kind) => {
      let cuts = 0;
      for (let seed = 1; seed <= SEEDS; seed++) cuts += await runSeed(kind, seed);
      expect(cuts).toBeGreaterThan(SEEDS * 10);
    },
    600_000,
  );
}
