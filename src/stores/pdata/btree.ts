/**
 * B-trees whose nodes are never overwritten (Linux `dm-btree.c`). Two things are done on the way down,
 * so that no step has to be undone: a node that is full makes room before its child may need it, and children that are about to
 * lose an entry are evened out first. An operation returns the new root.
 *
 * A tree of several levels is a tree whose values are roots of trees.
 */
import * as node from '../../formats/pdata/node.ts';
import { CHILD, NODE } from '../../formats/pdata/node.ts';
import type { Block } from './blocks.ts';
import { removeWalk } from './btree-remove.ts';
import { checkAlike, corrupt, Nodes, newSpine, type Spine } from './nodes.ts';
import { redistribute2, redistribute3 } from './redistribute.ts';
import type { Transaction } from './transaction.ts';
import { childBytes, type ValueType } from './value-type.ts';

/** A part of a tree that is going away. */
export interface Going {
  readonly number: number;
  /** Of the trees in it: 0 for that of the first keys. */
  readonly level: number;
  readonly depth: number;
  /** What it leads to has gone. */
  readonly empty: boolean;
}

/** Entries that a neighbour must have free to take some. */
const SPARE = 8;
/** Nodes that are read together. */
const AHEAD = 32;

export class Btree {
  readonly #nodes: Nodes;
  readonly #levels: number;
  /** Of the entry that `find` or `next` found. */
  leaf!: Block;
  index = 0;
  /** The last `insert` made a new entry. */
  inserted = false;
  /** What `removeRange` has removed, and where it stopped. */
  removed = 0;
  reached = 0;

  constructor(transaction: Transaction, levels: number, values: ValueType) {
    this.#nodes = new Nodes(transaction, values);
    this.#levels = levels;
  }

  /** The root of a tree without entries. */
  empty(): number {
    const block = this.#nodes.transaction.newBlock(NODE);
    node.format(block, true, this.#nodes.values.size);
    return block.number;
  }

  /** Where in `leaf` the value of the entry lies. */
  get valueAt(): number {
    return node.valueAt(this.leaf, this.index);
  }

  /** Looks up an entry of a tree of one level: true, and it is at `index` of `leaf`. */
  find(root: number, key: number): boolean {
    for (let number = root, depth = 0; ; depth++) {
      const block = this.#nodes.get(number, depth);
      const i = node.lower(block, key);
      if (i < 0) return false;
      if (node.isLeaf(block)) {
        this.leaf = block;
        this.index = i;
        return node.key(block, i) === key;
      }
      number = node.child(block, i);
    }
  }

  /** The first entry of a tree of one level whose key is not below `key`: true, and it is at `index` of `leaf`. */
  next(root: number, key: number): boolean {
    let right = -1;
    let rightDepth = 0;
    for (let number = root, depth = 0; ; depth++) {
      const block = this.#nodes.get(number, depth);
      if (node.isLeaf(block)) {
        this.leaf = block;
        this.index = node.upper(block, key);
        if (this.index < node.nr(block)) return true;
        break;
      }
      const i = Math.max(node.lower(block, key), 0);
      if (i + 1 < node.nr(block)) {
        right = node.child(block, i + 1);
        rightDepth = depth + 1;
      }
      number = node.child(block, i);
    }
    // All in the nearest subtree to the right is above.
    if (right < 0) return false;
    for (let number = right, depth = rightDepth; ; depth++) {
      const block = this.#nodes.get(number, depth);
      if (node.isLeaf(block)) {
        this.leaf = block;
        this.index = 0;
        return node.nr(block) > 0;
      }
      number = node.child(block, 0);
    }
  }

  /** The largest key of a tree of one level, or -1. */
  highest(root: number): number {
    for (let number = root, depth = 0; ; depth++) {
      const block = this.#nodes.get(number, depth);
      const count = node.nr(block);
      if (count === 0) return -1;
      if (node.isLeaf(block)) return node.key(block, count - 1);
      number = node.child(block, count - 1);
    }
  }

  /** Brings the leaves of a tree of one level from `begin` on, below `end`, into memory together, `most` at most. */
  ahead(root: number, begin: number, end: number, most: number): void {
    let parent: Block | undefined;
    let i = 0;
    for (let number = root, depth = 0; ; depth++) {
      const block = this.#nodes.get(number, depth);
      if (node.isLeaf(block)) break;
      parent = block;
      i = Math.max(node.lower(block, begin), 0);
      number = node.child(block, i);
    }
    if (!parent) return;
    const leaves: number[] = [];
    for (; i < node.nr(parent) && node.key(parent, i) < end && leaves.length < most; i++)
      leaves.push(node.child(parent, i));
    this.#nodes.transaction.blocks.need(leaves, NODE);
  }

  /** Puts `value` in place of what is there for the keys, or beside it. Sets `inserted`. */
  insert(root: number, keys: readonly number[], value: Uint8Array): number {
    const spine = newSpine();
    const last = this.#levels - 1;
    let number = root;
    let i = -1;
    for (let level = 0; ; level++) {
      const key = keys[level];
      i = this.#makeWay(spine, number, level === last ? this.#nodes.values : this.#nodes.children, key, i);
      const current = spine.current!;
      const absent = i >= node.nr(current) || node.key(current, i) !== key;
      if (level < last) {
        if (absent) node.insertAt(current, i, key, childBytes(this.empty()));
        number = node.child(current, i);
        continue;
      }
      this.inserted = absent;
      if (absent) node.insertAt(current, i, key, value);
      else {
        const { dec, equal } = this.#nodes.values;
        if (dec && !equal?.(current, i, value)) dec(current, i, 1);
        current.bytes.set(value, node.valueAt(current, i));
      }
      return spine.root;
    }
  }

  /** Makes the leaf of an entry, which is there, changeable: its value is at `valueAt` of `leaf`. For trees of one level. */
  change(root: number, key: number): number {
    const spine = newSpine();
    let number = root;
    let i = -1;
    for (let depth = 0; ; depth++) {
      const current = this.#nodes.step(spine, number, this.#nodes.values, i, depth);
      i = node.lower(current, key);
      if (node.isLeaf(current)) {
        if (i < 0 || node.key(current, i) !== key) throw corrupt(current.number, `has no entry ${key}`);
        this.leaf = current;
        this.index = i;
        return spine.root;
      }
      number = node.child(current, Math.max(i, 0));
    }
  }

  /** Removes an entry of a tree of one level, which is there. */
  remove(root: number, key: number): number {
    const spine = newSpine();
    const i = removeWalk(this.#nodes, spine, root, key);
    const leaf = spine.current!;
    if (i < 0 || node.key(leaf, i) !== key) throw corrupt(leaf.number, `has no entry ${key}`);
    this.#nodes.values.dec?.(leaf, i, 1);
    node.deleteAt(leaf, i);
    return spine.root;
  }

  /**
   * Removes entries of a tree of one level from the first on that is not below `begin`, below `end`, up to the end of its leaf, which
   * takes from its neighbours on the way; `most` at most. Sets `removed`, and `reached`: the key to go on with. The attempt that
   * finds nothing more evens out nodes as the others do.
   */
  removeLeaves(root: number, begin: number, end: number, most: number): number {
    this.removed = 0;
    this.reached = begin;
    while (this.removed < most) {
      const spine = newSpine();
      const i = Math.max(removeWalk(this.#nodes, spine, root, this.reached), 0);
      root = spine.root;
      const leaf = spine.current!;
      if (i >= node.nr(leaf)) return root;
      const key = node.key(leaf, i);
      if (key < this.reached || key >= end) return root;
      this.#nodes.values.dec?.(leaf, i, 1);
      node.deleteAt(leaf, i);
      this.reached = key + 1;
      this.removed++;
    }
    return root;
  }

  /** Lets go of a whole tree, and of what only that led to. */
  delete(root: number): void {
    this.deleteSome([going(root)], Number.POSITIVE_INFINITY);
  }

  /**
   * As `delete`, for what is on the stack, from its top on, until about `most` values have gone. Returns what is left to do; until it
   * is done the pool is not whole. Depth first, as the order of what is freed decides on what is given out next.
   */
  deleteSome(stack: readonly Going[], most: number): Going[] {
    const { spaceMap, blocks } = this.#nodes.transaction;
    const left = stack.slice();
    for (let gone = 0; left.length > 0 && gone < most; gone++) {
      const top = left.pop()!;
      const { number, level, depth, empty } = top;
      const owners = empty ? 1 : spaceMap.count(number);
      if (owners <= 0) throw corrupt(number, 'is free');
      if (!empty && owners === 1) {
        if (!blocks.has(number)) this.#needNext(number, left);
        const block = this.#nodes.get(number, depth);
        const count = node.nr(block);
        const inner = !node.isLeaf(block);
        if (inner || level < this.#levels - 1) {
          const children: Going[] = [{ ...top, empty: true }];
          for (let i = count - 1; i >= 0; i--) {
            const child = node.child(block, i);
            children.push(inner ? { number: child, level, depth: depth + 1, empty: false } : going(child, level + 1));
          }
          left.push(...children);
          continue;
        }
        if (count > 0) this.#nodes.values.dec?.(block, 0, count);
        gone += count;
      }
      spaceMap.dec(number, number + 1);
    }
    return left;
  }

  /** This node, and those that `deleteSome` comes to next, are read together. */
  #needNext(first: number, left: readonly Going[]): void {
    const { spaceMap, blocks } = this.#nodes.transaction;
    const absent = [first];
    for (let i = left.length - 1; i >= 0 && absent.length < AHEAD; i--) {
      const { number, empty } = left[i];
      if (!empty && !blocks.has(number) && spaceMap.count(number) === 1) absent.push(number);
    }
    blocks.need(absent, NODE);
  }

  /** Goes down to the leaf for `key`, so that an entry can be put there; returns its place. */
  #makeWay(spine: Spine, root: number, values: ValueType, key: number, i: number): number {
    let number = root;
    for (let top = true, depth = 0; ; top = false, depth++) {
      let current = this.#nodes.step(spine, number, values, i, depth);
      if (node.nr(current) === node.max(current) && !(node.isLeaf(current) && holds(current, key))) {
        if (top) this.#splitBeneath(current);
        else this.#makeRoom(spine, values, i, key);
        current = spine.current!;
      }
      i = node.lower(current, key);
      if (node.isLeaf(current)) return i < 0 || node.key(current, i) !== key ? i + 1 : i;
      if (i < 0) {
        node.setKey(current, 0, key);
        i = 0;
      }
      number = node.child(current, i);
    }
  }

  /** A root that is full becomes the parent of its two halves. */
  #splitBeneath(root: Block): void {
    const count = node.nr(root);
    const half = Math.floor(count / 2);
    const left = this.#nodes.newLike(root);
    const right = this.#nodes.newLike(root);
    node.copy(root, 0, left, 0, half);
    node.setNr(left, half);
    node.copy(root, half, right, 0, count - half);
    node.setNr(right, count - half);
    node.format(root, false, CHILD);
    node.setNr(root, 2);
    for (const [i, half] of [left, right].entries()) {
      node.setKey(root, i, node.key(half, 0));
      node.setChild(root, i, half.number);
    }
  }

  /** The current node, child `i` of its parent, is full: a neighbour takes some, or there is one node more. */
  #makeRoom(spine: Spine, values: ValueType, i: number, key: number): void {
    const parent = spine.parent!;
    const current = spine.current!;
    const { spaceMap } = this.#nodes.transaction;
    let leftShared = false;
    let rightShared = false;
    if (i > 0) {
      const number = node.child(parent, i - 1);
      leftShared = spaceMap.moreThanOne(number);
      if (!leftShared && hasRoom(this.#nodes.get(number, 0))) {
        const left = this.#nodes.shadowChild(parent, i - 1, values);
        checkAlike(left, current);
        redistribute2(left, current);
        node.setKey(parent, i, node.key(current, 0));
        if (key < node.key(current, 0)) spine.current = left;
        return;
      }
    }
    if (i < node.nr(parent) - 1) {
      const number = node.child(parent, i + 1);
      rightShared = spaceMap.moreThanOne(number);
      if (!rightShared && hasRoom(this.#nodes.get(number, 0))) {
        const right = this.#nodes.shadowChild(parent, i + 1, values);
        checkAlike(current, right);
        redistribute2(current, right);
        node.setKey(parent, i + 1, node.key(right, 0));
        if (key >= node.key(right, 0)) spine.current = right;
        return;
      }
    }
    if (leftShared || rightShared || node.nr(parent) <= 2 || i === 0 || i + 1 === node.nr(parent)) {
      const right = this.#nodes.newLike(current);
      redistribute2(current, right);
      node.insertAt(parent, i + 1, node.key(right, 0), childBytes(right.number));
      if (key >= node.key(right, 0)) spine.current = right;
      return;
    }
    // Three nodes are made of two.
    const left = this.#nodes.shadowChild(parent, i - 1, values);
    checkAlike(left, current);
    const center = this.#nodes.newLike(left);
    redistribute3(left, center, current);
    node.setKey(parent, i, node.key(current, 0));
    node.insertAt(parent, i, node.key(center, 0), childBytes(center.number));
    if (key < node.key(center, 0)) spine.current = left;
    else if (key < node.key(current, 0)) spine.current = center;
  }
}

/** A tree that is to go as a whole. */
export const going = (number: number, level = 0): Going => ({ number, level, depth: 0, empty: false });

const hasRoom = (block: Block): boolean => node.max(block) - node.nr(block) >= SPARE;

function holds(leaf: Block, key: number): boolean {
  const i = node.lower(leaf, key);
  return i >= 0 && node.key(leaf, i) === key;
}
