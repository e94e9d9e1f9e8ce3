/** What thin devices ask of the data device: as little, in as few pieces, as there can be. */
import { expect, test } from 'vitest';
import { bytes, SECTOR } from '../../../src/units.ts';
import { originData, snapshotData, turns } from '../../support/rig.ts';
import { BLOCK, errno, poolOf, type ThinRig, whole, zeroes } from '../../support/thin.ts';

const FULL = Buffer.alloc(2 * 64 * BLOCK * SECTOR, 'P');

/** A pool over a disk that holds something everywhere, and thin device 1. */
async function used(features: string[] = []): Promise<ThinRig> {
  const rig = await poolOf(64, { content: FULL, features });
  await rig.thin(1, 8192);
  rig.data.takeLog();
  return rig;
}

test('new blocks that are written whole are one write, and nothing is zeroed', async () => {
  const rig = await used();
  await rig.write('t1', 0, originData(0, 8 * BLOCK));
  expect(rig.data.takeLog()).toEqual(['W 0+1024']);
  await rig.write('t1', 10 * BLOCK + 8, originData(0, 3 * BLOCK));
  expect(rig.data.takeLog('E')).toEqual(['W 1024+128', 'W 1152+256', 'W 1408+128']);
  expect(await rig.read('t1', 10 * BLOCK, 4 * BLOCK)).toEqual(
    Buffer.concat([zeroes(8), originData(0, 3 * BLOCK), zeroes(BLOCK - 8)]),
  );
  await whole(rig);
});

test('what lies side by side is read and overwritten in one piece', async () => {
  const rig = await used();
  await rig.write('t1', 0, originData(0, 4 * BLOCK));
  await rig.write('t1', 6 * BLOCK, originData(6 * BLOCK, 2 * BLOCK));
  rig.data.takeLog();
  expect(await rig.read('t1', 8, 8 * BLOCK - 16)).toEqual(
    Buffer.concat([originData(8, 4 * BLOCK - 8), zeroes(2 * BLOCK), originData(6 * BLOCK, 2 * BLOCK - 8)]),
  );
  expect(rig.data.takeLog()).toEqual(['R 8+504', 'R 512+248']);
  await rig.write('t1', 8, snapshotData(8, 4 * BLOCK - 16));
  expect(rig.data.takeLog()).toEqual(['W 8+496']);
  await rig.write('t1', 3 * BLOCK, snapshotData(0, 4 * BLOCK));
  expect(rig.data.takeLog()).toEqual(['W 384+128', 'W 768+256', 'W 512+128']);
  await whole(rig);
});

test('shared blocks that are overwritten whole are not read, and written together', async () => {
  const rig = await used();
  await rig.write('t1', 0, originData(0, 4 * BLOCK));
  await rig.snapshot(2, 1, 8192);
  rig.data.takeLog();
  await rig.write('t2', 0, snapshotData(0, 4 * BLOCK));
  expect(rig.data.takeLog()).toEqual(['W 512+512']);
  expect(await rig.read('t1', 0, 4 * BLOCK)).toEqual(originData(0, 4 * BLOCK));
  expect(await rig.read('t2', 0, 4 * BLOCK)).toEqual(snapshotData(0, 4 * BLOCK));
  await whole(rig);
});

test('several blocks come from where they are free', async () => {
  const rig = await used(['skip_block_zeroing']);
  await rig.write('t1', 0, originData(0, 62 * BLOCK));
  await rig.mapper.device({ name: 't1' }).discard(bytes(5 * BLOCK * SECTOR), 2 * BLOCK * SECTOR);
  await rig.status('pool');
  rig.data.takeLog();
  await rig.write('t1', 62 * BLOCK, originData(62 * BLOCK, 2 * BLOCK));
  await rig.write('t1', 5 * BLOCK, snapshotData(0, 2 * BLOCK));
  expect(rig.data.takeLog()).toEqual(['W 7936+256', 'W 640+256']);
  expect(await rig.status('t1')).toBe('8192 8191');
  await whole(rig);
});

test('of several blocks, as many are written as there is space for', async () => {
  const rig = await used(['error_if_no_space']);
  await rig.write('t1', 0, originData(0, 60 * BLOCK));
  await rig.thin(2, 8192);
  await expect(rig.write('t2', 0, originData(0, 8 * BLOCK))).rejects.toMatchObject(errno('ENOSPC'));
  expect(await rig.status('t2')).toBe('512 511');
  expect(await rig.read('t2', 0, 4 * BLOCK)).toEqual(originData(0, 4 * BLOCK));
  await whole(rig);
});

test('where the disk is a hole, no zeroes are written', async () => {
  const rig = await poolOf(64);
  await rig.thin(1, 8192);
  rig.data.takeLog();
  await rig.write('t1', 8, originData(8, 8));
  expect(rig.data.takeLog('E')).toEqual(['W 8+8']);
  expect(await rig.read('t1', 0, BLOCK)).toEqual(Buffer.concat([zeroes(8), originData(8, 8), zeroes(BLOCK - 16)]));
});

test('two that write whole blocks over each other, while the disk is slow, get one of them each', async () => {
  const rig = await used();
  rig.data.hold = (operation) => operation === 'write';
  const first = rig.write('t1', 0, originData(0, 4 * BLOCK));
  const second = rig.write('t1', 3 * BLOCK, snapshotData(3 * BLOCK, 4 * BLOCK));
  await rig.data.held(1);
  rig.data.go();
  await Promise.all([first, second]);
  expect(await rig.status('t1')).toBe('896 895');
  expect(await rig.read('t1', 3 * BLOCK, 4 * BLOCK)).toEqual(snapshotData(3 * BLOCK, 4 * BLOCK));
  await whole(rig);
});

test('nothing is waited for where everything is at hand', async () => {
  const rig = await used(['skip_block_zeroing']);
  const device = rig.mapper.device({ name: 't1' });
  const buffer = new Uint8Array(8 * BLOCK * SECTOR);
  expect(device.write(bytes(4096), buffer, 0, 4096)).toBeUndefined();
  expect(device.write(bytes(0), buffer, 0, buffer.length)).toBeUndefined();
  expect(device.read(bytes(4096), buffer, 0, 4096)).toBeUndefined();
  expect(device.read(bytes(0), buffer, 0, buffer.length)).toBeUndefined();
});

test('a flush that comes behind a commit that fails hears of it', async () => {
  const rig = await used();
  await rig.write('t1', 0, originData(0, 8));
  rig.data.hold = (operation) => operation === 'flush';
  let flushes = 0;
  rig.data.fault = (operation) => (operation === 'flush' && flushes++ === 0 ? 'EIO' : undefined);
  const commit = rig.status('pool');
  await rig.data.held(1);
  const flush = rig.mapper.device({ name: 't1' }).flush();
  await turns(3);
  rig.data.go();
  await expect(flush).rejects.toMatchObject(errno('EIO'));
  expect(await commit).toContain(' ro ');
});
