/** Moving entries between nodes that lie side by side. What is left behind where they were is left as it is. */
import type { BlockData as Block } from '../../formats/pdata/block.ts';
import * as node from '../../formats/pdata/node.ts';

/** Moves the last `count` entries of `left` to the front of `right`, or, if negative, the first of `right` behind `left`. */
export function shift(left: Block, right: Block, count: number): void {
  const [nl, nrr] = [node.nr(left), node.nr(right)];
  if (count > 0) {
    node.copy(right, 0, right, count, nrr);
    node.copy(left, nl - count, right, 0, count);
  } else {
    node.copy(right, 0, left, nl, -count);
    node.copy(right, -count, right, 0, nrr + count);
  }
  node.setNr(left, nl - count);
  node.setNr(right, nrr + count);
}

/** Copies the first `count` entries of a node that is going behind those of another. */
export function append(to: Block, from: Block, count: number): void {
  node.copy(from, 0, to, node.nr(to), count);
  node.setNr(to, node.nr(to) + count);
}

export function redistribute2(left: Block, right: Block): void {
  const total = node.nr(left) + node.nr(right);
  shift(left, right, node.nr(left) - Math.floor(total / 2));
}

/** `center` is empty. */
export function redistribute3(left: Block, center: Block, right: Block): void {
  const [nl, nrr] = [node.nr(left), node.nr(right)];
  const total = nl + nrr;
  const wantLeft = Math.floor(total / 3);
  const wantCenter = Math.floor((total - wantLeft) / 2);
  const wantRight = total - wantLeft - wantCenter;
  if (nl < wantLeft) {
    const short = wantLeft - nl;
    node.copy(right, 0, left, nl, short);
    node.copy(right, short, center, 0, wantCenter);
    node.copy(right, short + wantCenter, right, 0, wantRight);
  } else if (nl < wantLeft + wantCenter) {
    const extra = nl - wantLeft;
    node.copy(left, wantLeft, center, 0, extra);
    node.copy(right, 0, center, extra, wantCenter - extra);
    node.copy(right, wantCenter - extra, right, 0, wantRight);
  } else {
    const extra = wantRight - nrr;
    node.copy(right, 0, right, extra, nrr);
    node.copy(left, nl - extra, right, 0, extra);
    node.copy(left, wantLeft, center, 0, wantCenter);
  }
  node.setNr(left, wantLeft);
  node.setNr(center, wantCenter);
  node.setNr(right, wantRight);
}

/** As many in each of three nodes, or one more in the left ones. */
export function evenOut3(left: Block, center: Block, right: Block): void {
  const total = node.nr(left) + node.nr(center) + node.nr(right);
  const wantRight = Math.floor(total / 3);
  const wantLeft = wantRight + (wantRight * 3 === total ? 0 : 1);
  if (node.nr(left) < node.nr(right)) {
    let surplus = node.nr(left) - wantLeft;
    if (surplus < 0 && node.nr(center) < -surplus) {
      surplus += node.nr(center);
      shift(left, center, -node.nr(center));
      shift(left, right, surplus);
    } else shift(left, center, surplus);
    shift(center, right, wantRight - node.nr(right));
  } else {
    let lack = wantRight - node.nr(right);
    if (lack > 0 && node.nr(center) < lack) {
      lack -= node.nr(center);
      shift(center, right, node.nr(center));
      shift(left, right, lack);
    } else shift(center, right, lack);
    shift(left, center, node.nr(left) - wantLeft);
  }
}
