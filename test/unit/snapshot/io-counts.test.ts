/** What a write to an origin costs the disks below, counted here and, once, in a real kernel (test/fixtures/kernel). */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { type CountsOf, countHere, iosOf, WRITES } from '../../support/io-counts.ts';
import { ioCountsSuite } from '../../support/io-counts-suite.ts';
import { FIXTURES } from '../golden.ts';

const counts: CountsOf[] = JSON.parse(readFileSync(join(FIXTURES, 'io-counts.json'), 'utf8')).counts;

ioCountsSuite(() => counts);

test('it takes fewer in the long run too, when the copies cannot all wait for the flush', async () => {
  const writes = 768;
  const { first } = await countHere(1, 16, writes);
  const kernel = counts.find(({ snapshots, depth }) => snapshots === 1 && depth === 16)!.first;
  expect(iosOf(first) / writes).toBeLessThan(iosOf(kernel) / WRITES);
  expect(first.flushes / writes).toBeLessThan(kernel.flushes / WRITES);
});
