/** What a kernel's pool does, as far as its metadata shows it; the numbers are those of the scenarios of dm-thin. */
import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.ts';
import type { DmError, Errno } from '../../../src/errors.ts';
import { BITMAP, blockData, INDEX, isSealed, seal } from '../../../src/formats/pdata/block.ts';
import * as node from '../../../src/formats/pdata/node.ts';
import { NODE } from '../../../src/formats/pdata/node.ts';
import { diskSuperblock, SUPERBLOCK } from '../../../src/formats/thin/superblock.ts';
import { mappedTime } from '../../../src/formats/thin/values.ts';
import { prng } from '../../../src/lib/prng.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { MetadataReader, type ThinDevice } from '../../../src/stores/thin/reader.ts';
import { bytes, sector } from '../../../src/units.ts';
import { allocateBlock } from '../../support/allocate-block.ts';
import { Image } from '../../support/thin-damage.ts';
import { EXAMPLE_SHA256, workedExample } from './worked-example.ts';

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
  const block = await allocateBlock(pool);
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

/** Devices with their details, as they are on the disk. */
async function described(disk: MemoryDevice): Promise<ThinDevice[]> {
  const found: ThinDevice[] = [];
  for await (const device of (await MetadataReader.open(disk)).devices()) found.push(device);
  return found;
}

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
  const image = new Image(disk);
  const kinds = Array.from({ length: 8 }, (_, number) =>
    [SUPERBLOCK, INDEX, BITMAP, NODE].find((kind) => isSealed(image.block(number), kind)),
  );
  expect(kinds).toEqual([SUPERBLOCK, INDEX, NODE, BITMAP, NODE, NODE, NODE, NODE]);
  const trees = [2, 4, 5, 6, 7].map((number) => image.block(number));
  expect(trees.map((block) => [node.isLeaf(block), node.nr(block), node.valueSize(block)])).toEqual(
    [4, 16, 4, 8, 24].map((size) => [true, 0, size]),
  );
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

test('9: the worked example of the format, byte for byte', async () => {
  const disk = workedExample();
  expect(createHash('sha256').update(imageOf(disk)).digest('hex')).toBe(EXAMPLE_SHA256);
  // Who wrote it counted a block of metadata that is free.
  const wrong = async () => (await checkMetadata(disk)).findings.filter(({ severity }) => severity !== 'total');
  expect(await wrong()).toEqual([]);
  const pool = await open(disk);
  const lines: string[] = [];
  for (const id of [1, 2, 3]) {
    await pool.openThin(id);
    lines.push(`${pool.mappedBlocks(id) * 128} ${((await pool.highest(id)) + 1) * 128 - 1}`);
  }
  expect(lines).toEqual(['512 1279', '384 383', '128 127']);
  expect([pool.transId, used(pool), pool.metadataBlocks, usedData(pool), pool.dataBlocks]).toEqual([7n, 19, 64, 4, 64]);
  expect(await pool.lookup(1, 9)).toEqual({ block: 20, shared: false });

  expect(await pool.lookup(1, 0)).toEqual({ block: 8, shared: true });
  expect(await write(pool, 1, 0)).toBe(0);
  await pool.commit();
  expect(await pool.lookup(1, 0)).toEqual({ block: 0, shared: false });
  expect(await pool.dataCount(8)).toBe(2);
  expect(await wrong()).toEqual([]);
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
  expect(await described(disk)).toMatchObject([
    { id: 1, mappedBlocks: 4, creationTime: 0, snapshottedTime: 1 },
    { id: 2, mappedBlocks: 4, creationTime: 1, snapshottedTime: 1 },
  ]);

  const first = await write(pool, 1, 0);
  expect(first).toBe(4);
  expect(await pool.lookup(2, 0)).toEqual({ block: 0, shared: true });
  expect(await pool.lookup(1, 0)).toEqual({ block: 4, shared: false });
  expect(await counts()).toEqual([1, 2, 2, 2]);
  await pool.commit();
  const { leaf } = new Image(disk);
  const { view } = new Image(disk).block(leaf);
  expect([0, 1].map((i) => mappedTime(view, node.valueAt(new Image(disk).block(leaf), i)))).toEqual([1, 0]);

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
  const image = new Image(disk);
  const root = image.block(node.child(image.block(pool.roots.mapping), 0));
  expect([node.isLeaf(root), node.nr(root)]).toEqual([true, 0]);
});

test('35: counts above three, and back', async () => {
  const { disk, pool } = await made();
  for (let virtual = 0; virtual < 10; virtual++) await write(pool, 1, virtual);
  for (let id = 2; id <= 5; id++) await fork(pool, id, 1);
  for (let id = 2; id <= 5; id++) await write(pool, id, id);
  await pool.commit();
  expect(await pool.dataCount(9)).toBe(5);
  await whole(disk);
  const overflow = () => new Image(disk).block(pool.roots.data.refCountRoot);
  const many = overflow();
  const counts = Array.from({ length: node.nr(many) }, (_, i) => many.view.getUint32(node.valueAt(many, i), true));
  // Devices 2 to 5 have one of blocks 2 to 5 elsewhere, each.
  expect(counts).toEqual([5, 5, 4, 4, 4, 4, 5, 5, 5, 5]);
  for (let id = 2; id <= 5; id++) {
    pool.closeThin(id);
    await pool.delete(id);
    await pool.commit();
  }
  expect(await pool.dataCount(9)).toBe(1);
  expect(node.nr(overflow())).toBe(0);
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
  expect(await write(pool, 1, 100)).toBe(10);
  await pool.commit();
  const again = await open(disk);
  expect([again.transId, again.time, again.heldRoot]).toEqual([9n, 1, pool.heldRoot]);
  await again.openThin(1);
  expect([await write(again, 1, 101), await write(again, 1, 102), await write(again, 1, 103)]).toEqual([3, 4, 11]);
});

test('what was freed is given out after the next commit only', async () => {
  const { pool } = await made(8);
  for (let virtual = 0; virtual < 8; virtual++) await write(pool, 1, virtual);
  await pool.commit();
  await pool.removeRange(1, 2, 3);
  expect(pool.freeDataBlocks).toBe(1);
  expect(() => allocateBlock(pool)).toThrow(expect.objectContaining({ code: 'DATA_NO_SPACE', errno: 'ENOSPC' }));
  await pool.commit();
  expect(await allocateBlock(pool)).toBe(2);
});
