/** Whole metadata images, byte for byte as a real kernel (6.1) wrote them after the same operations. */
import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { dump } from '../../../src/stores/thin/dump.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { MetadataReader } from '../../../src/stores/thin/reader.ts';
import { restore } from '../../../src/stores/thin/restore.ts';
import { bytes, sector } from '../../../src/units.ts';
import { goldenBitmaps, goldenPool } from '../../support/thin-golden.ts';

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

const POOL: Readonly<Record<string, string>> = {
  J0: 'ca45630ebbfafac59685855bc76041b9fa9d84e6f4a5ff7e8498d462cb3e4dec',
  J1: '11e219c4050bcfe246eceaaa2a81485e185fad1769fd96d510795abb7ae5f6e2',
  J2: 'fd7c2d50d0ba536fe147d8bd32e8c2aa86663dfec797a7d3b38199a9b58c2aa4',
  J3: '75370f4f55fc5494bd4e3fe12db519bdb9f9730d3dae8bb0b5254eaa7687dc7a',
  J4: '0ece2ff2cab0f8999d316439137ed0e796d4e655398b974401eca5f124a1014c',
  J5: '8e07de6a374b881fa7befb110f2025235398a606a521880969bc94540bf2032f',
  J6: 'a55cbb2dc77d4815879fb5408f5b8748aaf3094f12208730d728382f0f676ace',
  J7: '2eba48adbd607d4cc1f01a6d7411d56a086f4ed80b4b31fcfedca2242729fa55',
  J8: 'ceb299bf9148b4dbc160acb3206df1899bb89f421d52d536fa791e8d7c4b4485',
  J9: '2697d97761c1277ac1a30dc5b76e82032e5df0eda9ba6efceee651f940f3031b',
  J10: '021f01500b183f9189a38fa4c84be4297f70207546ebc73cbdf4f0d47cb98a93',
  J11: '3c1a1b6ac76f0d95cfb0b339baddd02ddaef34393cab953d81b0b95ed4cc8e33',
  J12: '994ad3c079ebde9f538d9c776f3e44f033e81554a2b0ba3596a83b1eeaab1b4e',
  J13: 'e4e4af842aed88b687048e298d8dd15c031bd16e5f8835c9c5b23e12cf8f529d',
  J14: '2a4e122161a394690299a59f4fdd935f43826553d51b08ea5e46254d5e76c711',
  J15: 'f0353a9eae7a6771ebfff0847cc8952dbc5122322297e7bc9bb5576e4ef12f07',
  J16: '7cd82f5c6ac68301f68f7c56a6934c613830a895b964686e737c10d2a9d789d0',
  J17: '7cd82f5c6ac68301f68f7c56a6934c613830a895b964686e737c10d2a9d789d0',
};

const BITMAPS: Readonly<Record<string, string>> = {
  constructor: POOL.J0,
  'first resume': '73ef6806ac7bb9cf85f35b81bb03dde04de0e9fca6620e6745e9910d2c8ced15',
  'create_thin 1': '1ab7192ecb92fbc29800d11920778831e638f6e25df9d20e98c0172da876c4f4',
  'write 0': '92532e6941378de23faa65a668c0c6a97357bca6cc79c0fd64dd548d73c944d3',
  grown: 'dce536cefa8a2b6ebb63258c432e0ba21a1d247b5ffa89d35dc4bb9286fb3939',
  'write 1': '9aff1d89dd84b4d2aafcf3bce2f8820bd261b9af7207bd2af0054770408ef627',
};

/** [data root, metadata root], each as blocks, blocks allocated, bitmaps and counts. */
const ROOTS: Readonly<Record<string, readonly number[][]>> = {
  J3: [
    [8192, 1500, 1565, 5],
    [2048, 17, 1566, 2],
  ],
  J11: [
    [8192, 1737, 469, 462],
    [2048, 25, 470, 468],
  ],
  J16: [
    [8192, 0, 2069, 462],
    [20480, 10, 2074, 468],
  ],
};

const numbers = ({ nrBlocks, nrAllocated, bitmapRoot, refCountRoot }: PoolMetadata['roots']['data']) => [
  nrBlocks,
  nrAllocated,
  bitmapRoot,
  refCountRoot,
];

test('10. a pool from its first block on: inserts, snapshots, discards, deletes, growth', async () => {
  const seen: string[] = [];
  for await (const { step, device, pool } of goldenPool()) {
    expect(sha256(device), step).toBe(POOL[step]);
    if (step === 'J8') expect(pool.heldRoot).toBe(2023);
    if (ROOTS[step]) expect([numbers(pool.roots.data), numbers(pool.roots.metadata)], step).toEqual(ROOTS[step]);
    expect((await checkMetadata(device)).findings, step).toEqual([]);
    seen.push(step);
  }
  expect(seen).toEqual(Object.keys(POOL));
});

test('11. a pool with many bitmaps', async () => {
  const seen: string[] = [];
  for await (const { step, device } of goldenBitmaps()) {
    expect(sha256(device), step).toBe(BITMAPS[step]);
    expect((await checkMetadata(device)).findings, step).toEqual([]);
    seen.push(step);
  }
  expect(seen).toEqual(Object.keys(BITMAPS));
});

async function dumpOf(device: MemoryDevice): Promise<string> {
  let text = '';
  await dump(await MetadataReader.open(device), 'xml', (part) => {
    text += part;
  });
  return text;
}

/** Virtual blocks that a dump maps, by device. */
function mapped(xml: string): Map<number, Map<number, number>> {
  const found = new Map<number, Map<number, number>>();
  let blocks = new Map<number, number>();
  const number = (line: string, name: string) => Number(new RegExp(` ${name}="(\\d+)"`).exec(line)?.[1]);
  for (const line of xml.split('\n')) {
    if (line.startsWith('  <device')) found.set(number(line, 'dev_id'), (blocks = new Map()));
    if (line.includes('<single')) blocks.set(number(line, 'origin_block'), number(line, 'data_block'));
    if (line.includes('<range'))
      for (let i = 0; i < number(line, 'length'); i++)
        blocks.set(number(line, 'origin_begin') + i, number(line, 'data_begin') + i);
  }
  return found;
}

test('76. a dump is what lookups find, and what is restored from it is the same', async () => {
  for await (const { step, device, pool } of goldenPool()) {
    if (step === 'J0' || step === 'J1' || step === 'J2') continue;
    if (step === 'J12') break;
    const xml = await dumpOf(device);
    const copy = new MemoryDevice(8 * MIB);
    await restore(copy, async function* () {
      yield xml;
    });
    expect(await dumpOf(copy), step).toBe(xml);
    expect((await checkMetadata(copy)).findings, step).toEqual([]);
    const again = await PoolMetadata.open(copy, { dataBlockSize: sector(128), flushData() {} });
    for (const [id, blocks] of mapped(xml)) {
      for (const each of [pool, again]) await each.openThin(id);
      for (let virtual = 0; virtual < 4096; virtual++) {
        const found = await pool.lookup(id, virtual);
        expect(found?.block, `${step}, device ${id}, block ${virtual}`).toBe(blocks.get(virtual));
        expect(await again.lookup(id, virtual)).toEqual(found);
      }
      pool.closeThin(id);
    }
  }
});
