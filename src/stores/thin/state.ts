/**
 * What the metadata of a pool consists of, in memory, and how that gets to the device and back: made, taken up, committed, given up.
 *
 *     write blocks, flush them and the data device, write the superblock, flush
 *
 * Nothing is changed while one of these is under way, which is the caller's affair.
 */
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import { BLOCK_BYTES, INDEX } from '../../formats/pdata/block.ts';
import { diskSuperblock, NEEDS_CHECK, SUPERBLOCK } from '../../formats/thin/superblock.ts';
import { every } from '../../lib/parts.ts';
import type { Sector } from '../../units.ts';
import { type Block, Blocks } from '../pdata/blocks.ts';
import { DataSpaceMap } from '../pdata/data-space-map.ts';
import { METADATA_BLOCKS_MAX, MetadataSpaceMap } from '../pdata/metadata-space-map.ts';
import { Transaction } from '../pdata/transaction.ts';
import { Devices } from './devices.ts';
import { checkKnown, emptySuperblock } from './superblock.ts';
import { Trees } from './trees.ts';

export interface PoolOptions {
  /** Of the pool, in sectors. */
  dataBlockSize: Sector;
  /** Flushes what was written to the data device. */
  flushData(): Maybe;
}

export class State {
  readonly device: BlockDevice;
  readonly #options: PoolOptions;
  readonly blocks: Blocks;
  readonly transaction: Transaction;
  readonly metadata: MetadataSpaceMap;
  readonly data: DataSpaceMap;
  readonly trees: Trees;
  readonly devices: Devices;
  time = 0;
  transId = 0n;
  flags = 0;
  /** Block of the metadata snapshot, or 0. */
  heldRoot = 0;
  /** Something was changed since the last commit. */
  changed = false;
  /** What made a commit or a long change end half-way. */
  failure: unknown;
  /** Not even `abort` has helped. */
  gone = false;
  /** `needsCheck` is not on the device yet. */
  #flagWaits = false;

  constructor(device: BlockDevice, options: PoolOptions) {
    this.device = device;
    this.#options = options;
    this.blocks = new Blocks(device);
    this.transaction = new Transaction(this.blocks);
    this.metadata = new MetadataSpaceMap(this.transaction);
    this.data = new DataSpaceMap(this.transaction);
    this.trees = new Trees(this.transaction, this.data);
    this.devices = new Devices(this.trees);
  }

  get needsCheck(): boolean {
    return (this.flags & NEEDS_CHECK) !== 0;
  }

  /** Metadata of an empty pool. */
  async format(): Promise<void> {
    const blocks = Math.floor(this.device.size / BLOCK_BYTES);
    await this.blocks.run(() => {
      const superblock = this.blocks.fresh(0, SUPERBLOCK);
      this.metadata.make(0, blocks);
      this.metadata.commit();
      this.metadata.committed();
      this.data.make();
      this.trees.root = this.trees.mappings.empty();
      this.trees.detailsRoot = this.trees.details.empty();
      diskSuperblock.set(superblock.view, 0, {
        ...emptySuperblock,
        dataSpaceMap: this.data.root,
        metadataSpaceMap: this.metadata.root,
        dataMappingRoot: this.trees.root,
        deviceDetailsRoot: this.trees.detailsRoot,
        dataBlockSize: this.#options.dataBlockSize,
        metadataNrBlocks: Math.min(blocks, METADATA_BLOCKS_MAX),
      });
      this.changed = true;
    });
    await this.commit();
  }

  /** What is on the device. */
  async load(): Promise<void> {
    await this.blocks.run(() => {
      const found = diskSuperblock.get(this.blocks.get(0, SUPERBLOCK).view, 0);
      checkKnown(found, this.device, this.#options.dataBlockSize);
      this.metadata.open(found.metadataSpaceMap);
      this.data.open(found.dataSpaceMap);
      this.trees.root = found.dataMappingRoot;
      this.trees.detailsRoot = found.deviceDetailsRoot;
      this.time = found.time;
      this.transId = found.transId;
      this.flags = found.flags;
      this.heldRoot = found.heldRoot;
    });
  }

  checkWritable(): void {
    this.checkWhole();
    if (this.needsCheck)
      throw new DmError(
        'THIN_NEEDS_CHECK',
        'EPERM',
        `The metadata on ${this.device.name} is not changed before it has been checked`,
        { hint: 'deactivate the pool, then `dmkit thin check --clear-needs-check-flag`' },
      );
  }

  checkWhole(): void {
    if (this.failure !== undefined)
      throw new DmError('THIN_FAILED', 'EIO', `The metadata on ${this.device.name} cannot be used after a failure`, {
        cause: this.failure,
        hint: 'see the error before; deactivate the pool and activate it again',
      });
  }

  /**
   * Everything so far is durable when this resolves. When there is no space for what a commit needs, or a block cannot be read, it
   * rejects and leaves no trace; when it fails later, nothing can be changed until `abort`.
   */
  async commit(): Promise<void> {
    this.checkWhole();
    const superblock = this.changed ? await this.blocks.run(() => this.#prepare()) : undefined;
    try {
      if (superblock) await this.#write(superblock);
      else await flushed(this.#options.flushData);
    } catch (error) {
      // A flush may say nothing the next time, and what was written is not there.
      this.failure = error;
      throw error;
    }
    if (this.#flagWaits) await this.#writeFlag();
  }

  async #write(superblock: Block): Promise<void> {
    await this.blocks.write(0);
    // Together: where both are on one disk it flushes once.
    await every([flushed(this.#options.flushData), flushed(this.#flush)]);
    this.#fill(superblock);
    await this.blocks.writeOne(superblock);
    await flushed(this.#flush);
  }

  readonly #flush = () => this.device.flush();

  /** The operation that makes metadata what is to be written. Nothing is changed between it and the end of the commit. */
  #prepare(): Block {
    const superblock = this.blocks.get(0, SUPERBLOCK);
    const changed = this.devices.write();
    this.data.commit();
    this.metadata.commit();
    // From here on nothing fails, so that nothing has to be put back.
    this.devices.written(changed);
    this.data.committed();
    this.metadata.committed();
    this.transaction.committed();
    this.changed = false;
    return superblock;
  }

  #fill({ view }: Block): void {
    const before = diskSuperblock.get(view, 0);
    diskSuperblock.set(view, 0, {
      ...before,
      time: this.time,
      dataMappingRoot: this.trees.root,
      deviceDetailsRoot: this.trees.detailsRoot,
      heldRoot: this.heldRoot,
      transId: this.transId,
      flags: this.flags,
      dataSpaceMap: this.data.root,
      metadataSpaceMap: this.metadata.root,
    });
  }

  /**
   * After a failure: everything since the last commit is forgotten, also by devices that are open; what is on the device is taken up
   * again, and marked as to be checked. From then on it can be read only. Rejects if it cannot be read: lookups fail from then on.
   * When the mark cannot be written, the next commit tries again.
   */
  async abort(): Promise<void> {
    try {
      await this.#takeUp();
    } catch (error) {
      this.gone = true;
      this.failure = error;
      throw error;
    }
    this.gone = false;
    this.failure = undefined;
    this.flags |= NEEDS_CHECK;
    this.#flagWaits = true;
    await this.#writeFlag().catch(() => {});
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
    this.transaction.committed();
    this.blocks.become(fresh);
    this.changed = false;
    await this.load();
    await this.blocks.run(() => this.devices.reload());
  }

  /** The superblock as it is on the device, but for that: nothing else becomes durable. */
  async #writeFlag(): Promise<void> {
    const superblock = await this.blocks.run(() => this.blocks.get(0, SUPERBLOCK));
    superblock.view.setUint32(diskSuperblock.at.flags, this.flags, true);
    await this.blocks.writeOne(superblock);
    await flushed(this.#flush);
    this.#flagWaits = false;
  }
}

async function flushed(flush: () => Maybe): Promise<void> {
  await flush();
}
