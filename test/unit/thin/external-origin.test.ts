/** External origins of thin devices (dm-thin scenarios by number). */
import { expect, test } from 'vitest';
import { originData, snapshotData } from '../../support/rig.ts';
import { BLOCK, poolOf, zeroes } from '../../support/thin.ts';

const ORIGIN = 6184;

async function withOrigin(features: string[] = []) {
  const rig = await poolOf(128, { features, content: Buffer.alloc(2 * 128 * BLOCK * 512, 'P') });
  rig.disk(2, ORIGIN, { content: content() });
  await rig.thin(1, 8192, '/dev/ram2');
  return rig;
}
const content = () => Buffer.concat([originData(0, 4096), originData(0, ORIGIN - 4096)]);
const shown = (from: number, count: number) =>
  Buffer.concat([content(), zeroes(8192 - ORIGIN)]).subarray(from * 512, (from + count) * 512);

test('39, 40. reads as the origin, and as zeroes behind it; nothing is allocated', async () => {
  const rig = await withOrigin();
  expect(await rig.read('t1', 0, 8192)).toEqual(shown(0, 8192));
  expect(await rig.read('t1', 6176, 16)).toEqual(shown(6176, 16));
  expect(await rig.status('t1')).toBe('0 -');
  expect(await rig.table('t1')).toMatch(/^\d+:\d+ 1 1:2$/);
});

test('41 to 43. a small write takes the rest of the block from the origin, and zeroes', async () => {
  const rig = await withOrigin();
  for (const [at, block] of [
    [2 * 128 + 16, 2],
    [48 * 128, 48],
    [50 * 128, 50],
  ]) {
    await rig.write('t1', at, snapshotData(0, 8));
    const expected = Buffer.from(shown(block * 128, 128));
    snapshotData(0, 8).copy(expected, (at - block * 128) * 512);
    expect(await rig.read('t1', block * 128, 128)).toEqual(expected);
  }
});

test('42, 43. with skip_block_zeroing what no origin has is what the disk had', async () => {
  const rig = await withOrigin(['skip_block_zeroing']);
  await rig.write('t1', 48 * 128, snapshotData(0, 8));
  const found = await rig.read('t1', 48 * 128, 128);
  expect(found.subarray(0, 40 * 512)).toEqual(Buffer.concat([snapshotData(0, 8), shown(48 * 128 + 8, 32)]));
  expect(found.subarray(40 * 512)).toEqual(Buffer.alloc(88 * 512, 'P'));
  await rig.write('t1', 50 * 128 + 8, snapshotData(0, 8));
  expect(await rig.read('t1', 50 * 128, 8)).toEqual(Buffer.alloc(8 * 512, 'P'));
});

test('44. a discarded block shows the origin again', async () => {
  const rig = await withOrigin();
  await rig.write('t1', 256, snapshotData(0, 128));
  await rig.discard('t1', 256, 128);
  expect(await rig.read('t1', 256, 128)).toEqual(shown(256, 128));
});

test('45. a snapshot shows it if its table names it', async () => {
  const rig = await withOrigin();
  await rig.snapshot(2, 1, 8192);
  expect(await rig.read('t2', 0, 128)).toEqual(zeroes(128));
  await rig.recreate('t2', '0 8192 thin /dev/mapper/pool 2 /dev/ram2');
  expect(await rig.read('t2', 0, 128)).toEqual(shown(0, 128));
});

test('46. an origin that grows shows more only when the device has been suspended and resumed', async () => {
  const rig = await poolOf(128);
  const origin = rig.disk(2, 64, { content: originData(0, 64) });
  await rig.thin(1, 1024, '/dev/ram2');
  rig.resize(origin, 256);
  rig.poke(origin, 64, originData(64, 192));
  expect(await rig.read('t1', 0, 256)).toEqual(Buffer.concat([originData(0, 64), zeroes(192)]));
  await rig.suspend('t1');
  await rig.resume('t1');
  expect(await rig.read('t1', 0, 300)).toEqual(Buffer.concat([originData(0, 256), zeroes(44)]));
});

test('47. an origin of ten sectors', async () => {
  const rig = await poolOf(128);
  rig.disk(2, 10, { content: originData(0, 10) });
  await rig.thin(1, 1024, '/dev/ram2');
  expect(await rig.read('t1', 0, 128)).toEqual(Buffer.concat([originData(0, 10), zeroes(118)]));
  await rig.write('t1', 64, snapshotData(0, 1));
  expect(await rig.read('t1', 0, 128)).toEqual(
    Buffer.concat([originData(0, 10), zeroes(54), snapshotData(0, 1), zeroes(63)]),
  );
});

test('48. the same word for origin and pool: EINVAL', async () => {
  const rig = await poolOf(64);
  await rig.message('create_thin 1');
  await expect(rig.create('x', '0 128 thin /dev/mapper/pool 1 /dev/mapper/pool')).rejects.toMatchObject({
    errno: 'EINVAL',
    message: expect.stringContaining('Error setting origin device'),
  });
});

test('49. where the pool is read-only the origin is read, and zeroes behind it, where the kernel fails', async () => {
  const rig = await withOrigin();
  await rig.reload(128, { features: ['read_only'] });
  expect(await rig.read('t1', 0, 8)).toEqual(shown(0, 8));
  expect(await rig.read('t1', 6176, 16)).toEqual(shown(6176, 16));
  expect(await rig.read('t1', 7000, 8)).toEqual(zeroes(8));
  await expect(rig.write('t1', 0, snapshotData(0, 8))).rejects.toMatchObject({ errno: 'EIO' });
});
