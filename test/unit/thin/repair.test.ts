/** What is left of damaged metadata when it is repaired. */
import { describe, expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import * as node from '../../../src/formats/pdata/node.ts';
import { NODE } from '../../../src/formats/pdata/node.ts';
import { diskDetails } from '../../../src/formats/thin/values.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { dump } from '../../../src/stores/thin/dump.ts';
import { MetadataReader } from '../../../src/stores/thin/reader.ts';
import { repair } from '../../../src/stores/thin/repair.ts';
import { bytes } from '../../../src/units.ts';
import { DAMAGES, Image, wholeImage } from '../../support/thin-damage.ts';
import { contents } from './images.ts';

async function dumped(device: MemoryDevice): Promise<string> {
  let text = '';
  await dump(await MetadataReader.open(device), 'xml', (part) => {
    text += part;
  });
  return text;
}

/** Repairs an image, which stays as it is, to another one, which is whole. */
async function repaired(image: Image) {
  const before = contents(image.device);
  const device = new MemoryDevice(2 ** 20);
  const { lost, truncated } = await repair(image.device, device);
  expect(contents(image.device).equals(before)).toBe(true);
  expect((await checkMetadata(device)).findings).toEqual([]);
  return { lost, truncated, text: await dumped(device) };
}

/** Damages that cost the leaf, or an entry of it, in which they are. */
const COSTLY = /leaf|keys|key twice|multiple of three|details|not there|not come|back to itself/;
/** Nothing says where trees are. */
const HOPELESS = /superblock|magic|version|feature/;

describe('metadata in which is damaged', () => {
  test.each(DAMAGES)('$name', async ({ name, apply }) => {
    const image = new Image(await wholeImage());
    const whole = await dumped(image.device);
    apply(image);
    if (HOPELESS.test(name)) {
      await expect(repair(image.device, new MemoryDevice(2 ** 20))).rejects.toThrow();
      return;
    }
    const { lost, text } = await repaired(image);
    if (COSTLY.test(name)) expect(lost.length).toBeGreaterThan(0);
    else {
      expect(lost).toEqual([]);
      expect(text).toBe(whole);
    }
  });
});

test('what lies beside a damaged leaf is kept', async () => {
  const image = new Image(await wholeImage());
  const { leaf } = image;
  const mapped = node.nr(image.block(leaf));
  image.flip(leaf, 100);
  const { lost, text } = await repaired(image);
  const first = `<range_mapping origin_begin="${mapped}" data_begin="${mapped}" length="${300 - mapped}" time="0"/>`;
  expect(
    text
      .split('\n')
      .filter((line) => line.includes('mapping'))
      .map((line) => line.trim()),
  ).toEqual([first, first]);
  expect(text).toContain(`mapped_blocks="${300 - mapped}"`);
  // Once for each device that leads to it.
  expect(lost).toEqual(
    Array(2).fill(`Block ${leaf} of the metadata on memory is no B-tree node: its checksum is wrong`),
  );
});

test('a device without details is kept, and all it has counts as shared', async () => {
  const image = new Image(await wholeImage());
  image.change(image.superblock.deviceDetailsRoot, NODE, (block) => node.setNr(block, 1));
  const { lost, text } = await repaired(image);
  expect(lost).toEqual(['Thin device 2 of memory has no details']);
  expect(text).toContain('dev_id="2" mapped_blocks="300" transaction="0" creation_time="0" snap_time="1"');
});

test('a device without mappings is lost', async () => {
  const image = new Image(await wholeImage());
  image.change(image.superblock.dataMappingRoot, NODE, (block) => node.setNr(block, 1));
  const { lost, text } = await repaired(image);
  expect(lost).toEqual(['Thin device 2 of memory has no mappings']);
  expect(text).not.toContain('dev_id="2"');
});

test('a mapping that cannot be is lost, and those beside it are kept', async () => {
  const image = new Image(await wholeImage());
  DAMAGES.find(({ name }) => name.includes('not there'))!.apply(image);
  const { lost, text } = await repaired(image);
  expect(lost[0]).toBe('Virtual block 3 is mapped to data block 1000 at 0, which cannot be');
  expect(text).toContain('<range_mapping origin_begin="0" data_begin="0" length="3" time="0"/>');
  expect(text).toContain('<range_mapping origin_begin="4" data_begin="4" length="296" time="0"/>');
});

test('a time that has not come is made now', async () => {
  const image = new Image(await wholeImage());
  image.change(image.superblock.deviceDetailsRoot, NODE, (leaf) => {
    const at = node.valueAt(leaf, 0);
    diskDetails.set(leaf.view, at, { ...diskDetails.get(leaf.view, at), snapshottedTime: 70 });
  });
  const { lost, text } = await repaired(image);
  expect(lost).toEqual(["Thin device 1 has times 0 and 70, after the pool's, which is 1"]);
  expect(text).toContain('creation_time="0" snap_time="1"');
});

test('what may not be overwritten, or is too small, stays as it is', async () => {
  const image = new Image(await wholeImage());
  const output = await wholeImage();
  const before = contents(output);
  await expect(repair(image.device, output)).rejects.toMatchObject({ code: 'THIN_NOT_BLANK' });
  expect(contents(output).equals(before)).toBe(true);
  await expect(repair(image.device, new MemoryDevice(bytes(8 * 4096)))).rejects.toMatchObject({
    code: 'METADATA_NO_SPACE',
  });
});
