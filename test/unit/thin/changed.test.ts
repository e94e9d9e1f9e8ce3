/** What a thin device tells to have changed, against a plain comparison of all blocks. */
import { expect, test } from 'vitest';
import { prng } from '../../../src/lib/prng.ts';
import { changedBetween } from '../../../src/targets/thin/changed.ts';
import { poolOf as livePool } from '../../../src/targets/thin/pools.ts';
import { bytes } from '../../../src/units.ts';
import { originData, snapshotData } from '../../support/rig.ts';
import { BLOCK, poolOf } from '../../support/thin.ts';

const BYTES = BLOCK * 512;

test('over an external origin that is what is mapped, cut to the range; without one nothing is told', async () => {
  const rig = await poolOf(64);
  rig.disk(2, 8 * BLOCK, { content: originData(0, 8 * BLOCK) });
  await rig.thin(1, 16 * BLOCK, '/dev/ram2');
  await rig.thin(2, 16 * BLOCK);
  await rig.write('t1', 2 * BLOCK + 8, snapshotData(0, 8));
  await rig.write('t1', 3 * BLOCK, snapshotData(0, BLOCK));
  const device = rig.mapper.device({ name: 't1' });
  expect(await device.changed(bytes(0), 16 * BYTES)).toEqual([
    { length: 2 * BYTES, changed: false },
    { length: 2 * BYTES, changed: true },
    { length: 12 * BYTES, changed: false },
  ]);
  expect(await device.changed(bytes(2 * BYTES + 512), 512)).toEqual([{ length: 512, changed: true }]);
  expect([device.hasOrigin, rig.mapper.device({ name: 't2' }).hasOrigin]).toEqual([true, false]);
});

test('between two devices it is every block that leads elsewhere, or that one has and the other has not', async () => {
  const blocks = 64;
  const random = prng(1);
  for (let round = 0; round < 20; round++) {
    const rig = await poolOf(512);
    await rig.thin(1, blocks * BLOCK);
    const fill = async (name: string, count: number) => {
      for (let i = 0; i < count; i++) await rig.write(name, random.below(blocks) * BLOCK, snapshotData(0, 8));
    };
    await fill('t1', random.below(60));
    await rig.snapshot(2, 1, blocks * BLOCK);
    await fill('t1', random.below(20));
    await fill('t2', random.below(20));
    const pool = livePool(rig.mapper.device({ name: 'pool' }))!;
    const lookup = async (id: number, block: number) =>
      (await pool.metadata.nextRun(id, block, block + 1))?.block ?? -1;
    const expected: boolean[] = [];
    for (let block = 0; block < blocks; block++) expected.push((await lookup(1, block)) !== (await lookup(2, block)));
    const found: boolean[] = [];
    for (const { length, changed } of await changedBetween(pool, 2, 1, bytes(0), blocks * BYTES))
      for (let at = 0; at < length; at += BYTES) found.push(changed);
    expect(found).toEqual(expected);
    await rig.mapper.removeAll();
  }
});
