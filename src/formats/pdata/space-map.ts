/**
 * Reference counts of blocks (Linux `dm-space-map-common.h`). A bitmap has two bits for each block; counts of three and more are in a
 * B-tree beside it. The lower of the two bits is worth 2, the upper one 1.
 *
 *     bitmap:  | csum | 0 | blocknr | 16320 counts, four in a byte, lowest bits first ... |
 */
import { struct, u32, u64 } from '../struct.ts';
import { BLOCK_BYTES, type BlockData } from './block.ts';

const HEADER = 16;
/** Counts in a bitmap. */
export const ENTRIES = (BLOCK_BYTES - HEADER) * 4;
/** What a bitmap says of a count that is in the B-tree. */
export const MANY = 3;

/** 32 bytes in the superblock. */
export const diskRoot = struct({
  nrBlocks: u64,
  nrAllocated: u64,
  bitmapRoot: u64,
  refCountRoot: u64,
});

/** Of one bitmap, 16 bytes. */
export const diskIndexEntry = struct({
  blocknr: u64,
  nrFree: u32, // as if all 16320 blocks existed
  noneFreeBefore: u32, // a hint
});

export interface IndexEntry {
  blocknr: number;
  nrFree: number;
  noneFreeBefore: number;
}

/** As `diskIndexEntry.get`, into an object that is there. */
export function readIndexEntry(view: DataView, at: number, into: IndexEntry): void {
  into.blocknr = u64.get(view, at);
  into.nrFree = view.getUint32(at + diskIndexEntry.at.nrFree, true);
  into.noneFreeBefore = view.getUint32(at + diskIndexEntry.at.noneFreeBefore, true);
}

export function writeIndexEntry(view: DataView, at: number, entry: Readonly<IndexEntry>): void {
  u64.set(view, at, entry.blocknr);
  view.setUint32(at + diskIndexEntry.at.nrFree, entry.nrFree, true);
  view.setUint32(at + diskIndexEntry.at.noneFreeBefore, entry.noneFreeBefore, true);
}

/** In the index block, of the space map of metadata: as many entries as fit. */
export const INDEX_AT = 16;
export const INDEX_ENTRIES = 255;

/** Two bits to a count and back: the same swap. */
const SWAP = [0, 2, 1, 3] as const;

/** Of entry `i`: 0, 1, 2 or MANY. */
export const count = ({ bytes }: BlockData, i: number): number => SWAP[(bytes[HEADER + (i >> 2)] >> (2 * (i & 3))) & 3];

export function setCount({ bytes }: BlockData, i: number, value: number): void {
  const shift = 2 * (i & 3);
  const at = HEADER + (i >> 2);
  bytes[at] = (bytes[at] & ~(3 << shift)) | (SWAP[value] << shift);
}

/** The first entry with count 0 from `begin` on, or -1 if there is none below `end`. */
export function findFree(bitmap: BlockData, begin: number, end: number): number {
  const { bytes } = bitmap;
  for (let i = begin; i < end; ) {
    if ((i & 3) === 0 && FULL[bytes[HEADER + (i >> 2)]]) i += 4;
    else if (count(bitmap, i) === 0) return i;
    else i++;
  }
  return -1;
}

/** Bytes without a count of 0. */
const FULL = Uint8Array.from({ length: 256 }, (_, byte) =>
  [0, 2, 4, 6].every((shift) => (byte >> shift) & 3) ? 1 : 0,
);
