/**
 * What was made since the last commit may be changed in place; everything else is copied first (Linux
 * `dm-transaction-manager.c`). A block that is freed is given out again only after the commit, so that whatever the last
 * superblock leads to is as it was when that was written.
 */
import type { Kind } from '../../formats/pdata/block.ts';
import type { Block, Blocks } from './blocks.ts';
import type { MetadataSpaceMap } from './metadata-space-map.ts';

export class Transaction {
  readonly blocks: Blocks;
  /** Set once, by the space map, which needs a transaction itself. */
  spaceMap!: MetadataSpaceMap;
  /** Blocks made since the last commit. */
  readonly #shadows = new Set<number>();
  /** Those of operation `#addedBy`. */
  readonly #added: number[] = [];
  #addedBy = 0;
  /** Blocks of the last commit that nothing leads to since they were copied; from `#staleFrom` on by operation `#staleBy`. */
  readonly #stale: number[] = [];
  #staleFrom = 0;
  #staleBy = 0;
  /** The block that `shadow` copied last is still in use elsewhere: what it leads to has one more parent. */
  shared = false;

  constructor(blocks: Blocks) {
    this.blocks = blocks;
    blocks.onUndo(() => {
      if (this.#staleBy === blocks.operation) this.#stale.length = this.#staleFrom;
      if (this.#addedBy === blocks.operation) for (const number of this.#added) this.#shadows.delete(number);
    });
  }

  get(number: number, kind: Kind): Block {
    return this.blocks.get(number, kind);
  }

  /** All zeroes; may be changed. Throws ENOSPC. */
  newBlock(kind: Kind): Block {
    const number = this.spaceMap.newBlock();
    this.#add(number);
    return this.blocks.fresh(number, kind);
  }

  /** The block, or a copy of it, that may be changed. Sets `shared`. */
  shadow(number: number, kind: Kind): Block {
    const { spaceMap } = this;
    const shared = spaceMap.moreThanOne(number);
    if (this.#shadows.has(number) && !shared) {
      const block = this.blocks.get(number, kind);
      this.blocks.change(block);
      this.shared = false;
      return block;
    }
    // Allocated before the other is let go of: it must not be the same.
    const copy = spaceMap.newBlock();
    spaceMap.dec(number, number + 1);
    const original = this.blocks.get(number, kind);
    const block = this.blocks.fresh(copy, kind);
    block.bytes.set(original.bytes);
    this.#add(copy);
    if (!shared) this.#addStale(number);
    this.shared = shared;
    return block;
  }

  /** After a commit nothing may be changed in place. */
  committed(): void {
    this.#shadows.clear();
    for (const number of this.#stale) this.blocks.forget(number);
    this.#stale.length = 0;
  }

  #addStale(number: number): void {
    if (this.#staleBy !== this.blocks.operation) this.#staleFrom = this.#stale.length;
    this.#staleBy = this.blocks.operation;
    this.#stale.push(number);
  }

  #add(number: number): void {
    if (this.#shadows.has(number)) return;
    if (this.#addedBy !== this.blocks.operation) this.#added.length = 0;
    this.#addedBy = this.blocks.operation;
    this.#shadows.add(number);
    this.#added.push(number);
  }
}
