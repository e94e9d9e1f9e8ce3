/**
 * Metadata made to do harm: fields of any value under right checksums. Whatever is done with it ends soon, and fails with nothing but
 * a DmError.
 */
import { beforeAll, expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { DmError } from '../../../src/errors.ts';
import { BITMAP, BLOCK_BYTES, blockData, INDEX, isSealed, type Kind, seal } from '../../../src/formats/pdata/block.ts';
import * as node from '../../../src/formats/pdata/node.ts';
import { NODE } from '../../../src/formats/pdata/node.ts';
import { diskIndexEntry, INDEX_AT } from '../../../src/formats/pdata/space-map.ts';
import { u64 } from '../../../src/formats/struct.ts';
import { diskSuperblock, SUPERBLOCK } from '../../../src/formats/thin/superblock.ts';
import { type Prng, prng } from '../../../src/lib/prng.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { bytes, sector } from '../../../src/units.ts';
import { allocateBlock } from '../../support/allocate-block.ts';
import { Image, wholeImage } from '../../support/thin-damage.ts';

const SIZE = 2 ** 20;
const BLOCKS = SIZE / BLOCK_BYTES;
const KINDS = [NODE, BITMAP, INDEX, SUPERBLOCK];
const SEEDS = Number(process.env.PROPERTY_SEEDS ?? 300) / 4;

const open = (device: MemoryDevice) => PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });

const sound = Buffer.alloc(SIZE);
/** Blocks in use that are what they should be. */
const blocks: { number: number; kind: Kind }[] = [];

beforeAll(async () => {
  const device = new MemoryDevice(SIZE);
  const pool = await open(device);
  await pool.resizeData(5000);
  await pool.createThin(1);
  await pool.openThin(1);
  for (let i = 0; i < 1500; i++) await pool.insert(1, (i * 1237) % 4096, (await allocateBlock(pool)) as number);
  for (const id of [2, 3, 4]) {
    await pool.createSnapshot(id, 1);
    await pool.insert(1, id * 50, (await allocateBlock(pool)) as number);
  }
  await pool.reserveSnapshot();
  await pool.commit();
  device.read(bytes(0), sound, 0, SIZE);
  const block = blockData();
  for (let number = 0; number < BLOCKS; number++) {
    block.bytes.set(sound.subarray(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES));
    const kind = KINDS.find((candidate) => isSealed(block, candidate));
    if (kind) blocks.push({ number, kind });
  }
  expect(blocks.length).toBeGreaterThan(20);
});

function change(device: MemoryDevice, number: number, kind: Kind, edit: (view: DataView) => void): void {
  const block = blockData();
  device.read(bytes(number * BLOCK_BYTES), block.bytes, 0, BLOCK_BYTES);
  edit(block.view);
  seal(block, number, kind);
  device.write(bytes(number * BLOCK_BYTES), block.bytes, 0, BLOCK_BYTES);
}

function copy(): MemoryDevice {
  const device = new MemoryDevice(SIZE);
  device.write(bytes(0), sound, 0, SIZE);
  return device;
}

/** Fails unless `call` succeeds or fails with a DmError. */
async function tried<T>(call: () => T | Promise<T>): Promise<T | undefined> {
  try {
    return await call();
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    return undefined;
  }
}

/** Everything that can be done with it. */
async function use(device: MemoryDevice, random: Prng): Promise<void> {
  await tried(() => checkMetadata(device));
  const pool = await tried(() => open(device));
  if (!pool) return;
  for (const id of [1, 2, 3, 4]) await tried(() => pool.openThin(id));
  for (let i = 0; i < 20; i++) {
    const id = 1 + random.below(4);
    await tried(() => pool.lookup(id, random.below(4096)));
    await tried(() => pool.highest(id));
    await tried(() => pool.nextRun(id, random.below(4096), 2 ** 40));
    const block = await tried(() => allocateBlock(pool));
    await tried(() => pool.insert(id, random.below(5000), block ?? random.below(5000)));
    await tried(() => pool.dataCount(random.below(6000)));
    if (i % 5 === 0) await tried(() => pool.commit());
  }
  await tried(() => pool.createThin(9));
  await tried(() => pool.createSnapshot(10, 1));
  await tried(() => pool.removeRange(1, 100, 2 ** 40));
  await tried(() => pool.releaseSnapshot());
  await tried(() => pool.resizeData(40_000));
  pool.closeThin(2);
  await tried(() => pool.delete(2));
  await tried(() => pool.commit());
  await tried(() => pool.abort());
  await tried(() => checkMetadata(device));
}

const VALUES = [0, 1, 2, 3, 8, 24, 252, 253, 508, 2 ** 16, 2 ** 31, 2 ** 32 - 1];

test('single words of any block', async () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const random = prng(seed);
    const device = copy();
    for (let count = random.pick([1, 1, 1, 3]); count > 0; count--) {
      const { number, kind } = random.pick(blocks);
      const at = 4 * random.pick([1, 2, 4, 5, 6, 7, 8, random.below(120), random.below(1024)]);
      const value = random.pick([random.pick(VALUES), random.below(BLOCKS), random.pick(blocks).number]);
      change(device, number, kind, (view) => view.setUint32(at, value, true));
    }
    await use(device, random).catch((error) => {
      throw new Error(`seed ${seed}`, { cause: error });
    });
  }
}, 120_000);

test('every field of the superblock', async () => {
  const random = prng(1);
  for (const at of [...Object.values(diskSuperblock.at), 64, 72, 80, 88, 192, 200, 208, 216])
    for (const value of [0, 7, 2 ** 40, 2 ** 60]) {
      if (at < 16) continue;
      const device = copy();
      change(device, 0, SUPERBLOCK, (view) => u64.set(view, at, value));
      await use(device, random);
    }
}, 60_000);

/** A node that leads to itself, and a chain of nodes of which each leads to the next one twice. */
test('trees that lead back, and trees with more paths than nodes', async () => {
  const names = ['dataMappingRoot', 'deviceDetailsRoot'] as const;
  for (const name of names)
    for (const [next, entries] of [
      [0, 1],
      [0, 252],
      [1, 2],
      [1, 252],
    ]) {
      const device = copy();
      const first = BLOCKS - 70;
      for (let i = 0; i < 60; i++)
        change(device, first + i, NODE, (view) => {
          const block = { view, bytes: new Uint8Array(view.buffer) };
          block.bytes.fill(0);
          node.format(block, i === 59, i === 59 && name === 'deviceDetailsRoot' ? 24 : 8);
          if (i === 59) return;
          node.setNr(block, entries);
          for (let entry = 0; entry < entries; entry++) {
            node.setKey(block, entry, entry);
            node.setChild(block, entry, first + i + next);
          }
        });
      change(device, 0, SUPERBLOCK, (view) => u64.set(view, diskSuperblock.at[name], first));
      await use(device, prng(1));
    }
}, 60_000);

test('an index whose entries are all the same bitmap, for more blocks than there are', async () => {
  for (const { number, kind } of blocks.filter((block) => block.kind === INDEX)) {
    const device = copy();
    change(device, number, kind, (view) => {
      const first = u64.get(view, INDEX_AT);
      for (let i = 0; i < 255; i++) u64.set(view, INDEX_AT + i * diskIndexEntry.size, first);
    });
    change(device, 0, SUPERBLOCK, (view) => {
      u64.set(view, diskSuperblock.at.metadataSpaceMap, 2 ** 22);
      u64.set(view, diskSuperblock.at.dataSpaceMap, 2 ** 39);
    });
    await use(device, prng(number));
  }
});

test('all zeroes but for a single byte is no pool, and is not written', async () => {
  for (const at of [1, 40, 511, 4095]) {
    const device = new MemoryDevice(SIZE);
    device.write(
      bytes(0),
      Uint8Array.from({ length: BLOCK_BYTES }, (_, i) => (i === at ? 1 : 0)),
      0,
      BLOCK_BYTES,
    );
    const before = Buffer.alloc(SIZE);
    device.read(bytes(0), before, 0, SIZE);
    await expect(open(device)).rejects.toBeInstanceOf(DmError);
    const after = Buffer.alloc(SIZE);
    device.read(bytes(0), after, 0, SIZE);
    expect(after.equals(before)).toBe(true);
  }
});

test.each([0, 1000])('a total of %i that is wrong: the pool goes on, and opens again', async (nrAllocated) => {
  const device = await wholeImage();
  new Image(device).setSuperblock(({ dataSpaceMap }) => ({ dataSpaceMap: { ...dataSpaceMap, nrAllocated } }));
  const pool = await open(device);
  await pool.openThin(1);
  if (nrAllocated === 0) {
    await pool.delete(2);
    await pool.removeRange(1, 0, 100);
  } else for (let i = 0; i < 20; i++) await pool.insert(1, 1000 + i, await allocateBlock(pool));
  await pool.commit();
  const again = await open(device);
  await again.openThin(1);
  expect(again.mappedBlocks(1)).toBe(nrAllocated === 0 ? 200 : 320);
  expect((await checkMetadata(device)).findings.filter(({ severity }) => severity !== 'total')).toEqual([]);
});
