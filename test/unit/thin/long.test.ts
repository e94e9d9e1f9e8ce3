/** Deleting and unmapping much: in steps, with the event loop going on in between, and with nothing left over. */
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import type { DmError } from '../../../src/errors.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { ScriptedDevice } from '../../../src/testing/scripted-device.ts';
import { bytes, sector } from '../../../src/units.ts';
import { allocateBlock } from '../../support/allocate-block.ts';

const SIZE = 8 * 2 ** 20;
const MAPPED = 40_000;

const open = (device: MemoryDevice | ScriptedDevice) =>
  PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });

/** Device 1 with many blocks mapped here and there; 2 shares half of them. */
const filled = await (async () => {
  const disk = new MemoryDevice(SIZE);
  const pool = await open(disk);
  await pool.resizeData(2 * MAPPED);
  await pool.createThin(1);
  await pool.openThin(1);
  for (let i = 0; i < MAPPED; i++) {
    if (i === MAPPED / 2) await pool.createSnapshot(2, 1);
    await pool.insert(1, (i * 7919) % 65_537, (await allocateBlock(pool)) as number);
  }
  await pool.commit();
  const image = Buffer.alloc(SIZE);
  disk.read(bytes(0), image, 0, SIZE);
  return image;
})();

function copy(): MemoryDevice {
  const disk = new MemoryDevice(SIZE);
  disk.write(bytes(0), filled, 0, SIZE);
  return disk;
}

/** How many turns of the event loop others had while it was done. */
async function turnsOf(work: Promise<unknown>): Promise<number> {
  let turns = 0;
  let done = false;
  const count = () => {
    turns++;
    if (!done) setImmediate(count);
  };
  setImmediate(count);
  await work;
  done = true;
  return turns;
}

test('a large device is deleted in steps, and lookups of others go on', async () => {
  const disk = copy();
  const pool = await open(disk);
  await pool.openThin(2);
  const before = await pool.lookup(2, 0);
  const going = pool.delete(1);
  const turns = turnsOf(going);
  expect(await pool.lookup(2, 0)).toEqual(before);
  expect(await turns).toBeGreaterThan(4);
  await pool.commit();
  const { findings, devices } = await checkMetadata(disk);
  expect(findings).toEqual([]);
  expect([...devices]).toEqual([[2, MAPPED / 2]]);
  expect(pool.freeDataBlocks).toBe(2 * MAPPED - MAPPED / 2);
});

test('what a large change leaves is committed in steps', async () => {
  const pool = await open(copy());
  await pool.openThin(1);
  await pool.removeRange(1, 1000, 60_000);
  const { dirty } = pool;
  expect(dirty).toBeGreaterThan(128);
  expect(await turnsOf(pool.commit())).toBeGreaterThan(dirty / 128);
});

test('a metadata snapshot that alone holds a large device is released in steps', async () => {
  const disk = copy();
  const pool = await open(disk);
  await pool.reserveSnapshot();
  for (const id of [1, 2]) await pool.delete(id);
  await pool.commit();
  expect(await turnsOf(pool.releaseSnapshot())).toBeGreaterThan(4);
  await pool.commit();
  expect((await checkMetadata(disk)).findings).toEqual([]);
  expect(pool.freeDataBlocks).toBe(2 * MAPPED);
});

test('a large range is unmapped in steps, as if it were unmapped at once', async () => {
  const disk = copy();
  const pool = await open(disk);
  await pool.openThin(1);
  const work = pool.removeRange(1, 1000, 60_000);
  expect(await turnsOf(work)).toBeGreaterThan(7);
  expect(await work).toBe(60_000);
  await pool.commit();
  for (const virtual of [999, 1000, 1001, 30_000, 59_999]) {
    const mapping = await pool.lookup(1, virtual);
    if (virtual >= 1000) expect(mapping).toBeUndefined();
  }
  expect(await pool.nextRun(1, 1000, 60_000)).toBeUndefined();
  expect((await checkMetadata(disk)).findings).toEqual([]);
});

test('a step of a deletion that cannot read stops all changes; an abort brings the device back', async () => {
  const disk = copy();
  const device = new ScriptedDevice(disk);
  const pool = await open(device);
  let reads = 0;
  device.fault = (operation) => (operation === 'read' && reads++ > 100 ? 'EIO' : undefined);
  await expect(pool.delete(1)).rejects.toMatchObject({ code: 'THIN_FAILED', errno: 'EIO' });
  device.fault = undefined;
  await expect(pool.commit()).rejects.toMatchObject({ code: 'THIN_FAILED' });
  await pool.abort();
  const { findings, devices } = await checkMetadata(disk);
  expect(findings).toEqual([]);
  expect(devices.get(1)).toBe(MAPPED);
  await pool.openThin(1);
  expect(await pool.lookup(1, 7919)).toBeDefined();
  await pool.createThin(8).catch((error: DmError) => expect(error.code).toBe('THIN_NEEDS_CHECK'));
});

test('runs are all that is mapped', async () => {
  const pool = await open(copy());
  await pool.openThin(1);
  let count = 0;
  for (let from = 0; ; ) {
    const run = await pool.nextRun(1, from, 70_000);
    if (!run) break;
    expect(run.begin).toBeGreaterThanOrEqual(from);
    expect(await pool.lookup(1, run.begin)).toEqual({ block: run.block, shared: run.shared });
    count += run.count;
    from = run.begin + run.count;
  }
  expect(count).toBe(MAPPED);
});
