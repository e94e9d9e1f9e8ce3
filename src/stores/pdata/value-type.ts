/** What the values of a B-tree are to it. */
import { CHILD } from '../../formats/pdata/node.ts';
import type { Block } from './blocks.ts';

/** What values lead to, and keep. All three take what lies in a leaf, where it lies. */
export interface ValueType {
  /** Bytes. */
  readonly size: number;
  /** `count` values from index `first` on have one more owner. */
  inc?(leaf: Block, first: number, count: number): void;
  /** They have one less. */
  dec?(leaf: Block, first: number, count: number): void;
  /** The value at `i` leads to the same as `value`. */
  equal?(leaf: Block, i: number, value: Uint8Array): boolean;
}

/** Calls `each(begin, end)` for runs of consecutive numbers, in order. */
export function eachRun(
  leaf: Block,
  first: number,
  count: number,
  number: (leaf: Block, i: number) => number,
  each: (begin: number, end: number) => void,
): void {
  for (let i = first, end = first + count; i < end; ) {
    const begin = number(leaf, i);
    let length = 1;
    while (i + length < end && number(leaf, i + length) === begin + length) length++;
    each(begin, begin + length);
    i += length;
  }
}

/** A block's number as a value. Of its own: a tree makes more of them while it makes room for one. */
export function childBytes(number: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(CHILD));
  view.setUint32(0, number % 2 ** 32, true);
  view.setUint32(4, Math.floor(number / 2 ** 32), true);
  return new Uint8Array(view.buffer);
}
