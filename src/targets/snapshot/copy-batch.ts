/**
 * Copies of many chunks for all snapshots of an origin. Snapshots with chunks of one size share what is read of the
 * origin; and since a batch gets chunks that lie side by side on a COW device, wherever they come from on the
 * origin, each snapshot writes them in one go.
 */
import { setImmediate } from 'node:timers/promises';
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { every, Parts } from '../../lib/parts.ts';
import { type Bytes, bytes } from '../../units.ts';
import type { Exceptions } from './exceptions.ts';

/** Bytes read, and written to each COW device, in one go. */
const PIECE = 2 * 1024 * 1024;
/** Pieces under way: one is read while another is written. */
const PIECES = 2;

export interface Range {
  readonly at: number;
  readonly length: number;
}

/** A snapshot that gets copies of what lies below `size` bytes. */
export interface Copied {
  readonly exceptions: Exceptions;
  readonly size: Bytes;
}

/**
 * Copies what writes to `ranges` would destroy, in their order, as far as that can begin now: who asks `protect` afterwards
 * finds little left to wait for but commits. `snapshots` is asked again after each wait; `progress` hears of the part that
 * is done, from 0 to 1. Never rejects.
 */
export async function copyBatch(
  origin: BlockDevice,
  snapshots: () => readonly Copied[],
  ranges: readonly Range[],
  progress: (part: number) => void,
): Promise<void> {
  const sizes = [...new Set(snapshots().map(({ exceptions }) => exceptions.chunkBytes))];
  for (const [i, size] of sizes.entries()) {
    const alike = () => snapshots().filter(({ exceptions }) => exceptions.chunkBytes === size);
    await copyAlike(origin, alike, size, ranges, (part) => progress((i + part) / sizes.length));
  }
}

async function copyAlike(
  origin: BlockDevice,
  snapshots: () => readonly Copied[],
  size: number,
  ranges: readonly Range[],
  progress: (part: number) => void,
): Promise<void> {
  const most = Math.max(1, Math.floor(PIECE / size));
  const running: Promise<void>[] = [];
  const seen = new Set<number>();
  const spare: Uint8Array[] = [];
  let chunks: number[] = [];
  let alike = snapshots();
  const end = origin.size;
  const send = async () => {
    const wait = new Piece(origin, alike, size, chunks, spare).copy();
    if (wait) running.push(wait);
    chunks = [];
    if (running.length >= PIECES) await running.shift();
    await setImmediate();
    alike = snapshots();
  };
  for (const [i, { at, length }] of ranges.entries()) {
    const last = Math.floor((at + length - 1) / size);
    for (let old = Math.floor(at / size); old <= last; old++) {
      if (seen.has(old) || old * size >= end) continue;
      // A snapshot of which only a part of the chunk is its own gets a copy when that part is written.
      const first = Math.max(at, old * size);
      if (!alike.some((snapshot) => first < snapshot.size && snapshot.exceptions.protection.needsCopy(old))) continue;
      seen.add(old);
      chunks.push(old);
      if (chunks.length < most) continue;
      await send();
      progress(i / ranges.length);
    }
  }
  if (chunks.length > 0) await send();
  await Promise.all(running);
}

/** Old chunks that are read together. */
class Piece {
  readonly #origin: BlockDevice;
  readonly #snapshots: readonly Copied[];
  readonly #size: number;
  readonly #chunks: readonly number[];
  /** Bytes of the origin. */
  readonly #end: number;
  readonly #buffer: Uint8Array;
  readonly #spare: Uint8Array[];

  /** `spare`: memory of pieces that have ended, for those to come. */
  constructor(
    origin: BlockDevice,
    snapshots: readonly Copied[],
    size: number,
    chunks: readonly number[],
    spare: Uint8Array[],
  ) {
    this.#origin = origin;
    this.#snapshots = snapshots;
    this.#size = size;
    this.#chunks = chunks;
    this.#end = origin.size;
    this.#spare = spare;
    const length = chunks.length * size;
    const kept = spare.pop();
    this.#buffer = kept && kept.length >= length ? kept : new Uint8Array(length);
  }

  /** Never rejects. */
  copy(): Maybe {
    const size = this.#size;
    // All are allocated before anything is waited for: from here on everybody else finds them under way.
    const claims = this.#snapshots.map(({ exceptions: { protection }, size: end }) =>
      this.#chunks.map((old) => (old * size < end && protection.needsCopy(old) ? protection.claim(old) : -1)),
    );
    if (claims.every((list) => list.every((newChunk) => newChunk < 0))) return this.#ended();
    let read: Maybe;
    try {
      read = this.#read();
    } catch (error) {
      read = Promise.reject(error);
    }
    const waits: Promise<void>[] = [];
    this.#snapshots.forEach(({ exceptions }, i) => {
      const wait = this.#give(exceptions, claims[i], read);
      if (wait) waits.push(wait);
    });
    if (waits.length === 0) return this.#ended();
    return every(waits).then(() => this.#ended());
  }

  #ended(): void {
    this.#spare.push(this.#buffer);
  }

  #read(): Maybe {
    const parts = new Parts();
    this.#eachRun(
      (i) => this.#chunks[i] === this.#chunks[i - 1] + 1,
      (first, count) => {
        const at = this.#chunks[first] * this.#size;
        const length = Math.min(count * this.#size, this.#end - at);
        parts.try(() => this.#origin.read(bytes(at), this.#buffer, first * this.#size, length));
      },
    );
    return parts.done();
  }

  /** What one snapshot has claimed goes to its COW device, when it has been read. */
  #give(exceptions: Exceptions, claims: readonly number[], read: Maybe): Maybe {
    if (!claims.some((newChunk) => newChunk >= 0)) return;
    let wait: Maybe;
    try {
      wait = read ? read.then(() => this.#write(exceptions.cow, claims)) : this.#write(exceptions.cow, claims);
    } catch (error) {
      wait = Promise.reject(error);
    }
    const waits: Promise<void>[] = [];
    this.#eachRun(
      (i) => this.#chunks[i] === this.#chunks[i - 1] + 1 && follows(claims, i),
      (first, count) => {
        if (claims[first] < 0) return;
        const settled = exceptions.protection.copied(this.#chunks[first], claims[first], count, wait);
        if (settled) waits.push(settled);
      },
    );
    if (waits.length > 0) return every(waits);
  }

  #write(cow: BlockDevice, claims: readonly number[]): Maybe {
    const size = this.#size;
    const parts = new Parts();
    this.#eachRun(
      // Behind a chunk that the origin's end cuts short nothing is written.
      (i) => follows(claims, i) && (this.#chunks[i - 1] + 1) * size <= this.#end,
      (first, count) => {
        if (claims[first] < 0) return;
        const short = Math.max(0, (this.#chunks[first + count - 1] + 1) * size - this.#end);
        const at = bytes(claims[first] * size);
        parts.try(() => cow.write(at, this.#buffer, first * size, count * size - short));
      },
    );
    return parts.done();
  }

  /** Visits the chunks of the piece, by index, joined as long as `joins` says so of the next one. */
  #eachRun(joins: (index: number) => boolean, visit: (first: number, count: number) => void): void {
    let first = 0;
    for (let i = 1; i <= this.#chunks.length; i++) {
      if (i < this.#chunks.length && joins(i)) continue;
      visit(first, i - first);
      first = i;
    }
  }
}

/** On the COW device, claim `i` lies right behind the one before it. */
const follows = (claims: readonly number[], i: number) => claims[i - 1] >= 0 && claims[i] === claims[i - 1] + 1;
