import { ChunkMap, MAX_CHUNK } from '../../lib/chunk-map.ts';
import { SECTOR } from '../../units.ts';

/** Bytes of a page, and its sectors: a bit each in its mask. */
export const PAGE = 4096;
const WHOLE = 0xff;

/** Bytes of the disk from `at` on, and where in `data` they are. */
export interface DirtyRun {
  readonly at: number;
  length: number;
  readonly from: number;
  readonly data: Uint8Array;
}

/**
 * Sectors that were written and are on no disk yet, in pages in the order in which these were first written: what a client
 * writes from one end to the other lies side by side here too.
 */
export class DirtyPages {
  /** Pages that hold something. */
  count = 0;
  readonly #most: number;
  #data = new Uint8Array(0);
  /** By place: the number of the page, and which of its sectors are dirty. */
  #numbers = new Float64Array(0);
  #masks = new Uint8Array(0);
  #places = new ChunkMap();

  /** Holds `most` pages. Their memory is taken with the first of them. */
  constructor(most: number) {
    this.#most = most;
  }

  /** Bytes held. */
  get memory(): number {
    return this.#data.length;
  }

  /** The pages that a request touches are here, or there is room for them below `limit` pages. Pages end at 4 PiB. */
  fits(at: number, length: number, limit: number): boolean {
    const first = Math.floor(at / PAGE);
    const end = Math.ceil((at + length) / PAGE);
    if (end > MAX_CHUNK) return false;
    let left = Math.min(limit, this.#most) - this.count - (end - first);
    for (let page = first; left < 0 && page < end; page++) if (this.#places.get(page) >= 0) left++;
    return left >= 0;
  }

  /** A page that the bytes touch is here. */
  overlaps(at: number, length: number): boolean {
    const first = Math.floor(at / PAGE);
    const last = Math.floor((at + length - 1) / PAGE);
    // Of a whole disk, say.
    if (last - first > this.count) {
      for (let place = 0; place < this.count; place++)
        if (this.#numbers[place] >= first && this.#numbers[place] <= last) return true;
      return false;
    }
    for (let page = first; page <= last; page++) if (this.#places.get(page) >= 0) return true;
    return false;
  }

  /** What `fits`. */
  put(at: number, from: Uint8Array, start: number, length: number): void {
    if (this.#data.length === 0) {
      this.#data = new Uint8Array(this.#most * PAGE);
      this.#numbers = new Float64Array(this.#most);
      this.#masks = new Uint8Array(this.#most);
    }
    for (const end = at + length; at < end; ) {
      const page = Math.floor(at / PAGE);
      const offset = at - page * PAGE;
      const some = Math.min(PAGE - offset, end - at);
      let place = this.#places.get(page);
      if (place < 0) {
        place = this.count++;
        this.#places.add(page, place);
        this.#numbers[place] = page;
        this.#masks[place] = 0;
      }
      this.#data.set(from.subarray(start, start + some), place * PAGE + offset);
      this.#masks[place] |= maskOf(offset, some);
      at += some;
      start += some;
    }
  }

  /** Every sector of the request is here. */
  covers(at: number, length: number): boolean {
    for (const end = at + length; at < end; ) {
      const page = Math.floor(at / PAGE);
      const offset = at - page * PAGE;
      const some = Math.min(PAGE - offset, end - at);
      const place = this.#places.get(page);
      const mask = maskOf(offset, some);
      if (place < 0 || (this.#masks[place] & mask) !== mask) return false;
      at += some;
    }
    return true;
  }

  /** Lays what is here over `length` bytes of `into`, which are what the disk has at `at`. */
  overlay(at: number, into: Uint8Array, start: number, length: number): void {
    if (this.count === 0) return;
    for (const end = at + length; at < end; ) {
      const page = Math.floor(at / PAGE);
      const offset = at - page * PAGE;
      const some = Math.min(PAGE - offset, end - at);
      const place = this.#places.get(page);
      if (place >= 0) {
        const data = place * PAGE + offset;
        const mask = maskOf(offset, some);
        if ((this.#masks[place] & mask) === mask) into.set(this.#data.subarray(data, data + some), start);
        else this.#overlayPart(this.#masks[place] >> (offset / SECTOR), data, into, start, some);
      }
      at += some;
      start += some;
    }
  }

  #overlayPart(mask: number, data: number, into: Uint8Array, start: number, length: number): void {
    for (let done = 0; done < length; done += SECTOR, mask >>= 1)
      if (mask & 1) into.set(this.#data.subarray(data + done, data + done + SECTOR), start + done);
  }

  /** The dirty bytes, of the pages that the range touches, neighbours joined up to `most`. */
  runs(most: number, from = 0, length = Infinity): DirtyRun[] {
    const runs: DirtyRun[] = [];
    for (let place = 0; place < this.count; place++) {
      const at = this.#numbers[place] * PAGE;
      if (at + PAGE <= from || at >= from + length) continue;
      const mask = this.#masks[place];
      if (mask === WHOLE) this.#join(runs, at, PAGE, place * PAGE, most);
      else
        for (let offset = 0; offset < PAGE; offset += SECTOR)
          if (mask & maskOf(offset, SECTOR)) this.#join(runs, at + offset, SECTOR, place * PAGE + offset, most);
    }
    return runs;
  }

  #join(runs: DirtyRun[], at: number, length: number, from: number, most: number): void {
    const last = runs.at(-1);
    if (last && last.at + last.length === at && last.from + last.length === from && last.length + length <= most)
      last.length += length;
    else runs.push({ at, length, from, data: this.#data });
  }

  clear(): void {
    this.count = 0;
    this.#places = new ChunkMap();
  }
}

/** Of `length` bytes at `offset` in a page. */
const maskOf = (offset: number, length: number) => ((1 << (length / SECTOR)) - 1) << (offset / SECTOR);
