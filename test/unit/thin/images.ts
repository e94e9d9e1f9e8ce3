/** Metadata of pools for the tests of tools. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { bytes, sector } from '../../../src/units.ts';
import { allocateBlock } from '../../support/allocate-block.ts';
import { FIXTURES } from '../golden.ts';

/** What a kernel wrote. */
export function kernelImage(name: string): MemoryDevice {
  const content = gunzipSync(readFileSync(join(FIXTURES, 'thin', name)));
  const device = new MemoryDevice(content.length);
  device.write(bytes(0), content, 0, content.length);
  return device;
}

/** `thin_dump` of what a kernel wrote. */
export const kernelDump = () => readFileSync(join(FIXTURES, 'thin/thin_dump.xml'), 'utf8');

export function contents(device: MemoryDevice): Buffer {
  const content = Buffer.alloc(device.size);
  device.read(bytes(0), content, 0, device.size);
  return content;
}

/**
 * Device 1 with 600 blocks mapped, 2 a snapshot of it that is as it was, and 3 one of which 50 blocks were written. With `held`, a
 * metadata snapshot was taken before device 3.
 */
export async function poolImage({ held = false } = {}): Promise<MemoryDevice> {
  const device = new MemoryDevice(2 ** 21);
  const pool = await PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });
  await pool.resizeData(20000);
  await pool.createThin(1);
  await pool.openThin(1);
  for (let i = 0; i < 600; i++) await pool.insert(1, i < 300 ? i : 2 * i, await allocateBlock(pool));
  await pool.createSnapshot(2, 1);
  await pool.commit();
  if (held) await pool.reserveSnapshot();
  await pool.createSnapshot(3, 1);
  await pool.openThin(3);
  for (let i = 0; i < 50; i++) await pool.insert(3, 250 + i, await allocateBlock(pool));
  await pool.commit();
  return device;
}

/** The worked example of the format: three devices, two of them snapshots, as `thin_dump` prints it. */
export const EXAMPLE = `<superblock uuid="" time="2" transaction="7" flags="0" version="2" data_block_size="128" nr_data_blocks="64">
  <device dev_id="1" mapped_blocks="4" transaction="3" creation_time="0" snap_time="2">
    <range_mapping origin_begin="0" data_begin="8" length="3" time="0"/>
    <single_mapping origin_block="9" data_block="20" time="2"/>
  </device>
  <device dev_id="2" mapped_blocks="3" transaction="5" creation_time="1" snap_time="2">
    <range_mapping origin_begin="0" data_begin="8" length="3" time="0"/>
  </device>
  <device dev_id="3" mapped_blocks="1" transaction="6" creation_time="2" snap_time="2">
    <single_mapping origin_block="0" data_block="8" time="0"/>
  </device>
</superblock>
`;
