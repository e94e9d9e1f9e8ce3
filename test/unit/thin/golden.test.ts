/** Whole metadata images, byte for byte as a real kernel (6.1) wrote them after the same operations. */
import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { bytes, sector } from '../../../src/units.ts';

const MIB = 2 ** 20;

function sha256(device: MemoryDevice): string {
  const hash = createHash('sha256');
  const buffer = new Uint8Array(MIB);
  for (let at = 0; at < device.size; at += MIB) {
    device.read(bytes(at), buffer, 0, MIB);
    hash.update(buffer);
  }
  return hash.digest('hex');
}

const open = (device: MemoryDevice) => PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });

/** One small write, and a flush. */
async function write(pool: PoolMetadata, id: number, block: number): Promise<void> {
  const mapping = await pool.lookup(id, block);
  if (mapping && !mapping.shared) return;
  const fresh = await pool.allocateDataBlock();
  await pool.insert(id, block, fresh);
  await pool.commit();
}

test('a pool from its first block on: inserts, snapshots, discards, deletes, growth', async () => {
  const device = new MemoryDevice(8 * MIB);
  const pool = await open(device);
  expect(sha256(device)).toBe('ca45630ebbfafac59685855bc76041b9fa9d84e6f4a5ff7e8498d462cb3e4dec');
  await pool.resizeData(8192);
  await pool.commit();
  expect(sha256(device)).toBe('11e219c4050bcfe246eceaaa2a81485e185fad1769fd96d510795abb7ae5f6e2');
  await pool.createThin(1);
  await pool.commit();
  expect(sha256(device)).toBe('fd7c2d50d0ba536fe147d8bd32e8c2aa86663dfec797a7d3b38199a9b58c2aa4');
  await pool.openThin(1);
  for (let i = 0; i < 1500; i++) await write(pool, 1, (i * 1237) % 4096);
  expect(pool.roots.mapping).toBe(1561);
  expect(sha256(device)).toBe('75370f4f55fc5494bd4e3fe12db519bdb9f9730d3dae8bb0b5254eaa7687dc7a');
  await pool.createSnapshot(2, 1);
  await pool.commit();
  expect(sha256(device)).toBe('0ece2ff2cab0f8999d316439137ed0e796d4e655398b974401eca5f124a1014c');
  for (let i = 0; i < 300; i++) await write(pool, 1, (i * 731) % 4096);
  expect(sha256(device)).toBe('8e07de6a374b881fa7befb110f2025235398a606a521880969bc94540bf2032f');
  for (const id of [3, 4]) {
    await pool.createSnapshot(id, 1);
    await pool.commit();
  }
  expect(sha256(device)).toBe('a55cbb2dc77d4815879fb5408f5b8748aaf3094f12208730d728382f0f676ace');
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
  expect(sha256(device)).toBe('2eba48adbd607d4cc1f01a6d7411d56a086f4ed80b4b31fcfedca2242729fa55');
  await pool.reserveSnapshot();
  await pool.commit();
  expect(pool.heldRoot).toBe(2023);
  expect(sha256(device)).toBe('ceb299bf9148b4dbc160acb3206df1899bb89f421d52d536fa791e8d7c4b4485');
  for (let i = 0; i < 50; i++) await write(pool, 1, (i * 97) % 4096);
  expect(sha256(device)).toBe('2697d97761c1277ac1a30dc5b76e82032e5df0eda9ba6efceee651f940f3031b');
  for (const id of [2, 3]) {
    await pool.delete(id);
    await pool.commit();
  }
  expect(sha256(device)).toBe('021f01500b183f9189a38fa4c84be4297f70207546ebc73cbdf4f0d47cb98a93');
  await pool.releaseSnapshot();
  await pool.commit();
  expect(sha256(device)).toBe('3c1a1b6ac76f0d95cfb0b339baddd02ddaef34393cab953d81b0b95ed4cc8e33');
  device.size = bytes(80 * MIB);
  await pool.resizeMetadata(20480);
  await pool.commit();
  expect(sha256(device)).toBe('994ad3c079ebde9f538d9c776f3e44f033e81554a2b0ba3596a83b1eeaab1b4e');
  await pool.delete(4);
  await pool.commit();
  expect(sha256(device)).toBe('e4e4af842aed88b687048e298d8dd15c031bd16e5f8835c9c5b23e12cf8f529d');
  await pool.removeRange(1, 0, 4096);
  await pool.commit();
  expect(sha256(device)).toBe('2a4e122161a394690299a59f4fdd935f43826553d51b08ea5e46254d5e76c711');
  pool.closeThin(1);
  await pool.delete(1);
  await pool.commit();
  expect(sha256(device)).toBe('f0353a9eae7a6771ebfff0847cc8952dbc5122322297e7bc9bb5576e4ef12f07');
  await pool.setTransactionId(0n, 42n);
  await pool.commit();
  expect(sha256(device)).toBe('7cd82f5c6ac68301f68f7c56a6934c613830a895b964686e737c10d2a9d789d0');
});

test('a pool with many bitmaps', async () => {
  const device = new MemoryDevice(8 * MIB);
  const pool = await open(device);
  await pool.resizeData(65536);
  await pool.commit();
  expect(sha256(device)).toBe('73ef6806ac7bb9cf85f35b81bb03dde04de0e9fca6620e6745e9910d2c8ced15');
  await pool.createThin(1);
  await pool.commit();
  expect(sha256(device)).toBe('1ab7192ecb92fbc29800d11920778831e638f6e25df9d20e98c0172da876c4f4');
  await pool.openThin(1);
  await write(pool, 1, 0);
  expect(sha256(device)).toBe('92532e6941378de23faa65a668c0c6a97357bca6cc79c0fd64dd548d73c944d3');
  await pool.resizeData(2_228_224);
  await pool.commit();
  expect(sha256(device)).toBe('dce536cefa8a2b6ebb63258c432e0ba21a1d247b5ffa89d35dc4bb9286fb3939');
  await write(pool, 1, 1);
  expect(sha256(device)).toBe('9aff1d89dd84b4d2aafcf3bce2f8820bd261b9af7207bd2af0054770408ef627');
});
