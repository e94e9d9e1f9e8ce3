/** What survives a power cut of a pool and its thin devices (dm-thin scenarios by number). */
import { expect, test } from 'vitest';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { Pool } from '../../../src/targets/thin/pool.ts';
import { FakeClock } from '../../../src/testing/fake-clock.ts';
import { originData, turns } from '../../support/rig.ts';
import { poolOf } from '../../support/thin.ts';

test('70. what nobody flushed is committed a second later', async () => {
  const clock = new FakeClock();
  const usual = Pool.clock;
  Pool.clock = clock;
  try {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    await rig.write('t1', 0, originData(0, 8));
    expect((await checkMetadata(rig.meta)).devices).toEqual(new Map([[1, 0]]));
    clock.pass(1000);
    await turns();
    expect((await checkMetadata(rig.meta)).devices).toEqual(new Map([[1, 1]]));
  } finally {
    Pool.clock = usual;
  }
});

test('71, 74. a flush makes durable what was written to that device; nothing to do for another one', async () => {
  const rig = await poolOf(64);
  await rig.thin(1, 1024);
  await rig.thin(2, 1024);
  await rig.write('t1', 0, originData(0, 8));
  rig.meta.takeLog();
  await rig.flush('t2');
  expect(rig.meta.takeLog()).toEqual([]);
  await rig.flush('t1');
  expect((await checkMetadata(rig.meta)).devices.get(1)).toBe(1);
});
