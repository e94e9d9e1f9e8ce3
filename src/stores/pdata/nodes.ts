/**
 * The nodes of a B-tree: each is checked when something leads to it, and copied before it is changed (Linux `dm-btree-spine.c`).
 */
import { FormatError } from '../../errors.ts';
import * as node from '../../formats/pdata/node.ts';
import { CHILD, NODE } from '../../formats/pdata/node.ts';
import type { Block } from './blocks.ts';
import type { Transaction } from './transaction.ts';
import { eachRun, type ValueType } from './value-type.ts';

/**
 * Levels of nodes, at most. A node that is not the root has at least 84 children, and there are four million blocks: what is deeper
 * leads back to itself.
 */
const DEPTH_MAX = 16;

const CHILDREN_MAX = node.maxEntries(CHILD);

/** Where an operation is: the node it works on and its parent, both of them new. */
export interface Spine {
  parent: Block | undefined;
  current: Block | undefined;
  /** The first one. */
  root: number;
}

export const newSpine = (): Spine => ({ parent: undefined, current: undefined, root: -1 });

export class Nodes {
  readonly transaction: Transaction;
  /** Of the leaves. */
  readonly values: ValueType;
  /** Of all other nodes. */
  readonly children: ValueType;
  readonly #valuesMax: number;

  constructor(transaction: Transaction, values: ValueType) {
    this.transaction = transaction;
    this.values = values;
    this.#valuesMax = node.maxEntries(values.size);
    const inc = (begin: number, end: number) => transaction.spaceMap.inc(begin, end);
    const dec = (begin: number, end: number) => transaction.spaceMap.dec(begin, end);
    this.children = {
      size: CHILD,
      inc: (leaf, first, count) => eachRun(leaf, first, count, node.child, inc),
      dec: (leaf, first, count) => eachRun(leaf, first, count, node.child, dec),
    };
  }

  get(number: number, depth: number): Block {
    return this.#checked(this.transaction.get(number, NODE), depth);
  }

  /** Throws FormatError for a node that cannot be part of this tree. */
  #checked(block: Block, depth: number): Block {
    if (depth > DEPTH_MAX) throw corrupt(block.number, 'leads back to itself');
    const leaf = node.isLeaf(block);
    const size = leaf ? this.values.size : CHILD;
    const most = leaf ? this.#valuesMax : CHILDREN_MAX;
    if (node.valueSize(block) !== size || node.max(block) !== most || node.nr(block) === 0) {
      const wrong = node.misfit(block, this.values.size);
      if (wrong) throw corrupt(block.number, `is not part of its tree: ${wrong}`);
    }
    return block;
  }

  /** An empty one, like another one. */
  newLike(like: Block): Block {
    const block = this.transaction.newBlock(NODE);
    node.formatAs(block, like);
    return block;
  }

  /** Makes a node changeable; what it leads to has one more parent if the old one stays in use. */
  shadow(number: number, values: ValueType, depth: number): Block {
    this.get(number, depth);
    const block = this.transaction.shadow(number, NODE);
    if (this.transaction.shared) this.incChildren(block, values);
    return block;
  }

  incChildren(block: Block, values: ValueType): void {
    const { inc } = node.isLeaf(block) ? values : this.children;
    if (node.nr(block) > 0) inc?.(block, 0, node.nr(block));
  }

  shadowChild(parent: Block, i: number, values: ValueType): Block {
    const block = this.shadow(node.child(parent, i), values, 0);
    node.setChild(parent, i, block.number);
    return block;
  }

  /** Makes node `number` changeable, the one below the current one. `i`: its place there, or -1 for the root of all. */
  step(spine: Spine, number: number, values: ValueType, i: number, depth: number): Block {
    const block = this.shadow(number, values, depth);
    spine.parent = spine.current;
    spine.current = block;
    if (spine.root < 0) spine.root = block.number;
    if (spine.parent && i >= 0) node.setChild(spine.parent, i, block.number);
    return block;
  }
}

export const corrupt = (number: number, what: string) =>
  new FormatError('METADATA_TREE', 'EILSEQ', `The B-tree node ${number} of the metadata ${what}`);

/** Nodes side by side are as deep as each other. */
export function checkAlike(left: Block, right: Block): void {
  if (node.isLeaf(left) !== node.isLeaf(right))
    throw corrupt(left.number, `lies beside ${right.number}, which is not as deep`);
}
