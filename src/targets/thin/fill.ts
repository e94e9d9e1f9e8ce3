import type { BlockDevice } from '../../device/block-device.ts';
import { type Bytes, bytes } from '../../units.ts';

/** Bytes that are in memory at once. */
const PIECE = 2 ** 20;

export interface Filling {
  readonly to: BlockDevice;
  readonly at: Bytes;
  /** Of the block. */
  readonly size: number;
  /** What was there before, `inside` bytes of it. */
  readonly source: { readonly device: BlockDevice | undefined; readonly at: Bytes };
  readonly inside: number;
  /** Behind that there are zeroes; else it stays as it was on the disk. */
  readonly zero: boolean;
  /** What is written: `count` bytes at `offset`; zeroes if absent. */
  readonly data: Uint8Array | undefined;
  readonly start: number;
  readonly offset: number;
  readonly count: number;
}

/** Writes a new block, each byte once: what is written laid over what was there. */
export async function fill(filling: Filling): Promise<void> {
  const { size, inside, zero, offset, count } = filling;
  // Written whole, it needs nothing from anywhere.
  const last = count === size ? 0 : zero ? size : inside;
  const buffer = new Uint8Array(Math.min(PIECE, last));
  for (let from = 0; from < last; from += PIECE) await copyPart(filling, buffer, from, Math.min(PIECE, last - from));
  const rest = Math.max(offset, last);
  if (rest < offset + count) await write(filling, rest, offset + count - rest);
}

/** `length` bytes of the block, from `from` on. */
async function copyPart(filling: Filling, buffer: Uint8Array, from: number, length: number): Promise<void> {
  const { to, at, source, inside, data, start, offset, count } = filling;
  const there = Math.max(0, Math.min(length, inside - from));
  buffer.fill(0, there, length);
  if (there > 0) {
    const wait = source.device!.read(bytes(source.at + from), buffer, 0, there);
    if (wait) await wait;
  }
  const begin = Math.max(from, offset);
  const end = Math.min(from + length, offset + count);
  if (begin < end) {
    if (data) buffer.set(data.subarray(start + begin - offset, start + end - offset), begin - from);
    else buffer.fill(0, begin - from, end - from);
  }
  const wait = to.write(bytes(at + from), buffer, 0, length);
  if (wait) await wait;
}

async function write({ to, at, data, start, offset }: Filling, from: number, length: number): Promise<void> {
  const place = bytes(at + from);
  const wait = data ? to.write(place, data, start + from - offset, length) : to.writeZeroes(place, length, false);
  if (wait) await wait;
}
