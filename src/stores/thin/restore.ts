/**
 * Makes metadata of a thin pool from XML. All of it is read twice: first to see that it is right and fits, then to write. What
 * was on the device before is no pool's from the first write on, and becomes one with the last:
 *
 *     zero the superblock, flush, write all other blocks, flush, write the superblock, flush
 */
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import { BLOCK_BYTES, blockData, seal } from '../../formats/pdata/block.ts';
import { CHILD } from '../../formats/pdata/node.ts';
import { diskSuperblock, SUPERBLOCK } from '../../formats/thin/superblock.ts';
import {
  DATA_BLOCKS_MAX,
  DEVICE_MAX,
  diskDetails,
  MAPPING_BYTES,
  setMapping,
  TIME_MAX,
} from '../../formats/thin/values.ts';
import { readThinXml, type ThinXml, xmlError } from '../../formats/thin/xml.ts';
import { bytes, sector } from '../../units.ts';
import { METADATA_BLOCKS_MAX } from '../pdata/metadata-space-map.ts';
import { Counts } from './counts.ts';
import { BlockWriter, numberValue, TreeWriter, writeDataMap, writeMetadataMap } from './metadata-writer.ts';
import { emptySuperblock } from './superblock.ts';

export interface RestoreOptions {
  /** In place of what the XML says. */
  transactionId?: bigint;
  /** Sectors. */
  dataBlockSize?: number;
  nrDataBlocks?: number;
  /** The device need not be zeroes at its beginning. */
  overwrite?: boolean;
}

export interface Restored {
  readonly devices: number;
  readonly mappedBlocks: number;
  /** Blocks that are used, of those that there are. */
  readonly metadataBlocks: number;
  readonly metadataBlocksTotal: number;
}

/** `xml` is asked for the text twice. Rejects with EINVAL for what is wrong with it, ENOSPC, EEXIST, or what the device says. */
export async function restore(
  device: BlockDevice,
  xml: () => AsyncIterable<string>,
  options: RestoreOptions = {},
): Promise<Restored> {
  const blocks = Math.min(METADATA_BLOCKS_MAX, Math.floor(device.size / BLOCK_BYTES));
  const first = blockData();
  if (blocks > 0) await device.read(bytes(0), first.bytes, 0, BLOCK_BYTES);
  const blank = first.bytes.every((byte) => byte === 0);
  if (!blank && !options.overwrite)
    throw new DmError('THIN_NOT_BLANK', 'EEXIST', `${device.name} does not begin with zeroes: it holds something`, {
      hint: `see what it is: dmkit inspect ${device.name}; --overwrite writes over it`,
    });
  await new Restore(new BlockWriter(), blocks, options, device.name).run(xml());
  if (!blank) await device.write(bytes(0), new Uint8Array(BLOCK_BYTES), 0, BLOCK_BYTES);
  await device.flush();
  const restore = new Restore(new BlockWriter(device), blocks, options, device.name);
  const superblock = await restore.run(xml());
  await device.flush();
  await device.write(bytes(0), superblock, 0, BLOCK_BYTES);
  await device.flush();
  return restore.done;
}

/** Of what several devices have, in all: 128 MiB in memory. */
const SHARED_RUNS_MAX = 2 ** 22;

type Superblock = Extract<ThinXml, { kind: 'superblock' }>;
type Device = Extract<ThinXml, { kind: 'device' }>;

const mapping = new DataView(new ArrayBuffer(MAPPING_BYTES));
const mappingBytes = new Uint8Array(mapping.buffer);
const details = new DataView(new ArrayBuffer(diskDetails.size));

class Restore {
  readonly #out: BlockWriter;
  readonly #blocks: number;
  readonly #options: RestoreOptions;
  readonly #name: string;
  readonly #counts = new Counts();
  readonly #roots: TreeWriter;
  readonly #details: TreeWriter;
  #superblock!: Superblock;
  #device: Device | undefined;
  #mappings!: TreeWriter;
  /** Of the device. */
  #mapped = 0;
  #next = 0;
  #lastDevice = -1;
  /** What several devices have, by name: virtual block, data block, length, time, and so on. */
  readonly #shared = new Map<string, number[]>();
  #sharedRuns = 0;
  /** That which is being defined. */
  #def: number[] | undefined;
  #devices = 0;
  #mappedBlocks = 0;

  constructor(out: BlockWriter, blocks: number, options: RestoreOptions, name: string) {
    this.#out = out;
    this.#blocks = blocks;
    this.#options = options;
    this.#name = name;
    this.#roots = new TreeWriter(out, CHILD);
    this.#details = new TreeWriter(out, diskDetails.size);
  }

  get done(): Restored {
    return {
      devices: this.#devices,
      mappedBlocks: this.#mappedBlocks,
      metadataBlocks: this.#out.count,
      metadataBlocksTotal: this.#blocks,
    };
  }

  /** Writes everything but the superblock, and returns that. */
  async run(xml: AsyncIterable<string>): Promise<Uint8Array> {
    for await (const items of readThinXml(xml)) for (const { item, line } of items) await this.#take(item, line);
    const { time, transaction, dataBlockSize, nrDataBlocks } = this.#superblock;
    const dataMappingRoot = this.#roots.finish();
    const deviceDetailsRoot = this.#details.finish();
    const dataSpaceMap = await writeDataMap(this.#out, nrDataBlocks, this.#counts);
    const metadataSpaceMap = writeMetadataMap(this.#out, this.#blocks, this.#name);
    await this.#out.write();
    const block = blockData();
    diskSuperblock.set(block.view, 0, {
      ...emptySuperblock,
      time,
      transId: transaction,
      dataSpaceMap,
      metadataSpaceMap,
      dataMappingRoot,
      deviceDetailsRoot,
      dataBlockSize: sector(dataBlockSize),
      metadataNrBlocks: this.#blocks,
    });
    seal(block, 0, SUPERBLOCK);
    return block.bytes;
  }

  async #take(item: ThinXml, line: number): Promise<void> {
    if (item.kind === 'superblock') this.#begin(item, line);
    else if (item.kind === 'device') this.#beginDevice(item, line);
    else if (item.kind === 'end of device') this.#endDevice();
    else if (item.kind === 'def') this.#beginDef(item.name, line);
    else if (item.kind === 'end of def') this.#def = undefined;
    else if (item.kind === 'ref') {
      const runs = this.#shared.get(item.name);
      if (!runs) throw xmlError(line, `nothing called ${JSON.stringify(item.name)} was defined before`);
      for (let i = 0; i < runs.length; i += 4) await this.#map(runs[i], runs[i + 1], runs[i + 2], runs[i + 3], line);
    } else if (item.kind === 'map') {
      const { virtual, data, length, time } = item;
      if (!this.#def) await this.#map(virtual, data, length, time, line);
      else {
        if (this.#sharedRuns++ >= SHARED_RUNS_MAX)
          throw xmlError(line, `more than ${SHARED_RUNS_MAX} elements are in <def>: dump it without shared parts`);
        this.#def.push(virtual, data, length, time);
      }
    }
  }

  #beginDef(name: string, line: number): void {
    if (this.#shared.has(name)) throw xmlError(line, `${JSON.stringify(name)} is defined twice`);
    this.#shared.set(name, (this.#def = []));
  }

  async #map(virtual: number, data: number, length: number, time: number, line: number): Promise<void> {
    this.#checkMap(virtual, data, length, time, line);
    for (let i = 0; i < length; i++) {
      setMapping(mapping, 0, data + i, time);
      this.#mappings.add(virtual + i, mappingBytes);
      this.#counts.add(data + i);
      if (this.#out.full) await this.#out.write();
    }
    this.#mapped += length;
    this.#next = virtual + length;
  }

  #begin(found: Superblock, line: number): void {
    const { transactionId, dataBlockSize, nrDataBlocks } = this.#options;
    this.#superblock = {
      ...found,
      transaction: transactionId ?? found.transaction,
      dataBlockSize: dataBlockSize ?? found.dataBlockSize,
      nrDataBlocks: nrDataBlocks ?? found.nrDataBlocks,
    };
    const { dataBlockSize: size, nrDataBlocks: blocks } = this.#superblock;
    if (size < 128 || size > 2 ** 21 || size % 128 !== 0)
      throw xmlError(line, `data_block_size ${size} is no multiple of 128 from 128 to 2097152`);
    if (blocks > DATA_BLOCKS_MAX) throw xmlError(line, `nr_data_blocks ${blocks} is more than ${DATA_BLOCKS_MAX}`);
    if (found.time > TIME_MAX) throw xmlError(line, `time ${found.time} is more than ${TIME_MAX}`);
  }

  #beginDevice(device: Device, line: number): void {
    const { id, creationTime, snapTime } = device;
    if (id > DEVICE_MAX) throw xmlError(line, `dev_id ${id} is more than ${DEVICE_MAX}`);
    if (id <= this.#lastDevice) throw xmlError(line, `device ${id} comes after ${this.#lastDevice}`);
    if (Math.max(creationTime, snapTime) > this.#superblock.time)
      throw xmlError(line, `device ${id} has a time after ${this.#superblock.time}, the pool's`);
    this.#device = device;
    this.#lastDevice = id;
    this.#mappings = new TreeWriter(this.#out, MAPPING_BYTES);
    this.#mapped = 0;
    this.#next = 0;
  }

  #checkMap(virtual: number, data: number, length: number, time: number, line: number): void {
    const { nrDataBlocks, time: now } = this.#superblock;
    if (length === 0) throw xmlError(line, 'the length is 0');
    if (virtual < this.#next) throw xmlError(line, `block ${virtual} comes where ${this.#next} is the first that may`);
    if (data + length > nrDataBlocks)
      throw xmlError(line, `data block ${data + length - 1} is none of the ${nrDataBlocks} that there are`);
    if (time > now) throw xmlError(line, `time ${time} is after ${now}, the pool's`);
  }

  #endDevice(): void {
    const { id, transaction, creationTime, snapTime } = this.#device!;
    this.#roots.add(id, numberValue(this.#mappings.finish()));
    diskDetails.set(details, 0, {
      mappedBlocks: this.#mapped,
      transactionId: transaction,
      creationTime,
      snapshottedTime: snapTime,
    });
    this.#details.add(id, new Uint8Array(details.buffer));
    this.#devices++;
    this.#mappedBlocks += this.#mapped;
  }
}
