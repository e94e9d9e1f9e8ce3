/**
 * Counts of blocks elsewhere, on the data device (Linux `dm-space-map-disk.c`). The index of its bitmaps is a B-tree, with a
 * small cache before it.
 */

import { DmError } from '../../errors.ts';
import { diskIndexEntry } from '../../formats/pdata/space-map.ts';
import { Numbers } from './blocks.ts';
import { Btree } from './btree.ts';
import { type IndexEntry, SpaceMap, type SpaceMapRoot } from './space-map.ts';
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

  open(root: SpaceMapRoot): void {
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

  protected load(i: number): IndexEntry {
    const slot = slotOf(i);
    const { numbers: slots } = this.#cache;
    const at = slot * NUMBERS;
    if (slots[at + STATE] === EMPTY || slots[at + INDEX] !== i) {
      this.#writeBack(slot);
      const { blocknr, nrFree, noneFreeBefore } = this.#lookup(this.bitmapRoot, i);
      this.transaction.blocks.change(this.#cache);
      slots.set([CLEAN, i, blocknr, nrFree, noneFreeBefore], at);
    }
    return { blocknr: slots[at + BLOCKNR], nrFree: slots[at + NR_FREE], noneFreeBefore: slots[at + NONE_FREE] };
  }

  protected loadOld(i: number): IndexEntry {
    return this.#lookup(this.old.bitmapRoot, i);
  }

  protected save(i: number, { blocknr, nrFree, noneFreeBefore }: IndexEntry): void {
    const slot = slotOf(i);
    const { numbers: slots } = this.#cache;
    const at = slot * NUMBERS;
    if (slots[at + INDEX] !== i) this.#writeBack(slot);
    this.transaction.blocks.change(this.#cache);
    slots.set([DIRTY, i, blocknr, nrFree, noneFreeBefore], at);
  }

  #lookup(root: number, i: number): IndexEntry {
    if (!this.#index.find(root, i))
      throw new DmError('METADATA_TREE', 'EILSEQ', `The space map of data has no bitmap ${i}`);
    return diskIndexEntry.get(this.#index.leaf.view, this.#index.valueAt);
  }

  #writeBack(slot: number): void {
    const { numbers: slots } = this.#cache;
    const at = slot * NUMBERS;
    if (slots[at + STATE] !== DIRTY) return;
    diskIndexEntry.set(valueView, 0, {
      blocknr: slots[at + BLOCKNR],
      nrFree: slots[at + NR_FREE],
      noneFreeBefore: slots[at + NONE_FREE],
    });
    this.bitmapRoot = this.#index.insert(this.bitmapRoot, [slots[at + INDEX]], value);
    this.transaction.blocks.change(this.#cache);
    slots[at + STATE] = CLEAN;
  }
}

/** As the kernel's hash: entries are written back in the order of their slots. */
const slotOf = (i: number): number => Math.imul(i, 4294967291) & (SLOTS - 1);
