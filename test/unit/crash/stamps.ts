/** What sectors hold in these tests: the stamp of the write they came from, again and again; on old disks, exceptions. */
import type { Prng } from '../../../src/lib/prng.ts';
import { SECTOR } from '../../../src/units.ts';

export const wordsOf = (data: Uint8Array) => new Uint32Array(data.buffer, data.byteOffset, data.length / 4);

/** Nobody writes less than a sector: its ends and its middle tell. */
export function stampOf(words: Uint32Array, sector: number): number {
  const from = sector * (SECTOR / 4);
  const stamp = words[from];
  return words[from + 64] === stamp && words[from + 127] === stamp ? stamp : Number.NaN;
}

export function stampsOf(data: Uint8Array): number[] {
  const words = wordsOf(data);
  const stamps = new Array<number>(data.length / SECTOR);
  for (let s = 0; s < stamps.length; s++) stamps[s] = stampOf(words, s);
  return stamps;
}

/** An old disk, blank in its first four bytes: what is not written before it is read will show, as plausible exceptions. */
export function staleDisk(sectors: number, random: Prng): Uint8Array {
  const stale = new Uint8Array(sectors * SECTOR);
  const words = new Uint32Array(stale.buffer, 0, SECTOR / 4);
  for (let i = 0; i < words.length; i += 4) words.set([random.below(64), 0, 2 + random.below(60), 0], i);
  for (let filled = SECTOR; filled < stale.length; filled *= 2) stale.copyWithin(filled, 0, filled);
  stale.fill(0, 0, 4);
  return stale;
}

export function fill(data: Uint8Array, sector: number, stamp: number): void {
  wordsOf(data).fill(stamp, sector * (SECTOR / 4), (sector + 1) * (SECTOR / 4));
}
