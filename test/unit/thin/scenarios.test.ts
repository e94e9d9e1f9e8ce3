/** What a kernel's pool does, as far as its metadata shows it; the numbers are those of the scenarios of dm-thin. */
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.ts';
import type { DmError, Errno } from '../../../src/errors.ts';
import { blockData, seal } from '../../../src/formats/pdata/block.ts';
import { diskSuperblock, SUPERBLOCK } from '../../../src/formats/thin/superblock.ts';
import { prng } from '../../../src/lib/prng.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { bytes, sector } from '../../../src/units.ts';

const BLOCK = 4096;

const open = (device: MemoryDevice | SimulatedDisk, { blockSize = 128, readOnly = false } = {}) =>
  PoolMetadata.open(device, { dataBlockSize: sector(blockSize), readOnly, flushData() {} });

function imageOf(device: MemoryDevice | SimulatedDisk): Buffer {
  const image = Buffer.alloc(device.size);
  (device as MemoryDevice).read(bytes(0), image, 0, image.length);
  return image;
}

/** A pool of `data` blocks, and its first thin device. */
async function made(data = 512, blocks = 1024): Promise<{ disk: MemoryDevice; pool: PoolMetadata }> {
  const disk = new MemoryDevice(blocks * BLOCK);
  const pool = await open(disk);
  await pool.resizeData(data);
  await pool.createThin(1);
  await pool.openThin(1);
  await pool.commit();
  return { disk, pool };
}

/** A write to a virtual block: in place, or to a new block. Returns where it is then. */
async function write(pool: PoolMetadata, id: number, virtual: number): Promise<number> {
  const mapping = await pool.lookup(id, virtual);
  if (mapping && !mapping.shared) return mapping.block;
  const block = await pool.allocateDataBlock();
  await pool.insert(id, virtual, block);
  return block;
}

async function fork(pool: PoolMetadata, id: number, of: number): Promise<void> {
  await pool.createSnapshot(id, of);
  await pool.openThin(id);
  await pool.commit();
}

const fails = (call: Promise<unknown>, errno: Errno) => expect(call).rejects.toMatchObject({ errno });
const used = (pool: PoolMetadata) => pool.metadataBlocks - pool.freeMetadataBlocks;
const usedData = (pool: PoolMetadata) => pool.dataBlocks - pool.freeDataBlocks;

async function whole(disk: MemoryDevice): Promise<void> {
  expect((await checkMetadata(disk)).findings).toEqual([]);
}

function edit(disk: MemoryDevice, change: (view: DataView) => void): void {
  const block = blockData();
  disk.read(bytes(0), block.bytes, 0, BLOCK);
  change(block.view);
  seal(block, 0, SUPERBLOCK);
  disk.write(bytes(0), block.bytes, 0, BLOCK);
}

test('1, 2: a new pool uses 8 blocks, and 9 when it has data; a tenth more is kept back', async () => {
  const disk = new MemoryDevice(1024 * BLOCK);
  const pool = await open(disk);
  expect([used(pool), pool.dataBlocks]).toEqual([110, 0]);
  await pool.resizeData(512);
  await pool.commit();
  expect([used(pool), usedData(pool), pool.dataBlocks]).toEqual([111, 0, 512]);
  expect(pool.roots.data).toEqual({ nrBlocks: 512, nrAllocated: 0, bitmapRoot: 10, refCountRoot: 5 });
  expect(pool.roots.metadata).toEqual({ nrBlocks: 1024, nrAllocated: 9, bitmapRoot: 11, refCountRoot: 2 });
});

test('3: what follows a first block of zeroes does not matter', async () => {
  const disk = new MemoryDevice(1024 * BLOCK);
  const random = prng(1);
  const stale = Buffer.from(Array.from({ length: 64 * BLOCK }, () => random.below(256)));
  disk.write(bytes(BLOCK), stale, 0, stale.length);
  await (await open(disk)).commit();
  await whole(disk);
});

test('4: one byte that is not zero, and nothing is written', async () => {
  const disk = new MemoryDevice(1024 * BLOCK);
  const one = new Uint8Array(512);
  one[300] = 1;
  disk.write(bytes(0), one, 0, 512);
  const before = imageOf(disk);
  await expect(open(disk)).rejects.toMatchObject({ code: 'METADATA_BLOCK' });
  expect(imageOf(disk).equals(before)).toBe(true);
});

test('5: nothing is made read-only', async () => {
  const disk = new MemoryDevice(1024 * BLOCK);
  await fails(open(disk, { readOnly: true }), 'EPERM');
  expect(imageOf(disk).every((byte) => byte === 0)).toBe(true);
});

test('6: another block size is refused', async () => {
  const { disk } = await made();
  await fails(open(disk, { blockSize: 256 }), 'EINVAL');
});

test('7: opening, reading and committing nothing writes nothing', async () => {
  const { disk, pool } = await made();
  for (let i = 0; i < 50; i++) await write(pool, 1, i * 3);
  await pool.commit();
  const before = imageOf(disk);
  disk.readOnly = true;
  const again = await open(disk);
  await again.openThin(1);
  for (let i = 0; i < 50; i++) await again.lookup(1, i);
  again.closeThin(1);
  await again.commit();
  expect(imageOf(disk).equals(before)).toBe(true);
});

test('8: unknown features are refused; the version is not looked at, as the kernel does not', async () => {
  const { disk } = await made();
  edit(disk, (view) => view.setUint32(diskSuperblock.at.version, 3, true));
  await open(disk);
  edit(disk, (view) => view.setUint32(diskSuperblock.at.incompatFlags, 1, true));
  await fails(open(disk), 'EINVAL');
});

test('12: a device that exists is not created, and nothing changes', async () => {
  const { disk, pool } = await made();
  const before = imageOf(disk);
  await fails(pool.createThin(1), 'EEXIST');
  await pool.commit();
  expect(imageOf(disk).equals(before)).toBe(true);
});

test('15: an active device is not deleted, and an unknown one neither', async () => {
  const { pool } = await made();
  await fails(pool.delete(99), 'ENODATA');
  await fails(pool.delete(1), 'EBUSY');
  pool.closeThin(1);
  await pool.delete(1);
});

test('16: a snapshot of nothing, and one onto what exists', async () => {
  const { pool } = await made();
  await fails(pool.createSnapshot(5, 99), 'ENODATA');
  await fails(pool.createSnapshot(1, 1), 'EEXIST');
});

test('17: the transaction id is what it was expected to be, and has 64 bits', async () => {
  const { disk, pool } = await made();
  await fails(pool.setTransactionId(5n, 6n), 'EINVAL');
  await pool.setTransactionId(0n, 2n ** 64n - 1n);
  await pool.commit();
  expect((await open(disk)).transId).toBe(2n ** 64n - 1n);
});

test('18: there is one metadata snapshot at most', async () => {
  const { disk, pool } = await made();
  await fails(pool.releaseSnapshot(), 'EINVAL');
  await pool.reserveSnapshot();
  await fails(pool.reserveSnapshot(), 'EBUSY');
  expect(pool.heldRoot).toBeGreaterThan(0);
  await pool.releaseSnapshot();
  expect(pool.heldRoot).toBe(0);
  await pool.commit();
  await whole(disk);
});

test('20, 71: what was committed is there after a power cut', async () => {
  const disk = new SimulatedDisk(256 * BLOCK, { power: new PowerSupply({ seed: 1 }), name: 'metadata' });
  const pool = await open(disk);
  await pool.resizeData(100);
  await pool.createThin(1);
  await pool.openThin(1);
  const block = await write(pool, 1, 7);
  await pool.commit();
  await pool.createThin(2);
  await write(pool, 1, 8);
  for (let seed = 0; seed < 20; seed++) {
    const after = await open(new SimulatedDisk(256 * BLOCK, { contents: disk.afterCrash(seed) }));
    await after.openThin(1);
    expect(await after.lookup(1, 7)).toEqual({ block, shared: false });
    expect(await after.lookup(1, 8)).toBeUndefined();
    await fails(after.openThin(2), 'ENODATA');
  }
});

test('26 to 29: a write to what is shared goes elsewhere, once for each device', async () => {
  const { disk, pool } = await made();
  for (let virtual = 0; virtual < 4; virtual++) await write(pool, 1, virtual);
  await fork(pool, 2, 1);
  expect([pool.mappedBlocks(1), pool.mappedBlocks(2), usedData(pool), pool.time]).toEqual([4, 4, 4, 1]);
  const counts = () => Promise.all([0, 1, 2, 3].map((block) => pool.dataCount(block)));
  expect(await counts()).toEqual([1, 1, 1, 1]);

  const first = await write(pool, 1, 0);
  expect(first).toBe(4);
  expect(await pool.lookup(2, 0)).toEqual({ block: 0, shared: true });
  expect(await pool.lookup(1, 0)).toEqual({ block: 4, shared: false });
  expect(await counts()).toEqual([1, 2, 2, 2]);
  await pool.commit();

  expect(await write(pool, 2, 0)).toBe(5);
  await pool.commit();
  expect(usedData(pool)).toBe(5);
  expect(await pool.dataCount(0)).toBe(0);

  const before = imageOf(disk);
  expect(await write(pool, 1, 0)).toBe(4);
  await pool.commit();
  expect(imageOf(disk).equals(before)).toBe(true);
  await whole(disk);
});

test('30: only the last of ten snapshots of snapshots changes', async () => {
  const { disk, pool } = await made();
  for (let virtual = 0; virtual < 20; virtual++) await write(pool, 1, virtual);
  for (let id = 2; id <= 11; id++) await fork(pool, id, id - 1);
  await write(pool, 11, 5);
  await pool.commit();
  for (let id = 1; id <= 10; id++) expect((await pool.lookup(id, 5))!.block).toBe(5);
  expect((await pool.lookup(11, 5))!.block).toBe(20);
  await whole(disk);
});

test('31: a snapshot outlives its origin', async () => {
  const { disk, pool } = await made();
  for (let virtual = 0; virtual < 20; virtual++) await write(pool, 1, virtual);
  await fork(pool, 2, 1);
  for (let virtual = 0; virtual < 7; virtual++) await write(pool, 1, virtual);
  await pool.commit();
  expect(usedData(pool)).toBe(27);
  pool.closeThin(1);
  await pool.delete(1);
  await pool.commit();
  expect(usedData(pool)).toBe(20);
  for (let virtual = 0; virtual < 20; virtual++) expect((await pool.lookup(2, virtual))!.block).toBe(virtual);
  await whole(disk);
});

test('34: nodes stay a third full through inserts and removals in any order', async () => {
  const { disk, pool } = await made(4096);
  const random = prng(34);
  const mapped = new Set<number>();
  for (let i = 0; i < 1500; i++) mapped.add((i * 1237) % 4096);
  for (const virtual of mapped) await write(pool, 1, virtual);
  for (let i = 0; i < 500; i++) {
    const virtual = random.pick([...mapped]);
    await pool.removeRange(1, virtual, virtual + 1);
    mapped.delete(virtual);
  }
  await pool.commit();
  await whole(disk);
  const middle = [...mapped].sort((a, b) => a - b).slice(300, 700);
  await pool.removeRange(1, middle[0], middle.at(-1)! + 1);
  await pool.commit();
  await whole(disk);
  expect(pool.mappedBlocks(1)).toBe(600);
  await pool.removeRange(1, 0, 4096);
  await pool.commit();
  await whole(disk);
  expect([pool.mappedBlocks(1), await pool.highest(1), usedData(pool)]).toEqual([0, -1, 0]);
});

test('35: counts above three, and back', async () => {
  const { disk, pool } = await made();
  for (let virtual = 0; virtual < 10; virtual++) await write(pool, 1, virtual);
  for (let id = 2; id <= 5; id++) await fork(pool, id, 1);
  for (let id = 2; id <= 5; id++) await write(pool, id, id);
  await pool.commit();
  expect(await pool.dataCount(9)).toBe(5);
  await whole(disk);
  for (let id = 2; id <= 5; id++) {
    pool.closeThin(id);
    await pool.delete(id);
    await pool.commit();
  }
  expect(await pool.dataCount(9)).toBe(1);
  expect(usedData(pool)).toBe(10);
  await whole(disk);
});

test('36: what is mapped far out stays', async () => {
  const { pool } = await made();
  const far = 2 ** 40;
  const block = await write(pool, 1, far);
  await write(pool, 1, 0);
  expect(await pool.lookup(1, far)).toEqual({ block, shared: false });
  expect(await pool.highest(1)).toBe(far);
});

test('63: metadata is used up but for the reserve, and grows', async () => {
  const disk = new MemoryDevice(64 * BLOCK);
  const pool = await open(disk);
  await pool.resizeData(512);
  await pool.commit();
  let created = 0;
  while (pool.freeMetadataBlocks > 0) {
    await pool.createThin(created++);
    await pool.commit();
  }
  expect([created, used(pool), pool.metadataBlocks, pool.needsCheck]).toEqual([49, 64, 64, false]);
  disk.size = bytes(128 * BLOCK);
  await pool.resizeMetadata(128);
  await pool.commit();
  expect([used(pool), pool.metadataBlocks]).toEqual([70, 128]);
  await whole(disk);
});

test('67: nothing shrinks', async () => {
  const { disk, pool } = await made();
  const before = imageOf(disk);
  const refused = (call: Promise<void>) =>
    call.then(
      () => '',
      ({ errno, message }: DmError) => `${errno} ${message}`,
    );
  expect(await refused(pool.resizeData(511))).toBe('EINVAL pool target (511 blocks) too small: expected 512');
  expect(await refused(pool.resizeMetadata(1023))).toBe(
    'EINVAL metadata device (1023 blocks) too small: expected 1024',
  );
  await pool.commit();
  expect(imageOf(disk).equals(before)).toBe(true);
});

test('75: after reopening blocks are given out from the lowest one on', async () => {
  const { disk, pool } = await made();
  for (let virtual = 0; virtual < 10; virtual++) await write(pool, 1, virtual);
  await pool.setTransactionId(0n, 9n);
  await fork(pool, 2, 1);
  await pool.removeRange(1, 3, 5);
  await pool.removeRange(2, 3, 5);
  await pool.reserveSnapshot();
  await pool.commit();
  await pool.releaseSnapshot();
  await pool.commit();
  expect(await write(pool, 1, 100)).toBe(10);
  await pool.commit();
  const again = await open(disk);
  expect([again.transId, again.time, again.heldRoot]).toEqual([9n, 1, 0]);
  await again.openThin(1);
  expect([await write(again, 1, 101), await write(again, 1, 102), await write(again, 1, 103)]).toEqual([3, 4, 11]);
});

test('what was freed is given out after the next commit only', async () => {
  const { pool } = await made(8);
  for (let virtual = 0; virtual < 8; virtual++) await write(pool, 1, virtual);
  await pool.commit();
  await pool.removeRange(1, 2, 3);
  expect(pool.freeDataBlocks).toBe(1);
  expect(() => pool.allocateDataBlock()).toThrow(expect.objectContaining({ code: 'DATA_NO_SPACE', errno: 'ENOSPC' }));
  await pool.commit();
  expect(await pool.allocateDataBlock()).toBe(2);
});
