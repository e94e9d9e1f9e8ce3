/** What the trees of a thin pool's metadata hold (Linux `dm-thin-metadata.c`). */
import { struct, u32, u64, wide } from '../struct.ts';

/** Of a thin device, 24 bytes. */
export const diskDetails = struct({
  mappedBlocks: u64,
  transactionId: wide,
  creationTime: u32,
  snapshottedTime: u32,
});

/** A data block, and the time at which it was mapped: 40 and 24 bits. */
export const MAPPING_BYTES = 8;
export const DATA_BLOCKS_MAX = 2 ** 40;
export const TIME_MAX = 2 ** 24 - 1;
/** A device's number has 24 bits. */
export const DEVICE_MAX = 2 ** 24 - 1;

export const mappedBlock = (view: DataView, at: number): number =>
  view.getUint32(at + 4, true) * 256 + view.getUint8(at + 3);
export const mappedTime = (view: DataView, at: number): number => view.getUint32(at, true) & TIME_MAX;

export function setMapping(view: DataView, at: number, block: number, time: number): void {
  view.setUint32(at, (((block % 256) << 24) | time) >>> 0, true);
  view.setUint32(at + 4, Math.floor(block / 256), true);
}
