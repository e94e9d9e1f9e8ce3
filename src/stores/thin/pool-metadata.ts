/**
 * The metadata of a thin pool: devices, what each of their blocks is mapped to, and which blocks are free (Linux
 * `dm-thin-metadata.c`).
 *
 *     superblock ──mapping──> [device -> root] ──> [virtual block -> data block, time]
 *                ──details──> [device -> mapped blocks, times]
 *                ──space maps of data and of metadata
 *
 * A snapshot is a second entry that leads to the same root: what lies below is copied node by node as one of the two changes.
 * Whether a data block is shared is told by times: it is when its device has had a snapshot taken since it was mapped.
 *
 * Everything between two commits becomes durable with the second one or not at all:
 *
 *     flush the data device, write blocks, flush, write the superblock, flush
 */
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { DmError, FormatError } from '../../errors.ts';
import { BLOCK_BYTES, blockData } from '../../formats/pdata/block.ts';
import * as node from '../../formats/pdata/node.ts';
import {
  diskSuperblock,
  MAGIC,
  METADATA_BLOCK_SECTORS,
  NEEDS_CHECK,
  SPACE_MAP_ROOTS,
  SUPERBLOCK,
  VERSION,
} from '../../formats/thin/superblock.ts';
import {
  diskDetails,
  MAPPING_BYTES,
  mappedBlock,
  mappedTime,
  setMapping,
  TIME_MAX,
} from '../../formats/thin/values.ts';
import { type Bytes, bytes, type Sector } from '../../units.ts';
import { type Block, Blocks, Numbers } from '../pdata/blocks.ts';
import { DataSpaceMap } from '../pdata/data-space-map.ts';
import { METADATA_BLOCKS_MAX, MetadataSpaceMap } from '../pdata/metadata-space-map.ts';
import { Transaction } from '../pdata/transaction.ts';
import { Trees } from './trees.ts';

/** Blocks of metadata that users are not told of, at most. */
const RESERVE_MAX = 4096;

export interface PoolOptions {
  /** Of the pool, in sectors. */
  dataBlockSize: Sector;
  /** Flushes what was written to the data device. */
  flushData(): Maybe;
}

/** A device that is open, or has changed since the last commit. */
interface Device {
  readonly id: number;
  opened: number;
  changed: boolean;
  mappedBlocks: number;
  transactionId: bigint;
  creationTime: number;
  snapshottedTime: number;
}

/** What `lookup` found. */
export interface Mapping {
  block: number;
  shared: boolean;
}

const mappingValue = new Uint8Array(MAPPING_BYTES);
const mappingView = new DataView(mappingValue.buffer);
const detailsValue = new Uint8Array(diskDetails.size);
const detailsView = new DataView(detailsValue.buffer);

export class PoolMetadata {
  readonly device: BlockDevice;
  readonly #options: PoolOptions;
  readonly #blocks: Blocks;
  readonly #transaction: Transaction;
  readonly #metadata: MetadataSpaceMap;
  readonly #data: DataSpaceMap;
  readonly #trees: Trees;
  /** Most recently opened first. */
  readonly #devices = new Map<number, Device>();
  /** Of both trees: operations change them. */
  readonly #treeRoots = new Numbers(2);
  #time = 0;
  #transId = 0n;
  #flags = 0;
  #heldRoot = 0;
  /** Something was changed since the pool was opened. */
  #inService = false;

  private constructor(device: BlockDevice, options: PoolOptions) {
    this.device = device;
    this.#options = options;
    this.#blocks = new Blocks(device);
    this.#transaction = new Transaction(this.#blocks);
    this.#metadata = new MetadataSpaceMap(this.#transaction);
    this.#data = new DataSpaceMap(this.#transaction);
    this.#trees = new Trees(this.#transaction, this.#data);
  }

  /**
   * Opens the metadata on a device, or makes it where the first 4096 bytes are zeroes. Rejects: EPERM (read-only and nothing there),
   * ENOTBLK or EILSEQ (something else), EINVAL (another block size, unknown features), or what the device says.
   */
  static async open(device: BlockDevice, options: PoolOptions & { readOnly?: boolean }): Promise<PoolMetadata> {
    const metadata = new PoolMetadata(device, options);
    const first = blockData();
    if (device.size < BLOCK_BYTES) throw tooSmall(device);
    const wait = device.read(bytes(0), first.bytes, 0, BLOCK_BYTES);
    if (wait) await wait;
    if (first.bytes.some((byte) => byte !== 0)) await metadata.#load();
    else if (options.readOnly)
      throw new DmError(
        'THIN_UNFORMATTED',
        'EPERM',
        `There is no metadata on ${device.name}, and it may not be written`,
      );
    else await metadata.#format();
    return metadata;
  }

  async #format(): Promise<void> {
    const blocks = Math.floor(this.device.size / BLOCK_BYTES);
    await this.#transaction.run(() => {
      const superblock = this.#blocks.fresh(0, SUPERBLOCK);
      this.#metadata.make(0, blocks);
      this.#metadata.commit();
      this.#metadata.committed();
      this.#data.make();
      this.#root = this.#trees.mappings.empty();
      this.#detailsRoot = this.#trees.details.empty();
      diskSuperblock.set(superblock.view, 0, {
        ...emptySuperblock,
        dataSpaceMap: this.#data.root,
        metadataSpaceMap: this.#metadata.root,
        dataMappingRoot: this.#root,
        deviceDetailsRoot: this.#detailsRoot,
        dataBlockSize: this.#options.dataBlockSize,
        metadataNrBlocks: Math.min(blocks, METADATA_BLOCKS_MAX),
      });
    });
    this.#inService = true;
    await this.#commit();
    this.#inService = false;
  }

  async #load(): Promise<void> {
    const { view } = await this.#blocks.load(0, SUPERBLOCK);
    const found = diskSuperblock.get(view, 0);
    if (found.magic !== MAGIC)
      throw new FormatError('THIN_MAGIC', 'EILSEQ', `There is no metadata of a thin pool on ${this.device.name}`);
    if (found.dataBlockSize !== this.#options.dataBlockSize)
      throw new FormatError(
        'THIN_BLOCK_SIZE',
        'EINVAL',
        `changing the data block size (from ${found.dataBlockSize} to ${this.#options.dataBlockSize}) is not supported`,
      );
    if (found.incompatFlags !== 0 || (found.compatRoFlags !== 0 && !this.device.readOnly))
      throw new FormatError(
        'THIN_FEATURES',
        'EINVAL',
        `The metadata on ${this.device.name} has features that are not known`,
      );
    await this.#metadata.open(found.metadataSpaceMap);
    await this.#transaction.run(() => this.#data.open(found.dataSpaceMap));
    this.#root = found.dataMappingRoot;
    this.#detailsRoot = found.deviceDetailsRoot;
    this.#time = found.time;
    this.#transId = found.transId;
    this.#flags = found.flags;
    this.#heldRoot = found.heldRoot;
  }

  /** Of the mapping tree. */
  get #root(): number {
    return this.#treeRoots.numbers[0];
  }

  set #root(number: number) {
    this.#blocks.change(this.#treeRoots);
    this.#treeRoots.numbers[0] = number;
  }

  get #detailsRoot(): number {
    return this.#treeRoots.numbers[1];
  }

  set #detailsRoot(number: number) {
    this.#blocks.change(this.#treeRoots);
    this.#treeRoots.numbers[1] = number;
  }

  get time(): number {
    return this.#time;
  }

  get transId(): bigint {
    return this.#transId;
  }

  /** Block of the metadata snapshot, or 0. */
  get heldRoot(): number {
    return this.#heldRoot;
  }

  get needsCheck(): boolean {
    return (this.#flags & NEEDS_CHECK) !== 0;
  }

  get dataBlocks(): number {
    return this.#data.size;
  }

  get freeDataBlocks(): number {
    return this.#data.nrFree;
  }

  get metadataBlocks(): number {
    return this.#metadata.nrBlocks;
  }

  /** Without the reserve that deleting and repairing need. */
  get freeMetadataBlocks(): number {
    const reserve = Math.min(RESERVE_MAX, Math.floor(this.metadataBlocks / 10));
    return Math.max(0, this.#metadata.nrFree - reserve);
  }

  /** Carries out an operation; afterwards the pool has something to commit. */
  async #change<T>(operation: () => T): Promise<T> {
    const wait = this.#transaction.run(operation);
    const result = await wait;
    this.#inService = true;
    return result;
  }

  /** A new device without mappings. EEXIST. */
  async createThin(id: number): Promise<void> {
    await this.#change(() => {
      this.#checkNew(id);
      const root = this.#trees.device.empty();
      this.#root = this.#trees.roots.insert(this.#root, [id], numberBytes(root));
    });
    this.#devices.set(id, this.#record(id, 0));
  }

  #checkNew(id: number): void {
    if (this.#devices.has(id) || this.#trees.details.find(this.#detailsRoot, id))
      throw new DmError('THIN_EXISTS', 'EEXIST', `Cannot create thin device ${id}: it exists`);
  }

  #record(id: number, mappedBlocks: number): Device {
    const time = this.#time;
    const transactionId = this.#transId;
    return { id, opened: 0, changed: true, mappedBlocks, transactionId, creationTime: time, snapshottedTime: time };
  }

  /** A new device with the mappings of another one. EEXIST, ENODATA; EINVAL after 2^24 - 1 snapshots. */
  async createSnapshot(id: number, of: number): Promise<void> {
    if (this.#time >= TIME_MAX)
      throw new DmError(
        'THIN_TIME',
        'EINVAL',
        `Cannot create a snapshot: the pool has had ${TIME_MAX}, which is the most`,
      );
    const origin = await this.#change(() => {
      this.#checkNew(id);
      if (!this.#trees.roots.find(this.#root, of)) throw unknown(of);
      const root = node.child(this.#trees.roots.leaf, this.#trees.roots.index);
      const origin = this.#device(of);
      this.#metadata.inc(root, root + 1);
      this.#root = this.#trees.roots.insert(this.#root, [id], numberBytes(root));
      return origin;
    });
    this.#time++;
    this.#devices.set(id, this.#record(id, origin.mappedBlocks));
    origin.snapshottedTime = this.#time;
    origin.changed = true;
    this.#devices.set(of, origin);
  }

  /** One that is known, or read from the details: ENODATA. */
  #device(id: number): Device {
    const known = this.#devices.get(id);
    if (known) return known;
    if (!this.#trees.details.find(this.#detailsRoot, id)) throw unknown(id);
    const { mappedBlocks, transactionId, creationTime, snapshottedTime } = diskDetails.get(
      this.#trees.details.leaf.view,
      this.#trees.details.valueAt,
    );
    return { id, opened: 0, changed: false, mappedBlocks, transactionId, creationTime, snapshottedTime };
  }

  /** Its blocks that nothing else has become free. ENODATA, EBUSY while it is open. */
  async delete(id: number): Promise<void> {
    await this.#change(() => {
      const device = this.#device(id);
      if (device.opened > 0) throw new DmError('THIN_ACTIVE', 'EBUSY', `Cannot delete thin device ${id}: it is active`);
      // What is not in the details yet has been created since the last commit.
      if (this.#trees.details.find(this.#detailsRoot, id))
        this.#detailsRoot = this.#trees.details.remove(this.#detailsRoot, id);
      this.#root = this.#trees.roots.remove(this.#root, id);
    });
    this.#devices.delete(id);
  }

  /** EINVAL if `current` is not what it was. */
  async setTransactionId(current: bigint, next: bigint): Promise<void> {
    if (current !== this.#transId)
      throw new DmError(
        'THIN_TRANSACTION_ID',
        'EINVAL',
        `Cannot change the transaction id from ${current}: it is ${this.#transId}`,
      );
    this.#transId = next;
    this.#inService = true;
  }

  /** Keeps the metadata as it is now, for readers beside the pool. EBUSY. */
  async reserveSnapshot(): Promise<void> {
    if (this.#heldRoot !== 0) throw new DmError('THIN_HELD', 'EBUSY', 'Cannot hold a metadata snapshot: there is one');
    this.#inService = true;
    await this.commit();
    this.#heldRoot = await this.#change(() => {
      this.#metadata.inc(0, 1);
      const copy = this.#transaction.shadow(0, SUPERBLOCK);
      copy.bytes.fill(0, SPACE_MAP_ROOTS.at, SPACE_MAP_ROOTS.at + SPACE_MAP_ROOTS.length);
      this.#metadata.inc(this.#root, this.#root + 1);
      this.#metadata.inc(this.#detailsRoot, this.#detailsRoot + 1);
      return copy.number;
    });
  }

  /** EINVAL. */
  async releaseSnapshot(): Promise<void> {
    const held = this.#heldRoot;
    if (held === 0) throw new DmError('THIN_NOT_HELD', 'EINVAL', 'Cannot release the metadata snapshot: there is none');
    await this.#blocks.load(held, SUPERBLOCK);
    await this.#change(() => {
      const { dataMappingRoot, deviceDetailsRoot } = diskSuperblock.get(this.#blocks.get(held, SUPERBLOCK).view, 0);
      this.#trees.mappings.delete(dataMappingRoot);
      this.#trees.details.delete(deviceDetailsRoot);
      this.#metadata.dec(held, held + 1);
    });
    this.#heldRoot = 0;
  }

  /** ENODATA. */
  async openThin(id: number): Promise<void> {
    const device = await this.#transaction.run(() => this.#device(id));
    device.opened++;
    this.#devices.set(id, device);
  }

  closeThin(id: number): void {
    const device = this.#devices.get(id)!;
    device.opened--;
    if (device.opened === 0 && !device.changed) this.#devices.delete(id);
  }

  /** Where a virtual block of an open device is, or undefined. */
  lookup(id: number, virtual: number): Maybe<Mapping | undefined> {
    return this.#transaction.run(() => {
      if (!this.#trees.mappings.find(this.#root, id, virtual)) return undefined;
      const { view } = this.#trees.mappings.leaf;
      const at = this.#trees.mappings.valueAt;
      const shared = this.#devices.get(id)!.snapshottedTime > mappedTime(view, at);
      return { block: mappedBlock(view, at), shared };
    });
  }

  /** ENOSPC. */
  async allocateDataBlock(): Promise<number> {
    return this.#change(() => this.#data.newBlock());
  }

  /** Maps a virtual block of an open device to a block that was allocated for it. */
  async insert(id: number, virtual: number, block: number): Promise<void> {
    const inserted = await this.#change(() => {
      setMapping(mappingView, 0, block, this.#time);
      this.#root = this.#trees.mappings.insert(this.#root, [id, virtual], mappingValue);
      return this.#trees.mappings.inserted;
    });
    const device = this.#devices.get(id)!;
    device.changed = true;
    if (inserted) device.mappedBlocks++;
  }

  /** Unmaps the virtual blocks of an open device from `begin` up to `end`. */
  async removeRange(id: number, begin: number, end: number): Promise<void> {
    const removed = await this.#change(() => {
      this.#trees.roots.find(this.#root, id);
      let root = node.child(this.#trees.roots.leaf, this.#trees.roots.index);
      // The tree stays while its entry is away.
      this.#metadata.inc(root, root + 1);
      let top = this.#trees.roots.remove(this.#root, id);
      let removed = 0;
      for (let from = begin; from < end && this.#trees.device.next(root, from); from = this.#trees.device.reached) {
        const first = node.key(this.#trees.device.leaf, this.#trees.device.index);
        if (first >= end) break;
        root = this.#trees.device.removeLeaves(root, first, end);
        removed += this.#trees.device.removed;
      }
      top = this.#trees.roots.insert(top, [id], numberBytes(root));
      this.#root = top;
      return removed;
    });
    const device = this.#devices.get(id)!;
    device.mappedBlocks -= removed;
    device.changed = true;
  }

  /** The data device has so many blocks now, at least as many as before. */
  async resizeData(blocks: number): Promise<void> {
    await this.#change(() => this.#data.extend(blocks - this.#data.nrBlocks));
  }

  async resizeMetadata(blocks: number): Promise<void> {
    const most = Math.min(blocks, METADATA_BLOCKS_MAX);
    if (most > this.#metadata.nrBlocks) await this.#change(() => this.#metadata.extend(most - this.#metadata.nrBlocks));
  }

  /** Everything so far is durable when this resolves. */
  async commit(): Promise<void> {
    if (this.#inService) await this.#commit();
  }

  async #commit(): Promise<void> {
    const flushed = this.#options.flushData();
    if (flushed) await flushed;
    const changed = [...this.#devices.values()].reverse().filter((device) => device.changed);
    await this.#transaction.run(() => {
      for (const device of changed) {
        diskDetails.set(detailsView, 0, device);
        this.#detailsRoot = this.#trees.details.insert(this.#detailsRoot, [device.id], detailsValue);
      }
      this.#data.commit();
      this.#metadata.commit();
    });
    for (const device of changed) {
      device.changed = false;
      if (device.opened === 0) this.#devices.delete(device.id);
    }
    this.#data.committed();
    this.#metadata.committed();
    await this.#blocks.write(0);
    await flush(this.device);
    const superblock = await this.#blocks.load(0, SUPERBLOCK);
    this.#fill(superblock);
    this.#transaction.committed();
    await this.#blocks.writeOne(superblock);
    await flush(this.device);
  }

  #fill({ view }: Block): void {
    const before = diskSuperblock.get(view, 0);
    diskSuperblock.set(view, 0, {
      ...before,
      time: this.#time,
      dataMappingRoot: this.#root,
      deviceDetailsRoot: this.#detailsRoot,
      heldRoot: this.#heldRoot,
      transId: this.#transId,
      flags: this.#flags,
      dataSpaceMap: this.#data.root,
      metadataSpaceMap: this.#metadata.root,
    });
  }

  /** Roots and space maps as they are now, for those who compare. */
  get roots() {
    return {
      mapping: this.#root,
      details: this.#detailsRoot,
      data: this.#data.root,
      metadata: this.#metadata.root,
    };
  }
}

const unknown = (id: number) => new DmError('THIN_NO_DEVICE', 'ENODATA', `There is no thin device ${id}`);

const emptySuperblock = {
  csum: 0,
  flags: 0,
  blocknr: 0,
  uuid: undefined,
  magic: MAGIC,
  version: VERSION,
  time: 0,
  transId: 0n,
  heldRoot: 0,
  gap1: undefined,
  gap2: undefined,
  metadataBlockSize: METADATA_BLOCK_SECTORS,
  compatFlags: 0,
  compatRoFlags: 0,
  incompatFlags: 0,
};

async function flush(device: BlockDevice): Promise<void> {
  const wait = device.flush();
  if (wait) await wait;
}

const tooSmall = (device: BlockDevice) =>
  new DmError(
    'THIN_METADATA_SIZE',
    'EINVAL',
    `The metadata device ${device.name} has ${device.size as Bytes} bytes, which is too small`,
  );

const childNumber = new Uint8Array(node.CHILD);
const childView = new DataView(childNumber.buffer);

/** As a value; valid until the next call. */
function numberBytes(number: number): Uint8Array {
  childView.setUint32(0, number % 2 ** 32, true);
  childView.setUint32(4, Math.floor(number / 2 ** 32), true);
  return childNumber;
}
