/** Where the parts of a snapshot's image lie: chunks with an exception on the COW device, all others on the origin. */
import type { BlockDevice, ChangedExtent, Extent } from '../../device/block-device.ts';
import type { ExceptionStore } from '../../stores/exception/store.ts';
import { type Bytes, bytes } from '../../units.ts';

/** Chunks looked at by one call. */
const WALK = 65536;
const EXTENTS_MAX = 1024;

/**
 * The byte where the chunks end that lie side by side below, of which old chunk `first` at `newChunk` (-1: on the
 * origin) is one: a multiple of the chunk size, and the first that is not below `end` at the latest.
 */
export function runEnd(store: ExceptionStore, first: number, newChunk: number, end: number): number {
  const size = store.layout.chunkBytes;
  let stop = (first + 1) * size;
  if (newChunk < 0) while (stop < end && store.lookup(stop / size) < 0) stop += size;
  else while (stop < end && store.lookup(stop / size) === newChunk + (stop / size - first)) stop += size;
  return stop;
}

/** Which parts differ from the origin, from `at` on; may end before `at + length`. */
export function changedExtents(store: ExceptionStore, at: number, length: number): ChangedExtent[] {
  const found: ChangedExtent[] = [];
  eachRun(store, at, length, (count, newChunk) => {
    const last = found.at(-1);
    if (last?.changed === newChunk >= 0) last.length = bytes(last.length + count);
    else found.push({ length: bytes(count), changed: newChunk >= 0 });
  });
  return found;
}

/** What the devices below say of the parts, from `at` on; may end before `at + length`. */
export async function imageExtents(
  store: ExceptionStore,
  origin: BlockDevice,
  cow: BlockDevice,
  at: number,
  length: number,
): Promise<Extent[]> {
  const runs: { at: Bytes; count: number; device: BlockDevice }[] = [];
  const { chunkBytes } = store.layout;
  eachRun(store, at, length, (count, newChunk, offset, from) => {
    if (newChunk >= 0) runs.push({ at: bytes(newChunk * chunkBytes + offset), count, device: cow });
    else runs.push({ at: bytes(from), count, device: origin });
  });
  const found: Extent[] = [];
  for (const { at, count, device } of runs) {
    let left = count;
    for (const extent of await device.extents(at, count)) {
      if (left <= 0) break;
      found.push({ ...extent, length: bytes(Math.min(extent.length, left)) });
      left -= extent.length;
    }
    if (left > 0 || found.length > EXTENTS_MAX) break;
  }
  return found;
}

/** Visits stretches that lie side by side below, up to WALK chunks. `newChunk` is -1 on the origin. */
function eachRun(
  store: ExceptionStore,
  at: number,
  length: number,
  visit: (count: number, newChunk: number, offset: number, at: number) => void,
): void {
  const size = store.layout.chunkBytes;
  if (store.size === 0) {
    visit(length, -1, 0, at);
    return;
  }
  const end = Math.min(at + length, (Math.floor(at / size) + WALK) * size);
  while (at < end) {
    const first = Math.floor(at / size);
    const newChunk = store.lookup(first);
    const count = Math.min(runEnd(store, first, newChunk, end), end) - at;
    visit(count, newChunk, at - first * size, at);
    at += count;
  }
}
