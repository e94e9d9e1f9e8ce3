/** What tools read from the metadata of pools, and make of it again. */
import { describe, expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import * as node from '../../../src/formats/pdata/node.ts';
import { metadataSize } from '../../../src/formats/thin/size.ts';
import { readThinXml } from '../../../src/formats/thin/xml.ts';
import { prng } from '../../../src/lib/prng.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { changes, delta, printDelta } from '../../../src/stores/thin/delta.ts';
import { type DumpFormat, dump } from '../../../src/stores/thin/dump.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { MetadataReader } from '../../../src/stores/thin/reader.ts';
import { type RestoreOptions, restore } from '../../../src/stores/thin/restore.ts';
import { usage } from '../../../src/stores/thin/usage.ts';
import { bytes, sector } from '../../../src/units.ts';
import { allocateBlock } from '../../support/allocate-block.ts';
import { Image } from '../../support/thin-damage.ts';
import { contents, EXAMPLE, kernelDump, kernelImage, poolImage } from './images.ts';

async function dumped(device: MemoryDevice, format: DumpFormat = 'xml', held = false): Promise<string> {
  let text = '';
  await dump(await MetadataReader.open(device, { held }), format, (part) => {
    text += part;
  });
  return text;
}

/** In small parts, so that elements are cut. */
async function* inParts(text: string, length = 37): AsyncGenerator<string> {
  for (let at = 0; at < text.length; at += length) yield text.slice(at, at + length);
}

const restored = (device: MemoryDevice, text: string, options?: RestoreOptions) =>
  restore(device, () => inParts(text), options);

describe('a dump', () => {
  test('of what a kernel wrote is what thin_dump printed', async () => {
    expect(await dumped(kernelImage('meta.img.gz'))).toBe(kernelDump());
    expect(await dumped(kernelImage('meta2.img.gz'))).toBe(
      `<superblock uuid="" time="0" transaction="0" flags="0" version="2" data_block_size="256" nr_data_blocks="10">
  <device dev_id="0" mapped_blocks="10" transaction="0" creation_time="0" snap_time="0">
    <range_mapping origin_begin="0" data_begin="0" length="10" time="0"/>
  </device>
</superblock>
`,
    );
  });

  test('for people is what thin_dump prints for them', async () => {
    const device = new MemoryDevice(2 ** 18);
    await restored(device, EXAMPLE);
    expect(await dumped(device, 'human_readable')).toBe(`begin superblock: "", 2, 7, 0, 2, 128, 64
device: 1
mapped_blocks: 4
transaction: 3
creation time: 0
snap time: 2
    (0..2) -> (8..10), 0
    9 -> 20, 2

device: 2
mapped_blocks: 3
transaction: 5
creation time: 1
snap time: 2
    (0..2) -> (8..10), 0

device: 3
mapped_blocks: 1
transaction: 6
creation time: 2
snap time: 2
    0 -> 8, 0

end superblock
`);
  });

  test('joins what goes on from one leaf to the next', async () => {
    const text = await dumped(await poolImage());
    expect(text).toContain('<range_mapping origin_begin="0" data_begin="0" length="300" time="0"/>');
    expect(text).toContain('<range_mapping origin_begin="250" data_begin="600" length="50" time="2"/>');
  });

  test('of a metadata snapshot shows the pool as it was then, and no size', async () => {
    const device = await poolImage({ held: true });
    const text = await dumped(device, 'xml', true);
    expect(text.split('\n')[0]).toBe(
      '<superblock uuid="" time="1" transaction="0" flags="0" version="2" data_block_size="128" nr_data_blocks="0">',
    );
    expect(text).toContain('dev_id="2"');
    expect(text).not.toContain('dev_id="3"');
    await expect(dumped(await poolImage(), 'xml', true)).rejects.toMatchObject({ code: 'THIN_NOT_HELD' });
  });

  test.each([
    ['nothing', new MemoryDevice(0), 'THIN_MAGIC'],
    ['zeroes', new MemoryDevice(2 ** 16), 'METADATA_BLOCK'],
  ])('of %s is refused', async (_, device, code) => {
    await expect(dumped(device)).rejects.toMatchObject({ code });
  });
});

describe('restored metadata', () => {
  test('of the worked example is whole, opens, and dumps to the same', async () => {
    const device = new MemoryDevice(2 ** 18);
    expect(await restored(device, EXAMPLE)).toEqual({
      devices: 3,
      mappedBlocks: 8,
      metadataBlocks: 12,
      metadataBlocksTotal: 64,
    });
    expect((await checkMetadata(device)).findings).toEqual([]);
    expect(await dumped(device)).toBe(EXAMPLE);
    const pool = await PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });
    await pool.openThin(1);
    expect(await pool.lookup(1, 0)).toEqual({ block: 8, shared: true });
    expect(await pool.lookup(1, 9)).toEqual({ block: 20, shared: false });
    await pool.insert(1, 0, await allocateBlock(pool));
    await pool.commit();
    expect((await checkMetadata(device)).findings).toEqual([]);
  });

  test('of a kernel is whole, and dumps to the same', async () => {
    const device = new MemoryDevice(2 ** 20);
    await restored(device, kernelDump());
    expect((await checkMetadata(device)).findings).toEqual([]);
    expect(await dumped(device)).toBe(kernelDump());
  });

  // 252 entries in a leaf, 252 leaves in a node, of which two wait for a third; 16320 counts in a bitmap.
  test.each([0, 1, 252, 253, 336, 504, 505, 63504, 63505, 130_000])(
    'of a device with %i blocks is whole',
    async (count) => {
      const device = new MemoryDevice(2 ** 23);
      const tree = Array.from(
        { length: count },
        (_, i) => `<single_mapping origin_block="${3 * i}" data_block="${count - i}" time="0"/>`,
      );
      const text = `<superblock time="0" transaction="0" data_block_size="128" nr_data_blocks="200000"><device dev_id="5" mapped_blocks="${count}" transaction="0" creation_time="0" snap_time="0">${tree.join('')}</device></superblock>`;
      await restore(device, () => inParts(text, 65536));
      const report = await checkMetadata(device);
      expect(report.findings).toEqual([]);
      expect([...report.devices]).toEqual([[5, count]]);
      expect(report.freeDataBlocks).toBe(200_000 - count);
    },
  );

  test('has counts of three and more where many devices share blocks', async () => {
    const devices = Array.from(
      { length: 400 },
      (_, id) =>
        `<device dev_id="${id}" mapped_blocks="2" transaction="0" creation_time="0" snap_time="0"><range_mapping origin_begin="0" data_begin="7" length="2" time="0"/></device>`,
    );
    const device = new MemoryDevice(2 ** 22);
    await restored(
      device,
      `<superblock time="0" transaction="0" data_block_size="128" nr_data_blocks="10">${devices.join('')}</superblock>`,
    );
    expect((await checkMetadata(device)).findings).toEqual([]);
  });

  test('counts what is mapped, whatever the XML says, and clears flags', async () => {
    const device = new MemoryDevice(2 ** 18);
    await restored(device, EXAMPLE.replace('mapped_blocks="4"', 'mapped_blocks="9"').replace('flags="0"', 'flags="1"'));
    expect(await dumped(device)).toBe(EXAMPLE);
  });

  test('has other numbers if asked for', async () => {
    const device = new MemoryDevice(2 ** 18);
    await restored(device, EXAMPLE.replace('nr_data_blocks="64"', 'nr_data_blocks="0"'), {
      transactionId: 99n,
      dataBlockSize: 256,
      nrDataBlocks: 30,
    });
    expect((await dumped(device)).split('\n')[0]).toBe(
      '<superblock uuid="" time="2" transaction="99" flags="0" version="2" data_block_size="256" nr_data_blocks="30">',
    );
  });

  test('that does not fit is refused, and nothing is written', async () => {
    const device = new MemoryDevice(11 * 4096);
    await expect(restored(device, EXAMPLE)).rejects.toMatchObject({ code: 'METADATA_NO_SPACE', errno: 'ENOSPC' });
    expect(contents(device).every((byte) => byte === 0)).toBe(true);
    device.size = bytes(12 * 4096);
    await restored(device, EXAMPLE);
    expect((await checkMetadata(device)).findings).toEqual([]);
  });

  test('is written over something else only if asked for', async () => {
    const device = await poolImage();
    const before = contents(device);
    await expect(restored(device, EXAMPLE)).rejects.toMatchObject({ code: 'THIN_NOT_BLANK', errno: 'EEXIST' });
    await expect(restored(device, `${EXAMPLE}x`, { overwrite: true })).rejects.toMatchObject({ code: 'THIN_XML' });
    expect(contents(device).equals(before)).toBe(true);
    await restored(device, EXAMPLE, { overwrite: true });
    expect((await checkMetadata(device)).findings).toEqual([]);
    expect(await dumped(device)).toBe(EXAMPLE);
  });

  test('is no pool until its last write, and everything else is durable before that', async () => {
    const device = await poolImage();
    const steps: string[] = [];
    const write = device.write.bind(device);
    device.write = (at, from, start, length) => {
      const zeroes = from.subarray(start, start + length).every((byte) => byte === 0);
      steps.push(at > 0 ? 'blocks' : zeroes ? 'no superblock' : 'superblock');
      write(at, from, start, length);
    };
    device.flush = () => {
      steps.push('flush');
    };
    await restored(device, EXAMPLE, { overwrite: true });
    expect(steps).toEqual(['no superblock', 'flush', 'blocks', 'flush', 'superblock', 'flush']);
  });
});

/** The worked example as thin_dump 1.x prints what devices share. */
const SHARED = `<superblock uuid="" time="2" transaction="7" version="2" data_block_size="128" nr_data_blocks="64">
  <def name="9">
    <range_mapping origin_begin="0" data_begin="8" length="3" time="0"/>
  </def>
  <def name="10">
    <single_mapping origin_block="9" data_block="20" time="2"/>
  </def>
  <device dev_id="1" mapped_blocks="4" transaction="3" creation_time="0" snap_time="2">
    <ref name="9"/>
    <ref name="10"/>
  </device>
  <device dev_id="2" mapped_blocks="3" transaction="5" creation_time="1" snap_time="2">
    <ref name="9"/>
  </device>
  <device dev_id="3" mapped_blocks="1" transaction="6" creation_time="2" snap_time="2">
    <single_mapping origin_block="0" data_block="8" time="0"/>
  </device>
</superblock>`;

describe('XML', () => {
  const [head, ...lines] = EXAMPLE.split('\n');
  const swap = (from: string, to: string) => EXAMPLE.replace(from, to);

  test.each<[string, string, RegExp]>([
    ['that ends too soon', `${head}\n${lines[0]}`, /^Line 2 of the XML: it ends before the superblock does/],
    ['that is empty', '', /^Line 1 of the XML: it ends/],
    ['that goes on', `${EXAMPLE}<superblock/>`, /^Line 13 of the XML: something follows the end/],
    ['with text', swap('  <device', 'text <device'), /^Line 2 of the XML: "text <device.*" is no element/],
    ['that begins with something else', '<pool>', /^Line 1 of the XML: <pool> does not belong here/],
    ['with a mapping outside of a device', `${head}${lines[1]}`, /<range_mapping> does not belong here/],
    ['with a device in a device', swap('</device>', ''), /^Line 6 of the XML: <device> does not belong here/],
    ['with a wrong end', swap('</device>', '</superblock>'), /<\/superblock> ends nothing that is open/],
    ['with a mapping that is not closed', swap('time="0"/>', 'time="0">'), /<range_mapping> holds nothing/],
    ['without an attribute', swap(' time="2"', ''), /^Line 1 of the XML: <superblock> has no time/],
    ['with an attribute that is not known', swap(' uuid', ' color="1" uuid'), /<superblock> has color/],
    ['with an attribute twice', swap(' uuid', ' time="2" uuid'), /<superblock> has time twice/],
    [
      'with a word for a number',
      swap('length="3"', 'length="x"'),
      /^Line 3 .* length of <range_mapping> is "x", not a/,
    ],
    ['with a number that is too large', swap('"7"', '"18446744073709551616"'), /transaction of .*not a number/],
    ['with a device in what is shared', swap('<device', '<def name="1"><device'), /^Line 2 .*<device> does not belong/],
    ['with a shared part of a shared part', SHARED.replace(/<sing.*/, '<ref name="9"/>'), /<ref> does not belong here/],
    ['with a shared part that is not there', SHARED.replace('ref name="10"', 'ref name="1"'), /nothing called "1" was/],
    ['with a shared part that is there twice', SHARED.replace('def name="10"', 'def name="9"'), /"9" is defined twice/],
    [
      'with a shared part out of order',
      SHARED.replace('origin_block="9"', 'origin_block="2"'),
      /block 2 comes where 3/,
    ],
    [
      'with a shared part that is used before',
      SHARED.replace(/( *<def.*<\/def>\n)(.*<\/device>\n)/s, '$2$1'),
      /nothing/,
    ],
    ['with devices out of order', swap('dev_id="2"', 'dev_id="1"'), /^Line 6 of the XML: device 1 comes after 1/],
    ['with a device number of 25 bits', swap('dev_id="3"', 'dev_id="16777216"'), /dev_id 16777216 is more than/],
    ['with blocks out of order', swap('"9"', '"2"'), /^Line 4 of the XML: block 2 comes where 3 is the first/],
    ['with a data block that is not there', swap('"20"', '"64"'), /data block 64 is none of the 64/],
    ['with a length of 0', swap('length="3"', 'length="0"'), /the length is 0/],
    [
      'with a time that has not come',
      swap('data_block="20" time="2"', 'data_block="20" time="3"'),
      /time 3 is after 2/,
    ],
    ['with a snapshot that has not been taken', swap('snap_time="2"', 'snap_time="3"'), /time after 2, the pool's/],
    ['with a block size of 100 sectors', swap('"128"', '"100"'), /data_block_size 100 is no multiple/],
    ['with an element that does not end', `${head}<device ${'x'.repeat(9000)}`, /what begins here does not end/],
  ])('%s is refused', async (_, text, message) => {
    const device = new MemoryDevice(2 ** 18);
    await expect(restored(device, text)).rejects.toMatchObject({ code: 'THIN_XML', message });
    expect(contents(device).every((byte) => byte === 0)).toBe(true);
  });

  test('80. of thin_dump 1.x: what devices share is there once', async () => {
    const device = new MemoryDevice(2 ** 18);
    await restored(device, SHARED);
    expect(await dumped(device)).toBe(EXAMPLE);
    expect((await checkMetadata(device)).findings).toEqual([]);
  });

  test('has the numbers of its lines, however it is cut', async () => {
    for (const length of [1, 5, 100, 10000]) {
      const lines: number[] = [];
      for await (const items of readThinXml(inParts(EXAMPLE, length))) for (const { line } of items) lines.push(line);
      expect(lines).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }
  });
});

describe('a delta', () => {
  async function ranges(device: MemoryDevice, left: number, right: number) {
    const reader = await MetadataReader.open(device);
    const found: string[] = [];
    for await (const range of delta(reader, await reader.device(left), await reader.device(right)))
      found.push(`${range.kind} ${range.begin}+${range.length} ${range.left ?? '-'} ${range.right ?? '-'}`);
    return found;
  }

  test('of a device and a snapshot of it that was written', async () => {
    const device = await poolImage();
    const found = await ranges(device, 1, 3);
    expect(found.slice(0, 3)).toEqual(['same 0+250 0 0', 'different 250+50 250 600', 'same 600+1 300 300']);
    expect(found.slice(3).every((range) => range.startsWith('same'))).toBe(true);
    expect((await ranges(device, 1, 2)).every((range) => range.startsWith('same'))).toBe(true);
  });

  test('cuts runs where those of the other begin and end', async () => {
    const device = new MemoryDevice(2 ** 18);
    const map = (...runs: [number, number, number][]) =>
      runs.map(([v, d, n]) => `<range_mapping origin_begin="${v}" data_begin="${d}" length="${n}" time="0"/>`).join('');
    const of = (id: number, maps: string) =>
      `<device dev_id="${id}" mapped_blocks="0" transaction="0" creation_time="0" snap_time="0">${maps}</device>`;
    await restored(
      device,
      `<superblock time="0" transaction="1" data_block_size="128" nr_data_blocks="1000">${of(1, map([10, 100, 20], [50, 7, 2]))}${of(2, map([5, 0, 10], [15, 105, 5], [28, 300, 10]))}${of(3, '')}</superblock>`,
    );
    expect(await ranges(device, 1, 2)).toEqual([
      'right_only 5+5 - 0',
      'different 10+5 100 5',
      'same 15+5 105 105',
      'left_only 20+8 110 -',
      'different 28+2 118 300',
      'right_only 30+8 - 302',
      'left_only 50+2 7 -',
    ]);
    expect(await ranges(device, 3, 1)).toEqual(['right_only 10+20 - 100', 'right_only 50+2 - 7']);
    expect(await ranges(device, 3, 3)).toEqual([]);
    await expect(ranges(device, 1, 9)).rejects.toMatchObject({ code: 'THIN_NO_DEVICE', errno: 'ENODATA' });
  });

  test('of changes alone reads no leaf that both devices have, and finds the same', async () => {
    const device = await poolImage();
    const reads: number[] = [];
    const read = device.read.bind(device);
    device.read = (at, into, start, length) => {
      reads.push(at / 4096);
      read(at, into, start, length);
    };
    const reader = await MetadataReader.open(device);
    for (const [left, right] of [
      [1, 2],
      [1, 3],
      [3, 2],
      [3, 3],
    ]) {
      const pair = [await reader.device(left), await reader.device(right)] as const;
      const shared = await reader.sharedNodes(...pair);
      const all: unknown[] = [];
      for await (const range of delta(reader, ...pair)) if (range.kind !== 'same') all.push(range);
      reads.length = 0;
      const found: unknown[] = [];
      for await (const range of changes(reader, ...pair)) found.push(range);
      expect(found).toEqual(all);
      const seen = [...reads];
      // But for the first leaf, which tells that leaves begin there.
      const [first] = seen.filter((number) => node.isLeaf(new Image(device).block(number)));
      expect(seen.filter((number) => number !== first && number !== pair[0].root && shared(number))).toEqual([]);
      // Both roots, the first leaf, and three leaves of each that are not shared, at most.
      expect(seen.length).toBeLessThan(left === right || right - left === 1 ? 3 : 10);
    }
  });

  test('of changes in a tree of three levels is what a delta of everything finds', async () => {
    const device = new MemoryDevice(2 ** 23);
    const count = 130_000;
    await restored(
      device,
      `<superblock time="0" transaction="0" data_block_size="128" nr_data_blocks="200000"><device dev_id="1" mapped_blocks="0" transaction="0" creation_time="0" snap_time="0"><range_mapping origin_begin="0" data_begin="0" length="${count}" time="0"/></device></superblock>`,
    );
    const pool = await PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });
    const random = prng(1);
    for (let id = 2; id < 6; id++) {
      await pool.createSnapshot(id, id - 1);
      await pool.openThin(id);
      for (let i = 0; i < 60; i++) await pool.insert(id, random.below(count + 9000), await allocateBlock(pool));
      await pool.removeRange(id, 1000 * id, 1000 * id + 700);
    }
    await pool.commit();
    const reader = await MetadataReader.open(device);
    for (const [left, right] of [
      [1, 2],
      [5, 4],
      [1, 5],
      [3, 5],
    ]) {
      const pair = [await reader.device(left), await reader.device(right)] as const;
      const all: unknown[] = [];
      for await (const range of delta(reader, ...pair)) if (range.kind !== 'same') all.push(range);
      const found: unknown[] = [];
      for await (const range of changes(reader, ...pair)) found.push(range);
      expect(all.length).toBeGreaterThan(50);
      expect(found).toEqual(all);
    }
  });

  test('is printed as thin_delta prints it', async () => {
    const reader = await MetadataReader.open(await poolImage({ held: true }));
    const [left, right] = [await reader.device(1), await reader.device(3)];
    const print = async (verbose: boolean) => {
      let text = '';
      await printDelta(reader, left, right, verbose, (part) => {
        text += part;
      });
      return text.split('\n').slice(0, 7).join('\n');
    };
    const begin = `<superblock uuid="" time="2" transaction="0" data_block_size="128" nr_data_blocks="20000" metadata_snap="${reader.superblock.heldRoot}">
  <diff left="1" right="3">
`;
    expect(await print(false)).toBe(`${begin}    <same begin="0" length="250"/>
    <different begin="250" length="50"/>
    <same begin="600" length="1"/>
    <same begin="602" length="1"/>
    <same begin="604" length="1"/>`);
    expect(await print(true)).toBe(`${begin}    <same>
      <range begin="0" data_begin="0" length="250"/>
    </same>
    <different>
      <range begin="250" left_data_begin="250" right_data_begin="600" length="50"/>`);
  });
});

test('a block is exclusive where no other device has it mapped, whichever leaves they share', async () => {
  const found = await usage(await MetadataReader.open(await poolImage()));
  expect(found.map(({ id, mappedBlocks, exclusiveBlocks }) => [id, mappedBlocks, exclusiveBlocks])).toEqual([
    [1, 600, 0],
    [2, 600, 0],
    [3, 600, 50],
  ]);
});

test.each([
  [2 ** 14, 1, 1064],
  [1_638_400, 1000, 112040],
  [2 ** 21, 1, 133176],
  [2 ** 40, 1, 33292800],
])('metadata for %i data blocks and %i devices takes %i sectors', (blocks, thins, size) => {
  expect(metadataSize(blocks, thins)).toBe(size);
});
