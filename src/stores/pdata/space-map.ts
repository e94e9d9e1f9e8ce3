/**
 * Reference counts in bitmaps, with a B-tree for counts of three and more (Linux `dm-space-map-common.c`): what the space maps
 * of data and of metadata have in common. They differ in where the index of bitmaps is.
 *
 * **A block is given out only if it is free now and was free at the last commit.** So nothing that the last superblock leads
 * to is overwritten before the next one is on the disk.
 */
import { type DmError, FormatError } from '../../errors.ts';
import { BITMAP } from '../../formats/pdata/block.ts';
import {
  count as countIn,
  diskRoot,
  ENTRIES,
  findFree,
  type IndexEntry,
  MANY,
  setCount,
} from '../../formats/pdata/space-map.ts';
import { type Block, Numbers } from './blocks.ts';
import { Btree } from './btree.ts';
import type { Transaction } from './transaction.ts';

export type { IndexEntry } from '../../formats/pdata/space-map.ts';

/** Of a map, as in the superblock. */
export interface SpaceMapRoot {
  nrBlocks: number;
  nrAllocated: number;
  bitmapRoot: number;
  refCountRoot: number;
}

const NR_BLOCKS = 0;
const NR_ALLOCATED = 1;
const BITMAP_ROOT = 2;
const REF_COUNT_ROOT = 3;
const CURSOR = 4;
/** In this transaction. */
const ALLOCATIONS = 5;
const INDEX_CHANGED = 6;

const COUNT_MAX = 2 ** 32 - 1;

/** A reference count as a value. */
const counter = new Uint8Array(4);
const counterView = new DataView(counter.buffer);

export abstract class SpaceMap {
  protected readonly transaction: Transaction;
  readonly #state = new Numbers(7);
  /** As of the last commit. */
  protected old: SpaceMapRoot = { nrBlocks: 0, nrAllocated: 0, bitmapRoot: 0, refCountRoot: 0 };
  readonly #overflow: Btree;
  /** Of the bitmap that is changed, and of those that are searched: one of each at a time. */
  readonly #entry: IndexEntry = { blocknr: 0, nrFree: 0, noneFreeBefore: 0 };
  readonly #searched: IndexEntry = { blocknr: 0, nrFree: 0, noneFreeBefore: 0 };

  constructor(transaction: Transaction) {
    this.transaction = transaction;
    this.#overflow = new Btree(transaction, 1, { size: counter.length });
  }

  get root(): SpaceMapRoot {
    const [nrBlocks, nrAllocated, bitmapRoot, refCountRoot] = this.#state.numbers;
    return { nrBlocks, nrAllocated, bitmapRoot, refCountRoot };
  }

  /** The map as it is now is the one on the disk. */
  protected setOld(): void {
    this.old = this.root;
  }

  protected setRoot({ nrBlocks, nrAllocated, bitmapRoot, refCountRoot }: SpaceMapRoot): void {
    this.#change().set([nrBlocks, nrAllocated, bitmapRoot, refCountRoot]);
  }

  get nrBlocks(): number {
    return this.#state.numbers[NR_BLOCKS];
  }

  protected get bitmapRoot(): number {
    return this.#state.numbers[BITMAP_ROOT];
  }

  protected set bitmapRoot(number: number) {
    this.#change()[BITMAP_ROOT] = number;
  }

  /** Where the search for a free block goes on. */
  protected get cursor(): number {
    return this.#state.numbers[CURSOR];
  }

  protected set cursor(number: number) {
    this.#change()[CURSOR] = number;
  }

  /** Blocks allocated since the last commit, however the map counts. */
  protected get allocations(): number {
    return this.#state.numbers[ALLOCATIONS];
  }

  protected set allocations(number: number) {
    this.#change()[ALLOCATIONS] = number;
  }

  /** The index differs from what is in its block. */
  protected get indexChanged(): boolean {
    return this.#state.numbers[INDEX_CHANGED] === 1;
  }

  protected set indexChanged(changed: boolean) {
    this.#change()[INDEX_CHANGED] = changed ? 1 : 0;
  }

  #change(): Float64Array {
    this.transaction.blocks.change(this.#state);
    return this.#state.numbers;
  }

  /** What the index says of bitmap `i`, which there has to be. */
  protected abstract load(i: number, into: IndexEntry): void;
  protected abstract save(i: number, entry: Readonly<IndexEntry>): void;
  /** The block of bitmap `i` now, and at the last commit. */
  protected abstract bitmap(i: number): number;
  protected abstract oldBitmap(i: number): number;
  /** What `take` throws when no block is free. */
  protected abstract noSpace(): DmError;

  /** An empty B-tree of counts. */
  protected makeOverflow(): void {
    this.#change()[REF_COUNT_ROOT] = this.#overflow.empty();
  }

  protected lookup(block: number): number {
    const few = this.lookupFew(block);
    return few === MANY ? this.#many(block, this.#state.numbers[REF_COUNT_ROOT]) : few;
  }

  /** MANY for three and more. Throws EINVAL where there is no such block. */
  protected lookupFew(block: number): number {
    if (block >= this.nrBlocks) throw this.#outside(block, block + 1);
    return this.#few(this.bitmap(Math.floor(block / ENTRIES)), block);
  }

  #few(bitmap: number, block: number): number {
    return countIn(this.transaction.get(bitmap, BITMAP), block % ENTRIES);
  }

  #many(block: number, root: number): number {
    if (!this.#overflow.find(root, block)) return MANY;
    return this.#overflow.leaf.view.getUint32(this.#overflow.valueAt, true);
  }

  /** `begin` up to `end` have one more owner. */
  protected add(begin: number, end: number): void {
    this.#eachBitmap(begin, end, 1);
  }

  /** They have one less. Throws EINVAL where there is none to lose. */
  protected subtract(begin: number, end: number): void {
    this.#eachBitmap(begin, end, -1);
  }

  /** Blocks became owned, or free if negative. */
  protected abstract allocated(count: number): void;

  #eachBitmap(begin: number, end: number, change: 1 | -1): void {
    if (begin < 0 || end > this.nrBlocks) throw this.#outside(begin, end);
    const entry = this.#entry;
    for (let block = begin; block < end; ) {
      const index = Math.floor(block / ENTRIES);
      const stop = Math.min(end, (index + 1) * ENTRIES);
      this.load(index, entry);
      const bitmap = this.transaction.shadow(entry.blocknr, BITMAP);
      entry.blocknr = bitmap.number;
      for (; block < stop; block++)
        if (change > 0) this.#addOne(bitmap, entry, block);
        else this.#subtractOne(bitmap, entry, block);
      this.save(index, entry);
    }
  }

  #outside(begin: number, end: number): DmError {
    return new FormatError(
      'METADATA_COUNT',
      'EINVAL',
      `Blocks ${begin} to ${end} are not among the ${this.nrBlocks} of the map`,
    );
  }

  #addOne(bitmap: Block, entry: IndexEntry, block: number): void {
    const i = block % ENTRIES;
    const before = countIn(bitmap, i);
    if (before === 0) {
      setCount(bitmap, i, 1);
      this.#total(1);
      this.allocated(1);
      entry.nrFree--;
      if (entry.noneFreeBefore === i) entry.noneFreeBefore = i + 1;
    } else if (before < MANY) {
      setCount(bitmap, i, before + 1);
      if (before + 1 === MANY) this.#insertMany(block);
    } else this.#addMany(block, 1);
  }

  #subtractOne(bitmap: Block, entry: IndexEntry, block: number): void {
    const i = block % ENTRIES;
    const before = countIn(bitmap, i);
    if (before === 0) throw new FormatError('METADATA_COUNT', 'EINVAL', `Block ${block} is freed and has no owner`);
    if (before === 1) {
      setCount(bitmap, i, 0);
      this.#total(-1);
      this.allocated(-1);
      entry.nrFree++;
      entry.noneFreeBefore = Math.min(entry.noneFreeBefore, i);
    } else if (before < MANY) setCount(bitmap, i, before - 1);
    else if (this.#addMany(block, -1) < MANY) {
      this.#change()[REF_COUNT_ROOT] = this.#overflow.remove(this.#state.numbers[REF_COUNT_ROOT], block);
      setCount(bitmap, i, MANY - 1);
    }
  }

  /** It may have been wrong on the disk: it stays one with which the map can be opened again. */
  #total(change: 1 | -1): void {
    const state = this.#change();
    state[NR_ALLOCATED] = Math.max(0, Math.min(state[NR_BLOCKS], state[NR_ALLOCATED] + change));
  }

  #insertMany(block: number): void {
    counterView.setUint32(0, MANY, true);
    const root = this.#overflow.insert(this.#state.numbers[REF_COUNT_ROOT], [block], counter);
    this.#change()[REF_COUNT_ROOT] = root;
  }

  /** Changes a count that is in the tree. Returns it; MANY is not made less, as such an entry has to go. */
  #addMany(block: number, change: number): number {
    this.#change()[REF_COUNT_ROOT] = this.#overflow.change(this.#state.numbers[REF_COUNT_ROOT], block);
    const { leaf, valueAt } = this.#overflow;
    const count = leaf.view.getUint32(valueAt, true) + change;
    if (count > COUNT_MAX) throw new FormatError('METADATA_COUNT', 'EINVAL', `Block ${block} has too many owners`);
    if (count >= MANY) leaf.view.setUint32(valueAt, count, true);
    return count;
  }

  /** The first block from `begin` on that is free now and was at the last commit; throws ENOSPC. The cursor goes behind it. */
  protected take(begin = this.cursor): number {
    for (let from = begin; ; ) {
      const block = this.#findFree(from);
      if (block < 0) {
        if (begin === 0) throw this.noSpace();
        return this.take(0);
      }
      if (this.#wasFree(block)) {
        this.cursor = block + 1;
        return block;
      }
      from = block + 1;
    }
  }

  /** At the last commit. */
  #wasFree(block: number): boolean {
    return block >= this.old.nrBlocks || this.#few(this.oldBitmap(Math.floor(block / ENTRIES)), block) === 0;
  }

  /** Free now, and at the last commit. */
  protected isFree(block: number): boolean {
    return block < this.nrBlocks && this.lookupFew(block) === 0 && this.#wasFree(block);
  }

  #findFree(begin: number): number {
    const { nrBlocks } = this;
    for (
      let index = Math.floor(begin / ENTRIES), from = begin % ENTRIES;
      index * ENTRIES < nrBlocks;
      index++, from = 0
    ) {
      this.load(index, this.#searched);
      const { blocknr, nrFree, noneFreeBefore } = this.#searched;
      if (nrFree === 0) continue;
      const end = Math.min(ENTRIES, nrBlocks - index * ENTRIES);
      const i = findFree(this.transaction.get(blocknr, BITMAP), Math.max(from, noneFreeBefore), end);
      if (i >= 0) return index * ENTRIES + i;
    }
    return -1;
  }

  /** `extra` blocks more, all of them free. */
  protected grow(extra: number): void {
    const before = Math.ceil(this.nrBlocks / ENTRIES);
    this.#change()[NR_BLOCKS] += extra;
    const bitmaps = Math.ceil(this.nrBlocks / ENTRIES);
    for (let i = before; i < bitmaps; i++) {
      const { number } = this.transaction.newBlock(BITMAP);
      this.save(i, { blocknr: number, nrFree: ENTRIES, noneFreeBefore: 0 });
    }
  }
}

/** From the superblock. */
export const readRoot = (view: DataView, at: number): SpaceMapRoot => diskRoot.get(view, at);
