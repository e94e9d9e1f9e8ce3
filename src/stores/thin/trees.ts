/** The trees of a pool's metadata, and what their values lead to (Linux `dm-thin-metadata.c`). */
import * as node from '../../formats/pdata/node.ts';
import { diskDetails, MAPPING_BYTES, mappedBlock } from '../../formats/thin/values.ts';
import type { Block } from '../pdata/blocks.ts';
import { Btree, eachRun, type ValueType } from '../pdata/btree.ts';
import type { DataSpaceMap } from '../pdata/data-space-map.ts';
import type { Transaction } from '../pdata/transaction.ts';

export class Trees {
  /** From device and virtual block to where it is mapped. */
  readonly mappings: Btree;
  /** The upper level of that alone: from device to the root of its own tree. */
  readonly roots: Btree;
  /** The lower level alone, of one device. */
  readonly device: Btree;
  readonly details: Btree;

  constructor(transaction: Transaction, data: DataSpaceMap) {
    const { spaceMap } = transaction;
    const inc = (begin: number, end: number) => data.inc(begin, end);
    const dec = (begin: number, end: number) => data.dec(begin, end);
    const mapping: ValueType = {
      size: MAPPING_BYTES,
      inc: (leaf, first, count) => eachRun(leaf, first, count, blockAt, inc),
      dec: (leaf, first, count) => eachRun(leaf, first, count, blockAt, dec),
      equal: (leaf, i, value) => blockAt(leaf, i) === mappedBlock(viewOf(value), 0),
    };
    this.mappings = new Btree(transaction, 2, mapping);
    this.device = new Btree(transaction, 1, mapping);
    this.roots = new Btree(transaction, 1, {
      size: node.CHILD,
      inc: (leaf, first, count) => {
        for (let i = first; i < first + count; i++) spaceMap.inc(node.child(leaf, i), node.child(leaf, i) + 1);
      },
      dec: (leaf, first, count) => {
        for (let i = first; i < first + count; i++) this.device.delete(node.child(leaf, i));
      },
    });
    this.details = new Btree(transaction, 1, { size: diskDetails.size });
  }
}

const blockAt = (leaf: Block, i: number): number => mappedBlock(leaf.view, node.valueAt(leaf, i));

const viewOf = (value: Uint8Array): DataView => new DataView(value.buffer, value.byteOffset, value.byteLength);
