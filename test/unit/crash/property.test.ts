/** Any sequence of operations on an origin and its snapshots equals a naive model, over hundreds of seeds. */
import { afterEach, beforeEach, test } from 'vitest';
import { prng } from '../../../src/lib/prng.ts';
import { OriginBuffer } from '../../../src/targets/snapshot/origin-buffer.ts';
import { finish } from './operations.ts';
import { Stack, type StackOptions } from './stack.ts';
import { VirtualTime } from './virtual-time.ts';
import { type Mix, work } from './workload.ts';

const SEEDS = Number(process.env.PROPERTY_SEEDS ?? 500);

const time = new VirtualTime();
beforeEach(() => time.install());
const { pages, enough } = OriginBuffer;
afterEach(() => {
  time.restore();
  Object.assign(OriginBuffer, { pages, enough });
});

const MIX: Mix = {
  operations: 80,
  flush: 0.06,
  read: 0.2,
  settle: 0.1,
  snapshot: 0.06,
  suspend: 0.03,
  reload: 0.05,
  zero: 0.03,
  reopen: 0.02,
  revert: 0.02,
  drop: 0.01,
  time: 0.02,
};

/** `again`: the exceptions outlive the table. */
async function holds(name: string, mix: Mix, make: (seed: number) => StackOptions, again = true): Promise<void> {
  for (let seed = 1; seed <= SEEDS; seed++) {
    try {
      const random = prng(seed + 3);
      OriginBuffer.pages = random.pick([0, 2, 5, pages]);
      OriginBuffer.enough = random.pick([1, 2, 4, enough]);
      const stack = new Stack(make(seed), { time });
      await stack.start();
      await work(stack, mix);
      await finish(stack);
      await stack.stop();
      if (!again) continue;
      await stack.start();
      await stack.expectExact();
      await stack.stop();
    } catch (error) {
      throw new Error(`${name}: seed ${seed}: ${(error as Error).message}`, { cause: error });
    }
  }
}

const sizes = [1, 2, 4, 8, 16];
const chunks = (seed: number, count: number) => {
  const random = prng(seed + 7);
  return Array.from({ length: count }, () => random.pick(sizes));
};

test('83. persistent snapshots, everything at hand', async () => {
  await holds('persistent', MIX, (seed) => ({ seed, origin: 20 + (seed % 90), chunks: chunks(seed, 3) }));
}, 300_000);

test('83. persistent snapshots, operations completing out of order', async () => {
  await holds('slow', MIX, (seed) => ({ seed, origin: 20 + (seed % 90), chunks: chunks(seed, 3), slow: 0.3 }));
}, 300_000);

test('on a disk where everything takes its time, readers beside writers', async () => {
  const mix = { ...MIX, settle: 0.03, read: 0.4 };
  await holds('slower', mix, (seed) => ({ seed, origin: 8 + (seed % 30), chunks: chunks(seed, 2), slow: 0.9 }));
}, 300_000);

test('discards zero what is mapped whole', async () => {
  const mix = { ...MIX, discard: 0.1, revert: 0, zero: 0 };
  const features = '1 discard_zeroes_cow';
  await holds('discard', mix, (seed) => ({
    seed,
    origin: 20 + (seed % 60),
    chunks: chunks(seed, 2),
    features,
    slow: 0.1,
  }));
}, 300_000);

test('transient snapshots, until they are closed', async () => {
  const mix = { ...MIX, reopen: 0, drop: 0 };
  await holds('transient', mix, (seed) => ({ seed, origin: 64, chunks: [1, 4], store: 'N', slow: 0.2 }), false);
}, 300_000);

test('83. merges between all this', async () => {
  const mix = { ...MIX, merge: 0.06, snapshot: 0.08 };
  await holds('merges', mix, (seed) => ({ seed, origin: 20 + (seed % 90), chunks: chunks(seed, 3), slow: 0.5 }));
}, 300_000);
