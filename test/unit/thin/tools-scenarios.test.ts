/** Tools that read metadata while its pool goes on (dm-thin scenarios by number). */
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import * as node from '../../../src/formats/pdata/node.ts';
import { prng } from '../../../src/lib/prng.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { delta } from '../../../src/stores/thin/delta.ts';
import { dumpParts } from '../../../src/stores/thin/dump.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { MetadataReader } from '../../../src/stores/thin/reader.ts';
import { sector } from '../../../src/units.ts';
import { allocateBlock } from '../../support/allocate-block.ts';
import { Image } from '../../support/thin-damage.ts';

/** A pool whose device 1 has `count` blocks mapped. */
async function poolWith(count: number): Promise<{ device: MemoryDevice; pool: PoolMetadata }> {
  const device = new MemoryDevice(2 ** 22);
  const pool = await PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });
  await pool.resizeData(20_000);
  await pool.createThin(1);
  await pool.openThin(1);
  for (let i = 0; i < count; i++) await pool.insert(1, 2 * i, await allocateBlock(pool));
  await pool.commit();
  return { device, pool };
}

async function write(pool: PoolMetadata, id: number, virtual: number): Promise<void> {
  const mapping = await pool.lookup(id, virtual);
  if (!mapping || mapping.shared) await pool.insert(id, virtual, await allocateBlock(pool));
}

async function snapshot(pool: PoolMetadata, id: number): Promise<void> {
  await pool.createSnapshot(id, 1);
  await pool.openThin(id);
}

test.each([1, 2, 3])(
  '77. a delta between a device and its snapshot is what was written since (seed %i)',
  async (seed) => {
    const { device, pool } = await poolWith(2000);
    await snapshot(pool, 2);
    const random = prng(seed);
    const written = new Set<number>();
    for (let i = 0; i < 300; i++) {
      const virtual = random.below(5000);
      await write(pool, 1, virtual);
      written.add(virtual);
    }
    await pool.commit();
    const reader = await MetadataReader.open(device);
    const found = new Set<number>();
    for await (const { kind, begin, length } of delta(reader, await reader.device(2), await reader.device(1))) {
      expect(['same', 'different', 'right_only']).toContain(kind);
      if (kind !== 'same') for (let i = 0; i < length; i++) found.add(begin + i);
    }
    expect([...found]).toEqual([...written].sort((a, b) => a - b));
  },
);

test('79. the metadata snapshot shows one moment, however the pool changes while it is read', async () => {
  const { device, pool } = await poolWith(3000);
  await snapshot(pool, 2);
  await write(pool, 2, 100);
  await pool.commit();
  let before = '';
  for await (const part of dumpParts(await MetadataReader.open(device), 'xml')) before += part;
  await pool.reserveSnapshot();
  await pool.commit();
  const random = prng(79);
  let held = '';
  let next = 3;
  for await (const part of dumpParts(await MetadataReader.open(device, { held: true }), 'xml')) {
    held += part;
    for (let i = 0; i < 40; i++) await write(pool, random.pick([1, 2]), random.below(6000));
    const from = random.below(6000);
    await pool.removeRange(1, from, from + 300);
    await snapshot(pool, next++);
    await pool.commit();
  }
  expect(next).toBeGreaterThan(20);
  expect(held).toBe(before.replace('nr_data_blocks="20000"', 'nr_data_blocks="0"'));
  expect((await checkMetadata(device)).findings).toEqual([]);
});

test('80. a leaf that three devices share is there once, and each leads to it', async () => {
  const { device, pool } = await poolWith(1000);
  for (const id of [2, 3]) await snapshot(pool, id);
  for (const id of [1, 2, 3]) await write(pool, id, 0);
  await pool.commit();
  const image = new Image(device);
  const leaves = (root: number) => {
    const block = image.block(root);
    expect(node.isLeaf(block)).toBe(false);
    return Array.from({ length: node.nr(block) }, (_, i) => node.child(block, i));
  };
  const roots = image.block(pool.roots.mapping);
  const [first, second, third] = [0, 1, 2].map((i) => leaves(node.child(roots, i)));
  expect(new Set([first[0], second[0], third[0]]).size).toBe(3);
  expect(second.slice(1)).toEqual(first.slice(1));
  expect(third.slice(1)).toEqual(first.slice(1));
  const report = await checkMetadata(device);
  expect(report.findings).toEqual([]);
  expect(report.devices).toEqual(new Map([1, 2, 3].map((id) => [id, 1000])));
});
