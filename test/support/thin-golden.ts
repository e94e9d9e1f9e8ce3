/** Operations of which it is known, byte for byte, what a real kernel (6.1) made of them. */
import { MemoryDevice } from '../../src/device/memory.ts';
import { PoolMetadata } from '../../src/stores/thin/pool-metadata.ts';
import { bytes, sector } from '../../src/units.ts';
import { allocateBlock } from './allocate-block.ts';

const MIB = 2 ** 20;

export interface GoldenStep {
  readonly step: string;
  /** What the next step goes on with: copy what is to be kept. */
  readonly device: MemoryDevice;
  readonly pool: PoolMetadata;
}

const open = (device: MemoryDevice) => PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });

/** One small write, and a flush. */
async function write(pool: PoolMetadata, id: number, block: number): Promise<void> {
  const mapping = await pool.lookup(id, block);
  if (mapping && !mapping.shared) return;
  const fresh = await allocateBlock(pool);
  await pool.insert(id, block, fresh);
  await pool.commit();
}

/** A pool from its first block on: inserts, snapshots, discards, deletes, growth. Device 1 is open from J2 to J14. */
export async function* goldenPool(): AsyncGenerator<GoldenStep> {
  const device = new MemoryDevice(8 * MIB);
  const pool = await open(device);
  const at = (step: string): GoldenStep => ({ step, device, pool });
  yield at('J0');
  await pool.resizeData(8192);
  await pool.commit();
  yield at('J1');
  await pool.createThin(1);
  await pool.commit();
  yield at('J2');
  await pool.openThin(1);
  for (let i = 0; i < 1500; i++) await write(pool, 1, (i * 1237) % 4096);
  yield at('J3');
  await pool.createSnapshot(2, 1);
  await pool.commit();
  yield at('J4');
  for (let i = 0; i < 300; i++) await write(pool, 1, (i * 731) % 4096);
  yield at('J5');
  for (const id of [3, 4]) {
    await pool.createSnapshot(id, 1);
    await pool.commit();
  }
  yield at('J6');
  for (const [begin, end] of [
    [0, 10],
    [100, 150],
    [1000, 1001],
    [2000, 2700],
    [3990, 4000],
    [500, 900],
  ]) {
    await pool.removeRange(1, begin, end);
    await pool.commit();
  }
  yield at('J7');
  await pool.reserveSnapshot();
  await pool.commit();
  yield at('J8');
  for (let i = 0; i < 50; i++) await write(pool, 1, (i * 97) % 4096);
  yield at('J9');
  for (const id of [2, 3]) {
    await pool.delete(id);
    await pool.commit();
  }
  yield at('J10');
  await pool.releaseSnapshot();
  await pool.commit();
  yield at('J11');
  device.size = bytes(80 * MIB);
  await pool.resizeMetadata(20480);
  await pool.commit();
  yield at('J12');
  await pool.delete(4);
  await pool.commit();
  yield at('J13');
  await pool.removeRange(1, 0, 4096);
  await pool.commit();
  yield at('J14');
  pool.closeThin(1);
  await pool.delete(1);
  await pool.commit();
  yield at('J15');
  await pool.setTransactionId(0n, 42n);
  await pool.commit();
  yield at('J16');
  // As when it is removed.
  await pool.commit();
  yield at('J17');
}

/** A pool of 65,536 data blocks that becomes one with 137 bitmaps. */
export async function* goldenBitmaps(): AsyncGenerator<GoldenStep> {
  const device = new MemoryDevice(8 * MIB);
  const pool = await open(device);
  const at = (step: string): GoldenStep => ({ step, device, pool });
  yield at('constructor');
  await pool.resizeData(65536);
  await pool.commit();
  yield at('first resume');
  await pool.createThin(1);
  await pool.commit();
  yield at('create_thin 1');
  await pool.openThin(1);
  await write(pool, 1, 0);
  yield at('write 0');
  await pool.resizeData(2_228_224);
  await pool.commit();
  yield at('grown');
  await write(pool, 1, 1);
  yield at('write 1');
}
