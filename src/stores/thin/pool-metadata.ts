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
 *     write blocks, flush them and the data device, write the superblock, flush
 *
 * Changes and commits may be asked for at any time: they are carried out one after the other, in that order. Lookups wait for
 * nobody, and see what the changes that have ended have made, also while a commit writes. Between two changes everything is
 * whole; after a commit that failed on the way nothing can be changed any more until `abort`.
 */
import { setImmediate as turn } from 'node:timers/promises';
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import { BLOCK_BYTES, blockData } from '../../formats/pdata/block.ts';
import { diskSuperblock, SPACE_MAP_ROOTS, SUPERBLOCK } from '../../formats/thin/superblock.ts';
import { DATA_BLOCKS_MAX, mappedBlock, mappedTime, TIME_MAX } from '../../formats/thin/values.ts';
import { type Bytes, bytes } from '../../units.ts';
import type { Blocks } from '../pdata/blocks.ts';
import { type Btree, type Going, going } from '../pdata/btree.ts';
import type { DataSpaceMap } from '../pdata/data-space-map.ts';
import { METADATA_BLOCKS_MAX, type MetadataSpaceMap } from '../pdata/metadata-space-map.ts';
import { Changes, type Step } from './changes.ts';
import type { Device, Devices } from './devices.ts';
import { type PoolOptions, State } from './state.ts';
import { type Run, type Trees, unknown } from './trees.ts';

export type { Run } from './trees.ts';

/** Blocks of metadata that users are not told of, at most. */
const RESERVE_MAX = 4096;
/** Changed blocks, 32 MiB, from which on a commit is due. */
const DIRTY_MAX = 8192;
/** Mappings that are removed before the event loop has its turn; a device that has more is not deleted at once. */
const SLICE = 256;
const DELETED_AT_ONCE = 16384;
/** Leaves that are read together. */
const AHEAD = 32;

/** Data blocks side by side. */
export interface BlockRun {
  begin: number;
  count: number;
}

/** What `lookup` found. */
export interface Mapping {
  block: number;
  shared: boolean;
}

export class PoolMetadata {
  readonly #state: State;
  readonly #blocks: Blocks;
  readonly #metadata: MetadataSpaceMap;
  readonly #data: DataSpaceMap;
  readonly #trees: Trees;
  readonly #devices: Devices;
  readonly #changes: Changes;

  private constructor(state: State) {
    this.#state = state;
    this.#changes = new Changes(state);
    this.#blocks = state.blocks;
    this.#metadata = state.metadata;
    this.#data = state.data;
    this.#trees = state.trees;
    this.#devices = state.devices;
  }

  /**
   * Opens the metadata on a device, or makes it where the first 4096 bytes are zeroes. Rejects: EPERM (read-only and nothing there),
   * ENOTBLK or EILSEQ (something else), EINVAL (another block size, unknown features), or what the device says.
   */
  static async open(device: BlockDevice, options: PoolOptions & { readOnly?: boolean }): Promise<PoolMetadata> {
    const state = new State(device, options);
    const first = blockData();
    if (device.size < BLOCK_BYTES) throw tooSmall(device);
    const wait = device.read(bytes(0), first.bytes, 0, BLOCK_BYTES);
    if (wait) await wait;
    if (first.bytes.some((byte) => byte !== 0)) await state.load();
    else if (options.readOnly)
      throw new DmError(
        'THIN_UNFORMATTED',
        'EPERM',
        `There is no metadata on ${device.name}, and it may not be written`,
      );
    else await state.format();
    return new PoolMetadata(state);
  }

  get time(): number {
    return this.#state.time;
  }

  get transId(): bigint {
    return this.#state.transId;
  }

  /** Block of the metadata snapshot, or 0. */
  get heldRoot(): number {
    return this.#state.heldRoot;
  }

  get needsCheck(): boolean {
    return this.#state.needsCheck;
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
    return Math.max(0, this.rawFreeMetadata - reserve);
  }

  /** With it. */
  get rawFreeMetadata(): number {
    return this.#metadata.nrFree;
  }

  /** So much has changed that memory calls for a commit. */
  get commitDue(): boolean {
    return this.#blocks.dirty >= DIRTY_MAX;
  }

  /** Blocks that have changed and are in memory until a commit. */
  get dirty(): number {
    return this.#blocks.dirty;
  }

  #delete(tree: Btree, what: readonly Going[], next: Step = () => undefined): Step | undefined {
    const left = tree.deleteSome(what, SLICE);
    return left.length > 0 ? () => this.#delete(tree, left, next) : next();
  }

  /** Carries out an operation that changes nothing: at once, whatever waits. */
  #look<T>(operation: () => T): Maybe<T> {
    try {
      return operation();
    } catch (error) {
      return this.#blocks.again(error, operation);
    }
  }

  /** A new device without mappings. EEXIST. */
  async createThin(id: number): Promise<void> {
    await this.#changes.change(() => {
      this.#devices.checkNew(id);
      const root = this.#trees.device.empty();
      this.#trees.setDeviceRoot(id, root);
      this.#devices.make(id, 0, this.#state.transId, this.#state.time);
    });
  }

  /** A new device with the mappings of another one. EEXIST, ENODATA; EINVAL after 2^24 - 1 snapshots. */
  async createSnapshot(id: number, of: number): Promise<void> {
    if (this.#state.time >= TIME_MAX)
      throw new DmError(
        'THIN_TIME',
        'EINVAL',
        `Cannot create a snapshot: the pool has had ${TIME_MAX}, which is the most`,
      );
    await this.#changes.change(() => {
      this.#devices.checkNew(id);
      const root = this.#trees.deviceRoot(of);
      const origin = this.#devices.find(of);
      this.#metadata.inc(root, root + 1);
      this.#trees.setDeviceRoot(id, root);
      this.#state.time++;
      this.#devices.make(id, origin.mappedBlocks, this.#state.transId, this.#state.time);
      origin.snapshottedTime = this.#state.time;
      origin.changed = true;
      this.#devices.keep(origin);
    });
  }

  /** One that is open. */
  #opened(id: number): Device {
    if (this.#state.gone) this.#state.checkWhole();
    const device = this.#devices.get(id);
    if (!device) throw unknown(id);
    return device;
  }

  /**
   * Its blocks that nothing else has become free. ENODATA, EBUSY while it is open. A large device is let go of in steps; when one of
   * them fails, it rejects with THIN_FAILED, and nothing can be changed until `abort`.
   */
  async delete(id: number): Promise<void> {
    await this.#changes.long(() => {
      const { opened, mappedBlocks } = this.#devices.find(id);
      if (opened > 0) throw new DmError('THIN_ACTIVE', 'EBUSY', `Cannot delete thin device ${id}: it is active`);
      const { details, roots, device } = this.#trees;
      // What is not in the details yet has been created since the last commit.
      if (details.find(this.#trees.detailsRoot, id))
        this.#trees.detailsRoot = details.remove(this.#trees.detailsRoot, id);
      const root = this.#trees.deviceRoot(id);
      const large = mappedBlocks > DELETED_AT_ONCE;
      // Its tree outlives the entry.
      if (large) this.#metadata.inc(root, root + 1);
      this.#trees.root = roots.remove(this.#trees.root, id);
      this.#devices.forget(id);
      return large ? () => this.#delete(device, [going(root)]) : undefined;
    });
  }

  /** EINVAL if `current` is not what it was. */
  async setTransactionId(current: bigint, next: bigint): Promise<void> {
    await this.#changes.change(() => {
      if (current !== this.#state.transId)
        throw new DmError(
          'THIN_TRANSACTION_ID',
          'EINVAL',
          `Cannot change the transaction id from ${current}: it is ${this.#state.transId}`,
        );
      this.#state.transId = next;
    });
  }

  /** Keeps the metadata as it is now, for readers beside the pool; commits first. EBUSY. */
  async reserveSnapshot(): Promise<void> {
    await this.#changes.run(async () => {
      this.#state.checkWritable();
      if (this.#state.heldRoot !== 0)
        throw new DmError('THIN_HELD', 'EBUSY', 'Cannot hold a metadata snapshot: there is one');
      await this.#state.commit();
      await this.#changes.now(() => {
        this.#metadata.inc(0, 1);
        const copy = this.#state.transaction.shadow(0, SUPERBLOCK);
        copy.bytes.fill(0, SPACE_MAP_ROOTS.at, SPACE_MAP_ROOTS.at + SPACE_MAP_ROOTS.length);
        this.#metadata.inc(this.#trees.root, this.#trees.root + 1);
        this.#metadata.inc(this.#trees.detailsRoot, this.#trees.detailsRoot + 1);
        this.#state.heldRoot = copy.number;
      });
    });
  }

  /** EINVAL. As `delete`, where much was only held by it. */
  async releaseSnapshot(): Promise<void> {
    await this.#changes.long(() => {
      const held = this.#state.heldRoot;
      if (held === 0)
        throw new DmError('THIN_NOT_HELD', 'EINVAL', 'Cannot release the metadata snapshot: there is none');
      const { dataMappingRoot, deviceDetailsRoot } = diskSuperblock.get(this.#blocks.get(held, SUPERBLOCK).view, 0);
      const { mappings, details } = this.#trees;
      return this.#delete(mappings, [going(dataMappingRoot)], () =>
        this.#delete(details, [going(deviceDetailsRoot)], () => {
          this.#metadata.dec(held, held + 1);
          this.#state.heldRoot = 0;
          return undefined;
        }),
      );
    });
  }

  /** ENODATA. */
  async openThin(id: number): Promise<void> {
    await this.#look(() => {
      if (this.#state.gone) this.#state.checkWhole();
      const device = this.#devices.find(id);
      device.opened++;
      this.#devices.keep(device);
    });
  }

  closeThin(id: number): void {
    const device = this.#devices.get(id);
    if (!device) return;
    device.opened--;
    if (device.opened === 0 && !device.changed) this.#devices.forget(id);
  }

  /** Of an open device: virtual blocks that are mapped. */
  mappedBlocks(id: number): number {
    return this.#opened(id).mappedBlocks;
  }

  /** Of an open device: the last virtual block that is mapped, or -1. */
  highest(id: number): Maybe<number> {
    return this.#look(() => {
      this.#opened(id);
      return this.#trees.device.highest(this.#trees.deviceRoot(id));
    });
  }

  /** Where a virtual block of an open device is, or undefined. */
  lookup(id: number, virtual: number): Maybe<Mapping | undefined> {
    try {
      return this.#find(id, virtual);
    } catch (error) {
      return this.#blocks.again(error, () => this.#find(id, virtual));
    }
  }

  #find(id: number, virtual: number): Mapping | undefined {
    const { snapshottedTime } = this.#opened(id);
    const { device } = this.#trees;
    if (!device.find(this.#trees.deviceRoot(id), virtual)) return undefined;
    const { view } = device.leaf;
    const at = device.valueAt;
    return { block: mappedBlock(view, at), shared: snapshottedTime > mappedTime(view, at) };
  }

  /** The first run, all shared or none, of an open device in the virtual blocks from `begin` up to `end`. A long one comes in parts. */
  nextRun(id: number, begin: number, end: number): Maybe<Run | undefined> {
    return this.#look(() => {
      const { snapshottedTime } = this.#opened(id);
      return this.#trees.nextRun(id, begin, end, snapshottedTime);
    });
  }

  /**
   * As many free data blocks side by side as there are, `most` at most. ENOSPC: DATA_NO_SPACE if there is none
   * until a commit, or at all.
   */
  allocateRun(most: number): Maybe<BlockRun> {
    return this.#changes.change(() => {
      const begin = this.#data.newBlock();
      let count = 1;
      while (count < most && this.#data.newBlockAt(begin + count)) count++;
      return { begin, count };
    });
  }

  /** Data blocks from `begin` up to `end` have one owner less; those without any become free with the next commit. */
  releaseData(begin: number, end: number): Maybe {
    return this.#changes.change(() => this.#data.dec(begin, end));
  }

  /** Of blocks of metadata that nothing leads to: one reference less. */
  releaseMetadata(begin: number, end: number): Maybe {
    return this.#changes.change(() => this.#metadata.dec(begin, end));
  }

  /** Owners of a data block: entries of leaves, however many devices share these. */
  dataCount(block: number): Maybe<number> {
    // The map's cache of bitmaps may have to write one back.
    return this.#changes.run(() => {
      this.#state.checkWhole();
      return this.#blocks.run(() => this.#data.count(block));
    });
  }

  /** Maps virtual blocks of an open device, side by side, to blocks that were allocated for them. */
  insert(id: number, virtual: number, block: number, count = 1): Maybe {
    return this.#changes.change(() => {
      const device = this.#opened(id);
      // What it lacks is not made on the way.
      this.#trees.deviceRoot(id);
      let inserted = 0;
      for (let i = 0; i < count; i++) if (this.#trees.insert(id, virtual + i, block + i, this.#state.time)) inserted++;
      device.changed = true;
      device.mappedBlocks += inserted;
    });
  }

  /**
   * Unmaps the virtual blocks of an open device from `begin` up to `end`. Returns where it has stopped: at `end`, or earlier because
   * a commit is due. What it frees can be had after that, so it is up to the caller when it is made.
   */
  async removeRange(id: number, begin: number, end: number): Promise<number> {
    return this.#changes.run(async () => {
      for (let from = begin; ; ) {
        this.#state.checkWritable();
        await this.#look(() => this.#trees.device.ahead(this.#trees.deviceRoot(id), from, end, AHEAD));
        from = await this.#changes.now(() => this.#removeSome(id, from, end));
        if (from >= end || this.commitDue) return from;
        await turn();
      }
    });
  }

  #removeSome(id: number, begin: number, end: number): number {
    const device = this.#opened(id);
    const reached = this.#trees.removeRange(id, begin, end, SLICE);
    device.mappedBlocks -= this.#trees.removed;
    device.changed = true;
    return reached;
  }

  /** The data device has so many blocks now. EINVAL if that is fewer than before. */
  async resizeData(blocks: number): Promise<void> {
    await this.#changes.run(() => {
      const { nrBlocks } = this.#data;
      if (blocks < nrBlocks) throw shrinks(`pool target (${blocks} blocks) too small: expected ${nrBlocks}`);
      if (blocks > DATA_BLOCKS_MAX)
        throw shrinks(`pool target (${blocks} blocks) too large: at most ${DATA_BLOCKS_MAX} can be mapped`);
      if (blocks > nrBlocks) return this.#changes.now(() => this.#data.extend(blocks - nrBlocks));
    });
  }

  /** As `resizeData`, for the metadata device. Of what is above 15.875 GiB no use is made. */
  async resizeMetadata(blocks: number): Promise<void> {
    await this.#changes.run(() => {
      const { nrBlocks } = this.#metadata;
      if (blocks < nrBlocks) throw shrinks(`metadata device (${blocks} blocks) too small: expected ${nrBlocks}`);
      const most = Math.min(blocks, METADATA_BLOCKS_MAX);
      if (most > nrBlocks) return this.#changes.now(() => this.#metadata.extend(most - nrBlocks));
    });
  }

  /**
   * Everything so far is durable when this resolves. When there is no space for what a commit needs, or a block cannot be read, it
   * rejects and leaves no trace; when it fails later, nothing can be changed until `abort`.
   */
  async commit(): Promise<void> {
    await this.#changes.run(() => this.#state.commit());
  }

  /**
   * After a failure: everything since the last commit is forgotten, also by devices that are open; what is on the device is taken up
   * again, and marked as to be checked. From then on it can be read only. Rejects if it cannot be read: lookups fail from then on.
   */
  async abort(): Promise<void> {
    await this.#changes.run(() => this.#state.abort());
  }

  /** Roots and space maps as they are now, for those who compare. */
  get roots() {
    return {
      mapping: this.#trees.root,
      details: this.#trees.detailsRoot,
      data: this.#data.root,
      metadata: this.#metadata.root,
    };
  }
}

const shrinks = (what: string) => new DmError('THIN_SIZE', 'EINVAL', what);

const tooSmall = (device: BlockDevice) =>
  new DmError(
    'THIN_METADATA_SIZE',
    'EINVAL',
    `The metadata device ${device.name} has ${device.size as Bytes} bytes, which is too small`,
  );
