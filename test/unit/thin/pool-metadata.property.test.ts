/** A pool's metadata after any operations: equal to a naive model, and whole. */
import fc from 'fast-check';
import { test } from 'vitest';
import { modelledPool } from '../../support/thin-model.ts';

const SEEDS = Number(process.env.PROPERTY_SEEDS ?? 300) / 10;

test('equals a naive model, and is whole', async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 1 }), async (seed) => void (await modelledPool(seed))),
    { numRuns: SEEDS },
  );
}, 120_000);
