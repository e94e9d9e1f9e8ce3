import type { BlockDevice, ChangedExtent, Maybe } from '../../device/block-device.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import { type Bytes, bytes, SECTOR } from '../../units.ts';
import type { Diff } from './fork-control.ts';

/** One answer covers at most so many bytes of exceptions and ranges, so that it ends soon and fits a message. */
const COMPARED_MAX = 256 * 1024 * 1024;
const RANGES_MAX = 10_000;
const PIECE = 1024 * 1024;
/** Of a device, asked at once for what has changed. */
const WINDOW = 1024 * 1024 * 1024;

export interface Comparison {
  name: string;
  pool?: string;
  /** May be smaller: what lies behind its end are zeroes. */
  origin: BlockDevice;
  originName?: string;
  device: MappedDevice;
  /** Where the device may differ. */
  changed(at: Bytes, length: number): Maybe<ChangedExtent[]>;
  /** Bytes. */
  chunkSize: number;
  start: number;
}

/**
 * Compares a snapshot with its origin where it has exceptions, or a volume with what it was made from where it has blocks of its
 * own, sector by sector. What clients write meanwhile may or may not be seen.
 */
export async function compare(of: Comparison): Promise<Diff> {
  const { name, origin, device, chunkSize } = of;
  const { size } = device;
  const diff: Diff = {
    name,
    origin: of.originName ?? origin.name,
    size,
    chunkSize,
    pool: of.pool,
    exceptions: 0,
    exceptionBytes: 0,
    differingBytes: 0,
    ranges: [],
  };
  const ours = Buffer.alloc(PIECE);
  const theirs = Buffer.alloc(PIECE);
  let at = Math.floor(Math.max(0, of.start) / SECTOR) * SECTOR;
  while (at < size) {
    const extents = await of.changed(bytes(at), Math.min(size - at, WINDOW));
    for (const { length, changed } of extents) {
      const end = Math.min(at + length, size);
      if (!changed) {
        at = end;
        continue;
      }
      while (at < end) {
        if (diff.exceptionBytes >= COMPARED_MAX || diff.ranges.length >= RANGES_MAX) return { ...diff, next: at };
        const count = Math.min(PIECE, end - at);
        await device.read(at as Bytes, ours, 0, count);
        const inside = Math.max(0, Math.min(count, origin.size - at));
        if (inside > 0) await origin.read(at as Bytes, theirs, 0, inside);
        theirs.fill(0, inside, count);
        diff.exceptions += Math.ceil((at + count) / chunkSize) - Math.ceil(at / chunkSize);
        diff.exceptionBytes += count;
        addDifferences(diff, at, ours, theirs, count);
        at += count;
      }
    }
  }
  return diff;
}

function addDifferences(diff: Diff, at: number, ours: Buffer, theirs: Buffer, length: number): void {
  if (ours.compare(theirs, 0, length, 0, length) === 0) return;
  for (let from = 0; from < length; from += SECTOR) {
    if (ours.compare(theirs, from, from + SECTOR, from, from + SECTOR) === 0) continue;
    diff.differingBytes += SECTOR;
    const last = diff.ranges.at(-1);
    if (last && last.start + last.length === at + from) last.length += SECTOR;
    else diff.ranges.push({ start: at + from, length: SECTOR });
  }
}
