/**
 * Taking entries out of a B-tree (Linux `dm-btree-remove.c`): on the way down, children that are about to lose an entry are evened out
 * first.
 */
import * as node from '../../formats/pdata/node.ts';
import type { Block } from './blocks.ts';
import { checkAlike, corrupt, type Nodes, type Spine } from './nodes.ts';
import { append, evenOut3, shift } from './redistribute.ts';

/** Goes down to the leaf for `key`, from which something is to be removed; returns the place of the last key not above it. */
export function removeWalk(nodes: Nodes, spine: Spine, root: number, key: number): number {
  let i = -1;
  let number = root;
  for (let depth = 0; ; depth++) {
    const current = nodes.step(spine, number, nodes.values, i, depth);
    if (!node.isLeaf(current)) evenOut(nodes, current, key);
    i = node.lower(current, key);
    if (node.isLeaf(current)) return i;
    if (i < 0) throw corrupt(current.number, `leads to nothing for ${key}`);
    number = node.child(current, i);
  }
}

/** Evens out the child for `key` and those beside it, so that none gets too small. */
function evenOut(nodes: Nodes, parent: Block, key: number): void {
  if (node.nr(parent) === 1) {
    const number = node.child(parent, 0);
    const only = nodes.get(number, 0);
    const shared = nodes.transaction.spaceMap.moreThanOne(number);
    parent.bytes.set(only.bytes);
    if (shared) nodes.incChildren(parent, nodes.values);
    nodes.transaction.spaceMap.dec(number, number + 1);
    return;
  }
  const i = node.lower(parent, key);
  if (i < 0) return;
  if (i === 0) rebalance2(nodes, parent, 0);
  else if (i === node.nr(parent) - 1) rebalance2(nodes, parent, i - 1);
  else rebalance3(nodes, parent, i);
}

function rebalance2(nodes: Nodes, parent: Block, l: number): void {
  const left = nodes.shadowChild(parent, l, nodes.values);
  const right = nodes.shadowChild(parent, l + 1, nodes.values);
  balance2(nodes, parent, l, left, right);
}

function balance2(nodes: Nodes, parent: Block, l: number, left: Block, right: Block): void {
  checkAlike(left, right);
  const total = node.nr(left) + node.nr(right);
  if (total < 2 * (Math.floor(node.max(left) / 3) + 1)) {
    append(left, right, node.nr(right));
    node.deleteAt(parent, l + 1);
    nodes.transaction.spaceMap.dec(right.number, right.number + 1);
    return;
  }
  shift(left, right, node.nr(left) - Math.floor(total / 2));
  node.setKey(parent, l + 1, node.key(right, 0));
}

function rebalance3(nodes: Nodes, parent: Block, c: number): void {
  const left = nodes.shadowChild(parent, c - 1, nodes.values);
  const center = nodes.shadowChild(parent, c, nodes.values);
  const right = nodes.shadowChild(parent, c + 1, nodes.values);
  checkAlike(left, center);
  checkAlike(center, right);
  const total = node.nr(left) + node.nr(center) + node.nr(right);
  if (total < 4 * Math.floor(node.max(left) / 3) + 1) {
    const taken = Math.min(node.max(left) - node.nr(left), node.nr(center));
    append(left, center, taken);
    shift(center, right, node.nr(center) - taken);
    node.setKey(parent, c + 1, node.key(right, 0));
    node.deleteAt(parent, c);
    nodes.transaction.spaceMap.dec(center.number, center.number + 1);
    balance2(nodes, parent, c - 1, left, right);
    return;
  }
  evenOut3(left, center, right);
  node.setKey(parent, c, node.key(center, 0));
  node.setKey(parent, c + 1, node.key(right, 0));
}
