/**
 * A node of a B-tree (Linux `dm-btree-internal.h`):
 *
 *      0      4       8         16   20    24           28  32           32 + 8*max
 *     +------+-------+---------+----+-----+------------+---+------------+---------------
 *     | csum | flags | blocknr | nr | max | value size | 0 | keys[max]  | values[max]
 *     +------+-------+---------+----+-----+------------+---+------------+---------------
 *
 * Values begin behind the *largest* number of keys. What lies behind `nr` in either array is left over and means nothing. In an
 * internal node a value is the number of a child, and its key no larger than any key below that child.
 */
import { u32, u64 } from '../struct.ts';
import { BLOCK_BYTES, type BlockData, type Kind } from './block.ts';

const HEADER = 32;
const AT = { flags: 4, nr: 16, max: 20, valueSize: 24 } as const;
const LEAF = 2;
const INTERNAL = 1;
/** Bytes of a child's number. */
export const CHILD = 8;

export const NODE: Kind = {
  name: 'B-tree node',
  salt: 121107,
  fault(block) {
    const [most, count, size] = [max(block), nr(block), valueSize(block)];
    if (HEADER + (8 + size) * most > BLOCK_BYTES) return `${most} entries of ${8 + size} bytes do not fit`;
    if (count > most) return `it has ${count} entries of at most ${most}`;
    const flags = u32.get(block.view, AT.flags);
    if ((flags & (LEAF | INTERNAL)) === 0) return `flags 0x${flags.toString(16)} make it neither leaf nor internal`;
  },
};

/** A multiple of three, so that three nodes can be made of two. */
export const maxEntries = (size: number): number => 3 * Math.floor(Math.floor((BLOCK_BYTES - HEADER) / (8 + size)) / 3);

export function format({ view }: BlockData, leaf: boolean, size: number): void {
  u32.set(view, AT.flags, leaf ? LEAF : INTERNAL);
  u32.set(view, AT.max, maxEntries(size));
  u32.set(view, AT.valueSize, size);
}

/** An empty node that is like another one. */
export function formatAs({ view }: BlockData, like: BlockData): void {
  for (const at of [AT.flags, AT.max, AT.valueSize]) u32.set(view, at, u32.get(like.view, at));
}

export const isLeaf = ({ view }: BlockData): boolean => (view.getUint8(AT.flags) & LEAF) !== 0;
export const nr = ({ view }: BlockData): number => view.getUint32(AT.nr, true);
export const setNr = ({ view }: BlockData, count: number): void => view.setUint32(AT.nr, count, true);
export const max = ({ view }: BlockData): number => view.getUint32(AT.max, true);
export const valueSize = ({ view }: BlockData): number => view.getUint32(AT.valueSize, true);

/** As `u64.get`, but small numbers stay integers for the engine, which is faster to compare and to look up. */
function number(view: DataView, at: number): number {
  const low = view.getUint32(at, true);
  const high = view.getUint32(at + 4, true);
  return high === 0 ? low : high * 2 ** 32 + low;
}

export const key = ({ view }: BlockData, i: number): number => number(view, HEADER + 8 * i);
export const setKey = ({ view }: BlockData, i: number, value: number): void => u64.set(view, HEADER + 8 * i, value);

/** Where value `i` lies in the block. */
export const valueAt = (node: BlockData, i: number): number => HEADER + 8 * max(node) + valueSize(node) * i;
export const child = (node: BlockData, i: number): number => number(node.view, HEADER + 8 * max(node) + 8 * i);
export const setChild = (node: BlockData, i: number, to: number): void =>
  u64.set(node.view, HEADER + 8 * max(node) + 8 * i, to);

/**
 * What is wrong with a node of a tree whose leaves hold values of `size` bytes. A block that is a node is not always one of the tree
 * that leads to it.
 */
export function misfit(node: BlockData, size: number): string | undefined {
  const leaf = isLeaf(node);
  const wanted = leaf ? size : CHILD;
  if (valueSize(node) !== wanted) return `its values have ${valueSize(node)} bytes in place of ${wanted}`;
  if (max(node) !== maxEntries(wanted)) return `it has room for ${max(node)} entries in place of ${maxEntries(wanted)}`;
  if (!leaf && nr(node) === 0) return 'it has no children';
}

/** Index of the last key that is not above `wanted`, or -1. */
export function lower(node: BlockData, wanted: number): number {
  const { view } = node;
  const wantedLow = wanted >>> 0;
  const wantedHigh = (wanted - wantedLow) / 2 ** 32;
  let low = -1;
  let high = nr(node);
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    const at = HEADER + 8 * middle;
    const keyHigh = view.getUint32(at + 4, true);
    if (keyHigh < wantedHigh || (keyHigh === wantedHigh && view.getUint32(at, true) <= wantedLow)) low = middle;
    else high = middle;
  }
  return low;
}

/** Index of the first key that is not below `wanted`, or `nr`. */
export function upper(node: BlockData, wanted: number): number {
  const i = lower(node, wanted);
  return i >= 0 && key(node, i) === wanted ? i : i + 1;
}

/** Makes room at `i` and puts an entry there; `value` has as many bytes as the node's values. */
export function insertAt(node: BlockData, i: number, newKey: number, value: Uint8Array): void {
  const count = nr(node);
  copy(node, i, node, i + 1, count - i);
  setNr(node, count + 1);
  setKey(node, i, newKey);
  node.bytes.set(value, valueAt(node, i));
}

export function deleteAt(node: BlockData, i: number): void {
  const count = nr(node);
  copy(node, i + 1, node, i, count - i - 1);
  setNr(node, count - 1);
}

/** Copies `count` entries from index `i` of a node to index `j` of one whose values are as long. */
export function copy(from: BlockData, i: number, to: BlockData, j: number, count: number): void {
  if (count <= 0) return;
  const size = valueSize(to);
  const values = valueAt(from, i);
  if (from === to) {
    to.bytes.copyWithin(valueAt(to, j), values, values + count * size);
    to.bytes.copyWithin(HEADER + 8 * j, HEADER + 8 * i, HEADER + 8 * (i + count));
    return;
  }
  to.bytes.set(from.bytes.subarray(HEADER + 8 * i, HEADER + 8 * (i + count)), HEADER + 8 * j);
  to.bytes.set(from.bytes.subarray(values, values + count * size), valueAt(to, j));
}
