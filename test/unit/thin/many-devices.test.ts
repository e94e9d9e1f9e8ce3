/** More thin devices than a node of their tree holds, in whatever order they come and go. */
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { prng } from '../../../src/lib/prng.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { sector } from '../../../src/units.ts';
import { allocateBlock } from '../../support/allocate-block.ts';

const COUNT = 1100;
const numbers = Array.from({ length: COUNT }, (_, i) => 10 + i);

function shuffled(): number[] {
  const random = prng(1);
  const left = [...numbers];
  return numbers.map(() => left.splice(random.below(left.length), 1)[0]);
}

const orders: [string, number[]][] = [
  ['upwards', numbers],
  ['downwards', numbers.toReversed()],
  ['in any order', shuffled()],
];

test.each(orders)('snapshots of one device, made %s, each have its blocks until they go', async (_order, ids) => {
  const device = new MemoryDevice(2 ** 23);
  const pool = await PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });
  const findings = async () => {
    await pool.commit();
    return (await checkMetadata(device)).findings;
  };
  await pool.resizeData(100);
  await pool.createThin(1);
  await pool.openThin(1);
  await pool.insert(1, 7, (await allocateBlock(pool))!);
  for (const id of ids) await pool.createSnapshot(id, 1);
  // And some that are new, and empty.
  for (const id of ids.slice(0, 300)) await pool.createThin(id + 10_000);
  expect(await findings()).toEqual([]);
  for (const id of ids) {
    await pool.openThin(id);
    expect((await pool.lookup(id, 7))?.block).toBe(0);
    pool.closeThin(id);
  }
  for (const id of shuffled()) await pool.delete(id);
  expect(await findings()).toEqual([]);
});
