/** Discards of thin devices (dm-thin scenarios by number). */
import { expect, test } from 'vitest';
import { originData, snapshotData } from '../../support/rig.ts';
import { errno, poolOf, whole } from '../../support/thin.ts';

test('50, 51. whole blocks only; the data device hears of them', async () => {
  const rig = await poolOf(64);
  await rig.thin(1, 1024);
  await rig.write('t1', 0, originData(0, 256));
  rig.data.takeLog();
  await rig.discard('t1', 8, 128);
  expect(await rig.status('t1')).toBe('256 255');
  await rig.discard('t1', 100, 156);
  expect(rig.data.takeLog('RWF')).toEqual(['D 128+128']);
  expect(await rig.status('t1')).toBe('128 127');
  expect(await rig.status('pool')).toContain(' 1/64 ');
  await whole(rig);
});

test('52. of a shared block nothing is discarded below', async () => {
  const rig = await poolOf(64);
  await rig.thin(1, 1024);
  await rig.write('t1', 0, originData(0, 256));
  await rig.snapshot(2, 1, 1024);
  await rig.write('t1', 128, snapshotData(128, 128));
  rig.data.takeLog();
  await rig.discard('t1', 0, 256);
  expect(rig.data.takeLog('RWF')).toEqual(['D 256+128']);
  expect(await rig.read('t2', 0, 256)).toEqual(originData(0, 256));
  await whole(rig);
});

test('53. no_discard_passdown: the data device hears nothing; ignore_discard: refused', async () => {
  const rig = await poolOf(64, { features: ['no_discard_passdown'] });
  await rig.thin(1, 1024);
  await rig.write('t1', 0, originData(0, 128));
  rig.data.takeLog();
  await rig.discard('t1', 0, 128);
  expect(rig.data.takeLog('F')).toEqual([]);
  expect(await rig.status('t1')).toBe('0 -');
  const other = await poolOf(64, { features: ['ignore_discard'] });
  await other.thin(1, 1024);
  expect(other.mapper.device({ name: 't1' }).canDiscard).toBe(false);
  await expect(other.discard('t1', 0, 128)).rejects.toMatchObject(errno('EOPNOTSUPP'));
});

test('54. where the pool is read-only a discard succeeds, and what was there stays', async () => {
  const rig = await poolOf(64);
  await rig.thin(1, 1024);
  await rig.write('t1', 0, originData(0, 128));
  await rig.reload(64, { features: ['read_only'] });
  rig.data.takeLog();
  await rig.discard('t1', 0, 128);
  expect(rig.data.takeLog()).toEqual([]);
  expect(await rig.status('t1')).toBe('128 127');
  expect(await rig.read('t1', 0, 128)).toEqual(originData(0, 128));
});
