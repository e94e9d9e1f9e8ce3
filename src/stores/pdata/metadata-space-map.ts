/**
 * Counts of the blocks of metadata, in blocks of metadata (Linux `dm-space-map-metadata.c`). What changes a count may need blocks
 * itself, for the copy of a bitmap or a node: the counts of those are changed afterwards, in order, and until then are added in
 * whenever somebody asks.
 */

import { DmError, FormatError } from '../../errors.ts';
import { BLOCK_BYTES, blockData, INDEX } from '../../formats/pdata/block.ts';
import {
  diskIndexEntry,
  ENTRIES,
  INDEX_AT,
  INDEX_ENTRIES,
  type IndexEntry,
  MANY,
  readIndexEntry,
  writeIndexEntry,
} from '../../formats/pdata/space-map.ts';
import { u64 } from '../../formats/struct.ts';
import type { Cell } from './blocks.ts';
import { SpaceMap, type SpaceMapRoot } from './space-map.ts';
import type { Transaction } from './transaction.ts';

/** Blocks that the index has bitmaps for: 15.875 GiB. */
export const METADATA_BLOCKS_MAX = INDEX_ENTRIES * ENTRIES;

/** As the kernel's. */
const QUEUE_MAX = 1024;

export class MetadataSpaceMap extends SpaceMap {
  /** The index block, as it will be written. */
  readonly #index: Cell & { view: DataView } = { ...blockData(), changedBy: 0 };
  readonly #oldIndex = blockData();
  /** While a count is changed. */
  #depth = 0;
  /** Changes that wait: begin, end, and one more or one less. */
  #queue: number[] = [];
  /** There are no bitmaps yet: blocks are taken from here on, one after the other. */
  #bootstrap = -1;

  constructor(transaction: Transaction) {
    super(transaction);
    transaction.spaceMap = this;
    transaction.blocks.onUndo(() => {
      this.#depth = 0;
      this.#queue = [];
      this.#bootstrap = -1;
    });
  }

  /** Of a device without metadata: `superblock` and what the map itself needs are owned. Of `blocks` on the device. */
  make(superblock: number, blocks: number): void {
    this.setRoot({ nrBlocks: 0, nrAllocated: 0, bitmapRoot: 0, refCountRoot: 0 });
    this.#bootstrap = superblock + 1;
    const { number } = this.transaction.newBlock(INDEX);
    this.bitmapRoot = number;
    this.makeOverflow();
    this.grow(Math.min(blocks, METADATA_BLOCKS_MAX));
    const end = this.#bootstrap;
    this.#bootstrap = -1;
    this.cursor = end;
    this.inc(superblock, end);
  }

  /** As the superblock says. Throws FormatError for sizes that cannot be. */
  open(root: SpaceMapRoot): void {
    const most = Math.min(METADATA_BLOCKS_MAX, Math.floor(this.transaction.blocks.device.size / BLOCK_BYTES));
    if (root.nrBlocks > most || root.nrAllocated > root.nrBlocks)
      throw new FormatError(
        'METADATA_SIZE',
        'EINVAL',
        `The metadata has ${root.nrBlocks} blocks, ${root.nrAllocated} of them allocated, on a device that has room for ${most}`,
      );
    const index = this.transaction.get(root.bitmapRoot, INDEX);
    this.transaction.blocks.change(this.#index);
    this.#index.bytes.set(index.bytes);
    this.#oldIndex.bytes.set(index.bytes);
    this.indexChanged = false;
    this.setRoot(root);
    this.setOld();
    this.cursor = 0;
    this.allocations = 0;
  }

  /** Before it is written: its last chance to allocate. */
  commit(): void {
    if (!this.indexChanged) return;
    const block = this.transaction.shadow(this.bitmapRoot, INDEX);
    block.bytes.set(this.#index.bytes);
    this.bitmapRoot = block.number;
    this.indexChanged = false;
  }

  /** What is in memory is what the next superblock leads to. */
  committed(): void {
    this.#oldIndex.bytes.set(this.#index.bytes);
    this.setOld();
    this.allocations = 0;
  }

  /** Blocks that may be allocated before the next commit. */
  get nrFree(): number {
    return this.old.nrBlocks - this.old.nrAllocated - this.allocations;
  }

  newBlock(): number {
    if (this.#bootstrap >= 0) return this.#bootstrap++;
    const block = this.take();
    this.inc(block, block + 1);
    this.allocations++;
    return block;
  }

  inc(begin: number, end: number): void {
    this.#apply(begin, end, 1);
  }

  dec(begin: number, end: number): void {
    this.#apply(begin, end, -1);
  }

  #apply(begin: number, end: number, change: number): void {
    if (this.#depth > 0 || this.#bootstrap >= 0) {
      if (this.#queue.length >= 3 * QUEUE_MAX)
        throw new FormatError('METADATA_QUEUE', 'ENOMEM', 'Too many blocks of the space map are allocated at once');
      this.#queue.push(begin, end, change);
      return;
    }
    this.#depth++;
    this.#do(begin, end, change);
    this.#drain();
    this.#depth--;
  }

  #do(begin: number, end: number, change: number): void {
    if (change > 0) this.add(begin, end);
    else this.subtract(begin, end);
  }

  #drain(): void {
    while (this.#queue.length > 0) {
      const [begin, end, change] = this.#queue;
      // It counts as waiting until it is done.
      this.#do(begin, end, change);
      this.#queue.splice(0, 3);
    }
  }

  #waiting(block: number): number {
    let sum = 0;
    const queue = this.#queue;
    for (let i = 0; i < queue.length; i += 3) if (block >= queue[i] && block < queue[i + 1]) sum += queue[i + 2];
    return sum;
  }

  count(block: number): number {
    return this.lookup(block) + this.#waiting(block);
  }

  moreThanOne(block: number): boolean {
    if (this.#bootstrap >= 0) return false;
    const waiting = this.#waiting(block);
    if (waiting > 1) return true;
    const few = this.lookupFew(block);
    return few === MANY || few + waiting > 1;
  }

  /** The device has `extra` blocks more. The map's own new blocks are the first of them. */
  extend(extra: number): void {
    let from = this.nrBlocks;
    this.#bootstrap = from;
    this.grow(extra);
    do {
      const to = this.#bootstrap;
      this.#queue.push(from, to, 1);
      from = to;
      this.#depth++;
      this.#drain();
      this.#depth--;
      this.commit();
    } while (this.#bootstrap !== from);
    this.cursor = this.#bootstrap;
    this.#bootstrap = -1;
  }

  protected allocated(): void {}

  protected noSpace(): DmError {
    return new DmError('METADATA_NO_SPACE', 'ENOSPC', `None of the ${this.nrBlocks} blocks of metadata is free`);
  }

  protected load(i: number, into: IndexEntry): void {
    readIndexEntry(this.#index.view, entryAt(i), into);
  }

  protected bitmap(i: number): number {
    return u64.get(this.#index.view, entryAt(i));
  }

  protected oldBitmap(i: number): number {
    return u64.get(this.#oldIndex.view, entryAt(i));
  }

  protected save(i: number, entry: Readonly<IndexEntry>): void {
    this.transaction.blocks.change(this.#index);
    this.indexChanged = true;
    writeIndexEntry(this.#index.view, entryAt(i), entry);
  }
}

const entryAt = (i: number): number => INDEX_AT + i * diskIndexEntry.size;
