/** What becomes of a pool's metadata when an operation finds no space, a read fails, or a commit does not get through. */
import { expect, test } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.ts';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { DmError } from '../../../src/errors.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { FailingDevice } from '../../../src/testing/failing-device.ts';
import { ScriptedDevice } from '../../../src/testing/scripted-device.ts';
import { bytes, sector } from '../../../src/units.ts';
import { allocateBlock } from '../../support/allocate-block.ts';

const SIZE = 4 * 2 ** 20;
/** Of metadata, after it has grown. */
const GROWN = 20_000;

const open = (device: BlockDevice, flushData: () => void | Promise<void> = () => {}) =>
  PoolMetadata.open(device, { dataBlockSize: sector(128), flushData });

function imageOf(device: BlockDevice): Buffer {
  const image = Buffer.alloc(Math.min(SIZE, device.size));
  device.read(bytes(0), image, 0, image.length);
  return image;
}

/** Device 1 with 2000 blocks mapped far apart, its snapshot 2, and a metadata snapshot. */
const filled = await (async () => {
  const disk = new MemoryDevice(SIZE);
  const pool = await open(disk);
  await pool.resizeData(10_000);
  await pool.createThin(1);
  await pool.openThin(1);
  for (let i = 0; i < 2000; i++) await pool.insert(1, (i * 1237) % 8192, await allocateBlock(pool));
  await pool.createSnapshot(2, 1);
  for (let i = 0; i < 300; i++) await pool.insert(1, (i * 731) % 8192, await allocateBlock(pool));
  await pool.reserveSnapshot();
  await pool.commit();
  return imageOf(disk);
})();

function copy(): MemoryDevice {
  const disk = new MemoryDevice(SIZE);
  disk.write(bytes(0), filled, 0, SIZE);
  return disk;
}

async function begin(device: BlockDevice, flushData?: () => void): Promise<PoolMetadata> {
  const pool = await open(device, flushData);
  await pool.openThin(1);
  return pool;
}

async function errorOf(call: () => unknown): Promise<DmError> {
  try {
    await call();
  } catch (error) {
    expect(error).toBeInstanceOf(DmError);
    return error as DmError;
  }
  throw new Error('nothing was thrown');
}

const observed = (pool: PoolMetadata) => ({
  roots: pool.roots,
  time: pool.time,
  transId: pool.transId,
  heldRoot: pool.heldRoot,
  freeData: pool.freeDataBlocks,
  freeMetadata: pool.rawFreeMetadata,
  mapped: pool.mappedBlocks(1),
  dirty: pool.dirty,
});

const changes: [string, (pool: PoolMetadata) => unknown][] = [
  ['insert', (pool) => pool.insert(1, 4000, 9999)],
  ['allocateRun', (pool) => allocateBlock(pool)],
  ['createThin', (pool) => pool.createThin(3)],
  ['createSnapshot', (pool) => pool.createSnapshot(3, 1)],
  ['delete', (pool) => pool.delete(2)],
  ['removeRange', (pool) => pool.removeRange(1, 100, 3000)],
  ['releaseData', (pool) => pool.releaseData(3, 4)],
  ['resizeData', (pool) => pool.resizeData(60_000)],
  ['resizeMetadata', (pool) => pool.resizeMetadata(GROWN)],
  ['releaseSnapshot', (pool) => pool.releaseSnapshot()],
];

test.each(changes)('%s that cannot read a block leaves no trace', async (_name, change) => {
  const undisturbed = copy();
  const other = await begin(undisturbed);
  undisturbed.size = bytes(GROWN * 4096);
  await change(other);
  await other.commit();
  // Read after read fails, until there is none left.
  for (let fails = 0, failed = true; failed; fails += 1 + (fails >> 3)) {
    const disk = copy();
    const device = new ScriptedDevice(disk);
    const pool = await begin(device);
    disk.size = bytes(GROWN * 4096);
    const before = observed(pool);
    let reads = 0;
    failed = false;
    device.fault = (operation) => {
      if (operation !== 'read' || reads++ !== fails) return undefined;
      failed = true;
      return 'EIO';
    };
    const attempt = await errorOf(async () => {
      await change(pool);
      throw new DmError('DONE', 'EIO', 'not failed');
    });
    device.fault = undefined;
    if (attempt.code !== 'DONE') {
      expect(observed(pool)).toEqual(before);
      await change(pool);
    }
    await pool.commit();
    expect(imageOf(disk).equals(imageOf(undisturbed))).toBe(true);
  }
});

/** Of so few blocks that they are soon used up. */
async function tiny(): Promise<{ disk: MemoryDevice; pool: PoolMetadata }> {
  const disk = new MemoryDevice(24 * 4096);
  const pool = await open(disk);
  await pool.resizeData(10_000);
  await pool.createThin(1);
  await pool.openThin(1);
  await pool.commit();
  return { disk, pool };
}

test.each<[string, (pool: PoolMetadata, id: number, block: number) => unknown]>([
  ['createThin', (pool, id) => pool.createThin(id)],
  ['insert', (pool, id, block) => pool.insert(1, id * 300, block)],
  ['createSnapshot', (pool, id) => pool.createSnapshot(id, 1)],
])('%s that finds no space leaves no trace', async (_name, change) => {
  const { disk, pool } = await tiny();
  for (let id = 2, failed = false; !failed; id++) {
    const block = (await allocateBlock(pool)) as number;
    const before = observed(pool);
    try {
      await change(pool, id, block);
    } catch (error) {
      failed = true;
      expect((error as DmError).code).toBe('METADATA_NO_SPACE');
      expect(observed(pool)).toEqual(before);
    }
  }
  disk.size = bytes(64 * 4096);
  await pool.resizeMetadata(64);
  await pool.commit();
  const { findings } = await checkMetadata(disk);
  expect(findings.filter(({ severity }) => severity !== 'leak')).toEqual([]);
});

test('a commit that finds no space leaves no trace, and gets through when the device has grown', async () => {
  const { disk, pool } = await tiny();
  const image = imageOf(disk);
  for (
    let id = 2;
    await pool.createThin(id).then(
      () => true,
      () => false,
    );
  )
    id++;
  const before = observed(pool);
  expect((await errorOf(() => pool.commit())).code).toBe('METADATA_NO_SPACE');
  expect(observed(pool)).toEqual(before);
  expect(imageOf(disk).equals(image)).toBe(true);
  disk.size = bytes(64 * 4096);
  await pool.resizeMetadata(64);
  await pool.commit();
  expect((await checkMetadata(disk)).findings).toEqual([]);
});

/** Every write and flush of a commit, one after the other, fails. */
async function eachFailure(check: (pool: PoolMetadata, disk: MemoryDevice) => Promise<void>): Promise<void> {
  let fails = 0;
  for (let failed = true; failed; fails++) {
    const disk = copy();
    const device = new ScriptedDevice(disk);
    const pool = await begin(device);
    await pool.insert(1, 8000, (await allocateBlock(pool)) as number);
    await pool.removeRange(1, 0, 400);
    let operations = 0;
    failed = false;
    device.fault = (operation) => {
      if (operation === 'read' || operations++ !== fails) return undefined;
      failed = true;
      return 'EIO';
    };
    await pool.commit().catch(() => expect(failed).toBe(true));
    device.fault = undefined;
    if (failed) await check(pool, disk);
  }
  expect(fails).toBeGreaterThan(4);
}

test('after a commit that failed nothing can be changed until an abort, and then only read', async () => {
  await eachFailure(async (pool, disk) => {
    for (const [, change] of changes) expect((await errorOf(() => change(pool))).code).toBe('THIN_FAILED');
    expect((await errorOf(() => pool.commit())).code).toBe('THIN_FAILED');
    // What is in memory can be read still.
    expect(await pool.lookup(1, 8000)).toBeDefined();
    await pool.abort();
    expect(pool.needsCheck).toBe(true);
    for (const [, change] of changes) expect((await errorOf(() => change(pool))).code).toBe('THIN_NEEDS_CHECK');
    await pool.commit();
    // What is on the disk is the state before, or the one that was to be committed; in both it is marked.
    const again = await begin(disk);
    expect(again.needsCheck).toBe(true);
    const [now, then] = [await pool.lookup(1, 8000), await again.lookup(1, 8000)];
    expect(now).toEqual(then);
    expect(pool.mappedBlocks(1)).toBe(again.mappedBlocks(1));
    expect(pool.roots).toEqual(again.roots);
    const { findings } = await checkMetadata(disk);
    expect(findings).toEqual([]);
  });
});

test('an abort forgets everything since the last commit, counters of open devices too', async () => {
  const disk = copy();
  const pool = await begin(disk);
  const before = observed(pool);
  await pool.insert(1, 8000, (await allocateBlock(pool)) as number);
  await pool.createThin(9);
  await pool.openThin(9);
  await pool.createSnapshot(10, 1);
  await pool.removeRange(1, 0, 500);
  await pool.setTransactionId(0n, 7n);
  await pool.abort();
  expect(observed(pool)).toEqual({ ...before, dirty: 0 });
  expect((await errorOf(() => pool.lookup(9, 0))).errno).toBe('ENODATA');
  expect((await errorOf(() => pool.openThin(10))).errno).toBe('ENODATA');
});

test('who looks something up during an abort finds what was, or what is', async () => {
  const device = new ScriptedDevice(copy());
  const pool = await begin(device);
  const committed = new Map<number, number | undefined>();
  for (let i = 0; i < 8192; i += 50) committed.set(i, (await pool.lookup(1, i))?.block);
  const now = new Map(committed);
  await pool.removeRange(1, 1000, 4000);
  await pool.createSnapshot(7, 1);
  for (let i = 0; i < 4000; i += 50) await pool.insert(1, i, (await allocateBlock(pool)) as number);
  for (const i of committed.keys()) now.set(i, (await pool.lookup(1, i))?.block);
  device.later = true;
  let done = false;
  const abort = pool.abort().then(() => {
    done = true;
  });
  let during = 0;
  while (!done)
    for (const [i, block] of committed) {
      if (done) break;
      during++;
      expect([block, now.get(i)]).toContain((await pool.lookup(1, i))?.block);
      await new Promise((resolve) => setImmediate(resolve));
    }
  await abort;
  expect(during).toBeGreaterThan(2);
  for (const [i, block] of committed) expect((await pool.lookup(1, i))?.block).toBe(block);
});

test('an abort that cannot write the mark leaves it to the next commit', async () => {
  const disk = copy();
  const device = new FailingDevice(disk);
  const pool = await begin(device);
  await pool.createThin(5);
  device.fail(['write']);
  await errorOf(() => pool.commit());
  await pool.abort();
  expect(pool.needsCheck).toBe(true);
  expect((await open(disk)).needsCheck).toBe(false);
  await errorOf(() => pool.commit());
  device.repair();
  await pool.commit();
  expect((await open(disk)).needsCheck).toBe(true);
});

test('an abort that cannot read leaves nothing to be read', async () => {
  const disk = copy();
  const device = new FailingDevice(disk);
  const pool = await begin(device);
  device.fail(['read', 'write']);
  await pool.createThin(5).catch(() => {});
  await errorOf(() => pool.abort());
  for (const call of [() => pool.lookup(1, 0), () => pool.openThin(2), () => pool.highest(1), () => pool.createThin(6)])
    expect((await errorOf(call)).code).toBe('THIN_FAILED');
  device.repair();
  await pool.abort();
  expect(await pool.lookup(1, 0)).toBeDefined();
});

test('a data device that failed to flush is not asked again, even where there was nothing to commit', async () => {
  let asked = 0;
  const pool = await begin(new ScriptedDevice(copy()), () => {
    asked++;
    throw new DmError('IO', 'EIO', 'no flush');
  });
  expect((await errorOf(() => pool.commit())).message).toBe('no flush');
  expect((await errorOf(() => pool.commit())).code).toBe('THIN_FAILED');
  expect(asked).toBe(1);
});

test('a data device that cannot be flushed stops the commit before its superblock is written', async () => {
  const disk = copy();
  const device = new ScriptedDevice(disk);
  const pool = await begin(device, () => {
    throw new DmError('IO', 'EIO', 'no flush');
  });
  await pool.createThin(5);
  device.takeLog();
  expect((await errorOf(() => pool.commit())).message).toBe('no flush');
  expect(device.takeLog()).not.toContain('W 0+8');
  expect((await errorOf(() => pool.commit())).code).toBe('THIN_FAILED');
});

test('the mark alone makes nothing else durable', async () => {
  const disk = copy();
  const pool = await begin(disk);
  await pool.createThin(5);
  await pool.abort();
  const again = await open(disk);
  expect(again.needsCheck).toBe(true);
  expect((await errorOf(() => again.openThin(5))).errno).toBe('ENODATA');
  expect((await checkMetadata(disk)).findings).toEqual([]);
});

test('a change that is asked for while a commit writes waits for it, and lookups do not', async () => {
  const disk = copy();
  const device = new ScriptedDevice(disk);
  const pool = await begin(device);
  await pool.insert(1, 8000, (await allocateBlock(pool)) as number);
  const { heldRoot } = pool;
  device.hold = (operation) => operation !== 'read';
  const commit = pool.commit();
  await device.held(1);
  const done: string[] = [];
  const insert = Promise.resolve(pool.insert(1, 8001, 77)).then(() => done.push('insert'));
  const created = pool.createThin(30).then(() => done.push('createThin'));
  const { block } = (await pool.lookup(1, 8000))!;
  expect(block).toBeGreaterThan(0);
  expect(await pool.lookup(1, 8001)).toBeUndefined();
  expect(done).toEqual([]);
  device.go();
  await commit;
  await Promise.all([insert, created]);
  expect(done).toEqual(['insert', 'createThin']);
  expect(pool.heldRoot).toBe(heldRoot);
  const again = await begin(disk);
  expect(await again.lookup(1, 8000)).toBeDefined();
  expect(await again.lookup(1, 8001)).toBeUndefined();
});

test('a device that two open at once is open twice', async () => {
  const device = new ScriptedDevice(copy());
  const pool = await open(device);
  device.later = true;
  await Promise.all([pool.openThin(1), pool.openThin(1)]);
  pool.closeThin(1);
  expect((await errorOf(() => pool.delete(1))).errno).toBe('EBUSY');
  pool.closeThin(1);
  await pool.delete(1);
});

test('a block is read once for all who miss it', async () => {
  const device = new ScriptedDevice(copy());
  const pool = await begin(device);
  device.later = true;
  device.takeLog();
  await Promise.all(Array.from({ length: 20 }, (_, i) => pool.lookup(1, i)));
  const log = device.takeLog();
  expect(log.length).toBeGreaterThan(0);
  expect(new Set(log).size).toBe(log.length);
});
