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
 *
 * Changes and commits may be asked for at any time: they are carried out one after the other, in that order. Lookups wait for
 * nobody, and see what the changes that have ended have made, also while a commit writes. Between two changes everything is
 * whole; after a commit that failed on the way nothing can be changed any more until `abort`.
 */
import { setImmediate as turn } from 'node:timers/promises';
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import { BLOCK_BYTES, blockData, INDEX } from '../../formats/pdata/block.ts';
import * as node from '../../formats/pdata/node.ts';
import { diskSuperblock, NEEDS_CHECK, SPACE_MAP_ROOTS, SUPERBLOCK } from '../../formats/thin/superblock.ts';
import { DATA_BLOCKS_MAX, MAPPING_BYTES, mappedBlock, mappedTime, TIME_MAX } from '../../formats/thin/values.ts';
import { type Bytes, bytes, type Sector } from '../../units.ts';
import { type Block, Blocks } from '../pdata/blocks.ts';
import { type Btree, type Going, going } from '../pdata/btree.ts';
import { DataSpaceMap } from '../pdata/data-space-map.ts';
import { METADATA_BLOCKS_MAX, MetadataSpaceMap } from '../pdata/metadata-space-map.ts';
import { Transaction } from '../pdata/transaction.ts';
import { Changes } from './changes.ts';
import { type Device, Devices } from './devices.ts';
import { checkKnown, emptySuperblock } from './superblock.ts';
import { type Run, Trees, unknown } from './trees.ts';

export type { Run } from './trees.ts';

/** Blocks of metadata that users are not told of, at most. */
const RESERVE_MAX = 4096;
/** Changed blocks, 32 MiB, from which on a commit is due. */
const DIRTY_MAX = 8192;
/** Mappings that are removed before the event loop has its turn; a device that has more is not deleted at once. */
const SLICE = 2048;
const DELETED_AT_ONCE = 16384;
/** Leaves with so many mappings, if each is as empty as can be. */
const SLICE_LEAVES = Math.ceil(SLICE / (node.maxEntries(MAPPING_BYTES) / 3)) + 2;

export interface PoolOptions {
  /** Of the pool, in sectors. */
  dataBlockSize: Sector;
  /** Flushes what was written to the data device. */
  flushData(): Maybe;
}

/** What `lookup` found. */
export interface Mapping {
  block: number;
  shared: boolean;
}

/** A part of a change that is too long for one; it returns the next one. */
type Step = () => Step | undefined;

export class PoolMetadata {
  readonly device: BlockDevice;
  readonly #options: PoolOptions;
  readonly #blocks: Blocks;
  readonly #transaction: Transaction;
  readonly #metadata: MetadataSpaceMap;
  readonly #data: DataSpaceMap;
  readonly #trees: Trees;
  readonly #devices: Devices;
  #time = 0;
  #transId = 0n;
  #flags = 0;
  #heldRoot = 0;
  /** Something was changed since the last commit. */
  #changed = false;
  readonly #changes = new Changes();
  /** What made a commit or a long change end half-way. */
  #failure: unknown;
  /** Not even `abort` has helped. */
  #gone = false;
  /** `needsCheck` is not on the device yet. */
  #flagWaits = false;

  private constructor(device: BlockDevice, options: PoolOptions) {
    this.device = device;
    this.#options = options;
    this.#blocks = new Blocks(device);
    this.#transaction = new Transaction(this.#blocks);
    this.#metadata = new MetadataSpaceMap(this.#transaction);
    this.#data = new DataSpaceMap(this.#transaction);
    this.#trees = new Trees(this.#transaction, this.#data);
    this.#devices = new Devices(this.#trees);
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
    await this.#blocks.run(() => {
      const superblock = this.#blocks.fresh(0, SUPERBLOCK);
      this.#metadata.make(0, blocks);
      this.#metadata.commit();
      this.#metadata.committed();
      this.#data.make();
      this.#trees.root = this.#trees.mappings.empty();
      this.#trees.detailsRoot = this.#trees.details.empty();
      diskSuperblock.set(superblock.view, 0, {
        ...emptySuperblock,
        dataSpaceMap: this.#data.root,
        metadataSpaceMap: this.#metadata.root,
        dataMappingRoot: this.#trees.root,
        deviceDetailsRoot: this.#trees.detailsRoot,
        dataBlockSize: this.#options.dataBlockSize,
        metadataNrBlocks: Math.min(blocks, METADATA_BLOCKS_MAX),
      });
      this.#changed = true;
    });
    await this.#commit();
  }

  async #load(): Promise<void> {
    await this.#blocks.run(() => {
      const found = diskSuperblock.get(this.#blocks.get(0, SUPERBLOCK).view, 0);
      checkKnown(found, this.device, this.#options.dataBlockSize);
      this.#metadata.open(found.metadataSpaceMap);
      this.#data.open(found.dataSpaceMap);
      this.#trees.root = found.dataMappingRoot;
      this.#trees.detailsRoot = found.deviceDetailsRoot;
      this.#time = found.time;
      this.#transId = found.transId;
      this.#flags = found.flags;
      this.#heldRoot = found.heldRoot;
    });
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

  #checkWritable(): void {
    this.#checkWhole();
    if (this.needsCheck)
      throw new DmError(
        'THIN_NEEDS_CHECK',
        'EPERM',
        `The metadata on ${this.device.name} is not changed before it has been checked`,
        { hint: 'deactivate the pool, then `dmkit thin check --clear-needs-check-flag`' },
      );
  }

  #checkWhole(): void {
    if (this.#failure !== undefined)
      throw new DmError('THIN_FAILED', 'EIO', `The metadata on ${this.device.name} cannot be used after a failure`, {
        cause: this.#failure,
        hint: 'see the error before; deactivate the pool and activate it again',
      });
  }

  /** Carries out an operation after the changes before; then there is something to commit. */
  #change<T>(operation: () => T): Maybe<T> {
    return this.#changes.run(() => this.#now(operation));
  }

  #now<T>(operation: () => T): Maybe<T> {
    this.#checkWritable();
    return this.#blocks.run(() => {
      const result = operation();
      this.#changed = true;
      return result;
    });
  }

  /** As a change of several steps, with turns of the event loop in between. Only the first one can fail and leave no trace. */
  async #long(first: Step): Promise<void> {
    await this.#changes.run(async () => {
      let step = await this.#now(first);
      try {
        while (step) {
          await turn();
          step = await this.#blocks.run(step);
        }
      } catch (error) {
        // Whatever it was, it is not as if nothing had been done.
        this.#failure = error;
        this.#checkWhole();
      }
    });
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
    await this.#change(() => {
      this.#devices.checkNew(id);
      const root = this.#trees.device.empty();
      this.#trees.setDeviceRoot(id, root);
      this.#devices.make(id, 0, this.#transId, this.#time);
    });
  }

  /** A new device with the mappings of another one. EEXIST, ENODATA; EINVAL after 2^24 - 1 snapshots. */
  async createSnapshot(id: number, of: number): Promise<void> {
    if (this.#time >= TIME_MAX)
      throw new DmError(
        'THIN_TIME',
        'EINVAL',
        `Cannot create a snapshot: the pool has had ${TIME_MAX}, which is the most`,
      );
    await this.#change(() => {
      this.#devices.checkNew(id);
      const root = this.#trees.deviceRoot(of);
      const origin = this.#devices.find(of);
      this.#metadata.inc(root, root + 1);
      this.#trees.setDeviceRoot(id, root);
      this.#time++;
      this.#devices.make(id, origin.mappedBlocks, this.#transId, this.#time);
      origin.snapshottedTime = this.#time;
      origin.changed = true;
      this.#devices.keep(origin);
    });
  }

  /** One that is open. */
  #opened(id: number): Device {
    if (this.#gone) this.#checkWhole();
    const device = this.#devices.get(id);
    if (!device) throw unknown(id);
    return device;
  }

  /**
   * Its blocks that nothing else has become free. ENODATA, EBUSY while it is open. A large device is let go of in steps; when one of
   * them fails, it rejects with THIN_FAILED, and nothing can be changed until `abort`.
   */
  async delete(id: number): Promise<void> {
    await this.#long(() => {
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
    await this.#change(() => {
      if (current !== this.#transId)
        throw new DmError(
          'THIN_TRANSACTION_ID',
          'EINVAL',
          `Cannot change the transaction id from ${current}: it is ${this.#transId}`,
        );
      this.#transId = next;
    });
  }

  /** Keeps the metadata as it is now, for readers beside the pool; commits first. EBUSY. */
  async reserveSnapshot(): Promise<void> {
    await this.#changes.run(async () => {
      this.#checkWritable();
      if (this.#heldRoot !== 0)
        throw new DmError('THIN_HELD', 'EBUSY', 'Cannot hold a metadata snapshot: there is one');
      await this.#commit();
      await this.#now(() => {
        this.#metadata.inc(0, 1);
        const copy = this.#transaction.shadow(0, SUPERBLOCK);
        copy.bytes.fill(0, SPACE_MAP_ROOTS.at, SPACE_MAP_ROOTS.at + SPACE_MAP_ROOTS.length);
        this.#metadata.inc(this.#trees.root, this.#trees.root + 1);
        this.#metadata.inc(this.#trees.detailsRoot, this.#trees.detailsRoot + 1);
        this.#heldRoot = copy.number;
      });
    });
  }

  /** EINVAL. As `delete`, where much was only held by it. */
  async releaseSnapshot(): Promise<void> {
    await this.#long(() => {
      const held = this.#heldRoot;
      if (held === 0)
        throw new DmError('THIN_NOT_HELD', 'EINVAL', 'Cannot release the metadata snapshot: there is none');
      const { dataMappingRoot, deviceDetailsRoot } = diskSuperblock.get(this.#blocks.get(held, SUPERBLOCK).view, 0);
      const { mappings, details } = this.#trees;
      return this.#delete(mappings, [going(dataMappingRoot)], () =>
        this.#delete(details, [going(deviceDetailsRoot)], () => {
          this.#metadata.dec(held, held + 1);
          this.#heldRoot = 0;
          return undefined;
        }),
      );
    });
  }

  /** ENODATA. */
  async openThin(id: number): Promise<void> {
    await this.#look(() => {
      if (this.#gone) this.#checkWhole();
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

  /** ENOSPC: DATA_NO_SPACE if there is none until a commit, or at all. */
  allocateDataBlock(): Maybe<number> {
    return this.#change(() => this.#data.newBlock());
  }

  /** Data blocks from `begin` up to `end` have one owner less; those without any become free with the next commit. */
  releaseData(begin: number, end: number): Maybe {
    return this.#change(() => this.#data.dec(begin, end));
  }

  /** Owners of a data block: entries of leaves, however many devices share these. */
  dataCount(block: number): Maybe<number> {
    // The map's cache of bitmaps may have to write one back.
    return this.#changes.run(() => {
      this.#checkWhole();
      return this.#blocks.run(() => this.#data.count(block));
    });
  }

  /** Maps a virtual block of an open device to a block that was allocated for it. */
  insert(id: number, virtual: number, block: number): Maybe {
    return this.#change(() => {
      const device = this.#opened(id);
      // What it lacks is not made on the way.
      this.#trees.deviceRoot(id);
      const inserted = this.#trees.insert(id, virtual, block, this.#time);
      device.changed = true;
      if (inserted) device.mappedBlocks++;
    });
  }

  /**
   * Unmaps the virtual blocks of an open device from `begin` up to `end`. Returns where it has stopped: at `end`, or earlier because
   * a commit is due. What it frees can be had after that, so it is up to the caller when it is made.
   */
  async removeRange(id: number, begin: number, end: number): Promise<number> {
    return this.#changes.run(async () => {
      for (let from = begin; ; ) {
        this.#checkWritable();
        await this.#look(() => this.#trees.device.ahead(this.#trees.deviceRoot(id), from, end, SLICE_LEAVES));
        from = await this.#now(() => this.#removeSome(id, from, end));
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
      if (blocks > nrBlocks) return this.#now(() => this.#data.extend(blocks - nrBlocks));
    });
  }

  /** As `resizeData`, for the metadata device. Of what is above 15.875 GiB no use is made. */
  async resizeMetadata(blocks: number): Promise<void> {
    await this.#changes.run(() => {
      const { nrBlocks } = this.#metadata;
      if (blocks < nrBlocks) throw shrinks(`metadata device (${blocks} blocks) too small: expected ${nrBlocks}`);
      const most = Math.min(blocks, METADATA_BLOCKS_MAX);
      if (most > nrBlocks) return this.#now(() => this.#metadata.extend(most - nrBlocks));
    });
  }

  /**
   * Everything so far is durable when this resolves. When there is no space for what a commit needs, or a block cannot be read, it
   * rejects and leaves no trace; when it fails later, nothing can be changed until `abort`.
   */
  async commit(): Promise<void> {
    await this.#changes.run(() => this.#commit());
  }

  async #commit(): Promise<void> {
    this.#checkWhole();
    try {
      const flushed = this.#options.flushData();
      if (flushed) await flushed;
    } catch (error) {
      // It may say nothing the next time, and what was written is not there.
      this.#failure = error;
      throw error;
    }
    if (this.#flagWaits) await this.#writeFlag();
    if (!this.#changed) return;
    const superblock = await this.#blocks.run(() => this.#prepare());
    try {
      await this.#blocks.write(0);
      await flush(this.device);
      this.#fill(superblock);
      await this.#blocks.writeOne(superblock);
      await flush(this.device);
    } catch (error) {
      this.#failure = error;
      throw error;
    }
  }

  /** The operation that makes metadata what is to be written. Nothing is changed between it and the end of the commit. */
  #prepare(): Block {
    const superblock = this.#blocks.get(0, SUPERBLOCK);
    const changed = this.#devices.write();
    this.#data.commit();
    this.#metadata.commit();
    // From here on nothing fails, so that nothing has to be put back.
    this.#devices.written(changed);
    this.#data.committed();
    this.#metadata.committed();
    this.#transaction.committed();
    this.#changed = false;
    return superblock;
  }

  #fill({ view }: Block): void {
    const before = diskSuperblock.get(view, 0);
    diskSuperblock.set(view, 0, {
      ...before,
      time: this.#time,
      dataMappingRoot: this.#trees.root,
      deviceDetailsRoot: this.#trees.detailsRoot,
      heldRoot: this.#heldRoot,
      transId: this.#transId,
      flags: this.#flags,
      dataSpaceMap: this.#data.root,
      metadataSpaceMap: this.#metadata.root,
    });
  }

  /**
   * After a failure: everything since the last commit is forgotten, also by devices that are open; what is on the device is taken up
   * again, and marked as to be checked. From then on it can be read only. Rejects if it cannot be read: lookups fail from then on.
   * When the mark cannot be written, the next commit tries again.
   */
  async abort(): Promise<void> {
    await this.#changes.run(async () => {
      try {
        await this.#takeUp();
      } catch (error) {
        this.#gone = true;
        this.#failure = error;
        throw error;
      }
      this.#gone = false;
      this.#failure = undefined;
      this.#flags |= NEEDS_CHECK;
      this.#flagWaits = true;
      await this.#writeFlag().catch(() => {});
    });
  }

  /**
   * Takes up what is on the device. What that begins with is read before anything is forgotten, so that whoever looks something up
   * finds the one state or the other.
   */
  async #takeUp(): Promise<void> {
    const fresh = new Blocks(this.device);
    await fresh.run(() => {
      const { view } = fresh.get(0, SUPERBLOCK);
      fresh.get(diskSuperblock.get(view, 0).metadataSpaceMap.bitmapRoot, INDEX);
    });
    this.#blocks.become(fresh);
    this.#transaction.committed();
    this.#changed = false;
    await this.#load();
    await this.#blocks.run(() => this.#devices.reload());
  }

  /** The superblock as it is on the device, but for that: nothing else becomes durable. */
  async #writeFlag(): Promise<void> {
    const superblock = await this.#blocks.run(() => this.#blocks.get(0, SUPERBLOCK));
    superblock.view.setUint32(diskSuperblock.at.flags, this.#flags, true);
    await this.#blocks.writeOne(superblock);
    await flush(this.device);
    this.#flagWaits = false;
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
