/**
 * COW device of a persistent snapshot: version 1, little-endian, addressed in chunks (Linux `dm-snap-persistent.c`).
 *
 *     chunk 0     1        2 ... E+1      E+2      E+3 ...
 *    +--------+--------+---------------+--------+-----------
 *    | header | area 0 | E data chunks | area 1 | data ...       E = chunk bytes / 16
 *    +--------+--------+---------------+--------+-----------
 *
 * Entries of an area are filled in order of allocation; newChunk 0 ends the list (chunk 0 is the header, no exception
 * points there). An area without an end is full and the list goes on in the next one, so the next area is on disk,
 * ended, before this one becomes full: a reader never walks into stale entries.
 */
import { MAX_CHUNK } from '../lib/chunk-map.ts';
import { type Bytes, type Chunk, SECTOR, type Sector } from '../units.ts';
import { type Field, struct, u32, u64 } from './struct.ts';

const chunk = u64 as Field<Chunk>;

/** `SnAp` on disk. A device whose first four bytes are zero holds no store yet, whatever follows. */
export const MAGIC = 0x70416e53;
/** The only one there is. */
export const VERSION = 1;

/** Written whole, zeroes to the end of the chunk: when a store is made or emptied, and when it is invalidated. */
export const diskHeader = struct({
  magic: u32,
  valid: u32, // 0: invalidated, for good; the kernel takes any other number for valid
  version: u32,
  chunkSize: u32 as Field<Sector>,
});

/** One entry of an area, 16 bytes. */
export const diskException = struct({
  oldChunk: chunk, // on the origin
  newChunk: chunk, // on the COW device
});

/** Where things lie in a store of one chunk size. */
export interface Layout {
  readonly chunkSize: Sector;
  readonly chunkBytes: Bytes;
  /** E, the entries of an area. */
  readonly entries: number;
}

/** `chunkSize` in sectors, a power of two (see `chunkSizeFault`). */
export function layoutOf(chunkSize: Sector): Layout {
  const chunkBytes = (chunkSize * SECTOR) as Bytes;
  return { chunkSize, chunkBytes, entries: chunkBytes / diskException.size };
}

/** The chunk that holds area `index`. */
export const areaChunk = ({ entries }: Layout, index: number) => (1 + index * (entries + 1)) as Chunk;

/** Header and areas: never data. */
export const isMetadata = ({ entries }: Layout, n: number) => n === 0 || n % (entries + 1) === 1;

/** The data chunk after `n`. */
export const nextData = (layout: Layout, n: number) => (isMetadata(layout, n + 1) ? n + 2 : n + 1) as Chunk;

/** Chunks of a COW device on which `exceptions` exceptions fit and stay valid: header, areas (one of them empty), data. */
export const chunksFor = ({ entries }: Layout, exceptions: number) => 2 + exceptions + Math.floor(exceptions / entries);

/** The header chunk, whole. */
export const headerOf = (layout: Layout, valid: boolean): Uint8Array => {
  const bytes = new Uint8Array(layout.chunkBytes);
  const { chunkSize } = layout;
  diskHeader.set(new DataView(bytes.buffer), 0, { magic: MAGIC, valid: valid ? 1 : 0, version: VERSION, chunkSize });
  return bytes;
};

/**
 * Visits an area's exceptions and returns their number; `entries` if the area is full. Reads in place. Numbers above
 * MAX_CHUNK, which no device dmkit can open has, come as they are (rounded above 2^53).
 */
export function eachException(area: DataView, visit: (oldChunk: number, newChunk: number) => void): number {
  const { size, at } = diskException;
  let base = 0;
  for (; base < area.byteLength; base += size) {
    const newChunk = chunk.get(area, base + at.newChunk);
    if (newChunk === 0) break;
    visit(chunk.get(area, base + at.oldChunk), newChunk);
  }
  return base / size;
}

/** Writes entry `index` of an area, from 0. Chunk numbers are at most MAX_CHUNK. */
export function setException(area: DataView, index: number, oldChunk: number, newChunk: number): void {
  const { size, at } = diskException;
  chunk.set(area, index * size + at.oldChunk, oldChunk as Chunk);
  chunk.set(area, index * size + at.newChunk, newChunk as Chunk);
}

/** The kernel's rules for a chunk size, in its order (`dm_exception_store_set_chunk_size`); undefined if it is fine. */
export function chunkSizeFault(chunkSize: number, blockSizes: readonly number[]): string | undefined {
  if (chunkSize < 1 || !Number.isInteger(Math.log2(chunkSize))) return 'Chunk size is not a power of 2';
  if (blockSizes.some((size) => (chunkSize * SECTOR) % size !== 0))
    return 'Chunk size is not a multiple of device blocksize';
  if (chunkSize > LARGEST_CHUNK) return 'Chunk size is too high';
  return undefined;
}

/** Sectors: the kernel's INT_MAX bytes. */
const LARGEST_CHUNK = 4194303;

export { MAX_CHUNK };
