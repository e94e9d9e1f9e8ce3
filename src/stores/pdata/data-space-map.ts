/**
 * Counts of blocks elsewhere, on the data device (Linux `dm-space-map-disk.c`). The index of its bitmaps is a B-tree, with a
 * small cache before it.
 */
import { DmError, FormatError } from '../../errors.ts';
import { diskIndexEntry, type IndexEntry, readIndexEntry, writeIndexEntry } from '../../formats/pdata/space-map.ts';
import { Numbers } from './blocks.ts';
import { Btree } from './btree.ts';
import { SpaceMap, type SpaceMapRoot } from './space-map.ts';
import type { Transaction } from './transaction.ts';

const SLOTS = 64;
/** Of a slot, as numbers: what of it is valid, and the entry. */
const [STATE, INDEX, BLOCKNR, NR_FREE, NONE_FREE, NUMBERS] = [0, 1, 2, 3, 4, 5];
const [EMPTY, CLEAN, DIRTY] = [0, 1, 2];

const value = new Uint8Array(diskIndexEntry.size);
const valueView = new DataView(value.buffer);

export class DataSpaceMap extends SpaceMap {
  readonly #index: Btree;
  /** Entries that were read lately, or changed and not yet put into the tree. */
  readonly #cache = new Numbers(SLOTS * NUMBERS);
  readonly #found: IndexEntry = { blocknr: 0, nrFree: 0, noneFreeBefore: 0 };

  constructor(transaction: Transaction) {
    super(transaction);
    this.#index = new Btree(transaction, 1, { size: diskIndexEntry.size });
  }

  /** Without any block. */
  make(): void {
    this.setRoot({ nrBlocks: 0, nrAllocated: 0, bitmapRoot: this.#index.empty(), refCountRoot: 0 });
    this.makeOverflow();
    this.committed();
  }

  /** Throws FormatError for sizes that cannot be. */
  open(root: SpaceMapRoot): void {
    if (root.nrAllocated > root.nrBlocks)
      throw new FormatError(
        'METADATA_SIZE',
        'EINVAL',
        `The pool has ${root.nrBlocks} data blocks, ${root.nrAllocated} of them allocated, which cannot be`,
      );
    this.setRoot(root);
    this.cursor = 0;
    this.#cache.numbers.fill(0);
    this.committed();
  }

  commit(): void {
    for (let slot = 0; slot < SLOTS; slot++) this.#writeBack(slot);
  }

  committed(): void {
    this.setOld();
    this.allocations = 0;
  }

  /** As of the last commit: what was added since is not there yet. */
  get size(): number {
    return this.old.nrBlocks;
  }

  get nrFree(): number {
    return this.old.nrBlocks - this.old.nrAllocated - this.allocations;
  }

  newBlock(): number {
    const block = this.take();
    this.inc(block, block + 1);
    return block;
  }

  /** Takes this one, unless it is in use, or was at the last commit. */
  newBlockAt(block: number): boolean {
    if (!this.isFree(block)) return false;
    this.cursor = block + 1;
    this.inc(block, block + 1);
    return true;
  }

  inc(begin: number, end: number): void {
    this.add(begin, end);
  }

  dec(begin: number, end: number): void {
    this.subtract(begin, end);
  }

  count(block: number): number {
    return this.lookup(block);
  }

  extend(extra: number): void {
    this.grow(extra);
  }

  protected allocated(count: number): void {
    this.allocations += count;
  }

  protected noSpace(): DmError {
    return new DmError('DATA_NO_SPACE', 'ENOSPC', `None of the ${this.size} data blocks of the pool is free`);
  }

  protected load(i: number, into: IndexEntry): void {
    const at = this.#slot(i);
    const { numbers } = this.#cache;
    into.blocknr = numbers[at + BLOCKNR];
    into.nrFree = numbers[at + NR_FREE];
    into.noneFreeBefore = numbers[at + NONE_FREE];
  }

  protected bitmap(i: number): number {
    return this.#cache.numbers[this.#slot(i) + BLOCKNR];
  }

  protected oldBitmap(i: number): number {
    this.#lookup(this.old.bitmapRoot, i);
    return this.#found.blocknr;
  }

  protected save(i: number, entry: Readonly<IndexEntry>): void {
    const slot = slotOf(i);
    const { numbers } = this.#cache;
    if (numbers[slot * NUMBERS + INDEX] !== i) this.#writeBack(slot);
    this.#put(slot * NUMBERS, DIRTY, i, entry);
  }

  /** Where in the cache the entry of bitmap `i` is. */
  #slot(i: number): number {
    const slot = slotOf(i);
    const { numbers } = this.#cache;
    const at = slot * NUMBERS;
    if (numbers[at + STATE] !== EMPTY && numbers[at + INDEX] === i) return at;
    this.#writeBack(slot);
    this.#lookup(this.bitmapRoot, i);
    this.#put(at, CLEAN, i, this.#found);
    return at;
  }

  #put(at: number, state: number, i: number, entry: Readonly<IndexEntry>): void {
    this.transaction.blocks.change(this.#cache);
    const { numbers } = this.#cache;
    numbers[at + STATE] = state;
    numbers[at + INDEX] = i;
    numbers[at + BLOCKNR] = entry.blocknr;
    numbers[at + NR_FREE] = entry.nrFree;
    numbers[at + NONE_FREE] = entry.noneFreeBefore;
  }

  /** Sets `#found`. */
  #lookup(root: number, i: number): void {
    if (!this.#index.find(root, i))
      throw new FormatError('METADATA_TREE', 'EILSEQ', `The space map of data has no bitmap ${i}`);
    readIndexEntry(this.#index.leaf.view, this.#index.valueAt, this.#found);
  }

  #writeBack(slot: number): void {
    const { numbers } = this.#cache;
    const at = slot * NUMBERS;
    if (numbers[at + STATE] !== DIRTY) return;
    this.#found.blocknr = numbers[at + BLOCKNR];
    this.#found.nrFree = numbers[at + NR_FREE];
    this.#found.noneFreeBefore = numbers[at + NONE_FREE];
    writeIndexEntry(valueView, 0, this.#found);
    this.bitmapRoot = this.#index.insert(this.bitmapRoot, [numbers[at + INDEX]], value);
    this.transaction.blocks.change(this.#cache);
    numbers[at + STATE] = CLEAN;
  }
}

/** As the kernel's hash: entries are written back in the order of their slots. */
const slotOf = (i: number): number => Math.imul(i, 4294967291) & (SLOTS - 1);
