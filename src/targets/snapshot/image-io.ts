/**
 * Reads and writes through a snapshot: each goes where its chunks are, on the COW device or on the origin, in as few parts
 * as these lie there; a write to a chunk that has no exception makes one.
 */
import type { BlockDevice, ChangedExtent, Extent, Maybe } from '../../device/block-device.ts';
import { ioError } from '../../errors.ts';
import { every, Parts } from '../../lib/parts.ts';
import type { ExceptionStore } from '../../stores/exception/store.ts';
import { bytes } from '../../units.ts';
import type { Copies } from './copies.ts';
import type { Exceptions } from './exceptions.ts';
import { changedExtents, imageExtents, runEnd } from './image.ts';
import type { TrackedReads } from './tracked-reads.ts';

/** Stretches zeroed before other requests get their turn. */
const ZERO_RUNS = 256;

export class ImageIo {
  readonly #exceptions: Exceptions;
  readonly #store: ExceptionStore;
  readonly #origin: BlockDevice;
  readonly #cow: BlockDevice;
  readonly #size: number;
  readonly #copies: Copies;
  readonly #reads: TrackedReads;

  constructor(exceptions: Exceptions) {
    this.#exceptions = exceptions;
    this.#store = exceptions.store;
    this.#origin = exceptions.origin;
    this.#cow = exceptions.cow;
    this.#size = exceptions.chunkBytes;
    this.#copies = exceptions.copies;
    this.#reads = exceptions.reads;
  }

  read(at: number, into: Uint8Array, start: number, length: number): Maybe {
    if (!this.#store.valid) throw this.#exceptions.invalidError('read');
    const size = this.#size;
    const end = at + length;
    let waits: Promise<void>[] | undefined;
    try {
      while (at < end) {
        const first = Math.floor(at / size);
        const newChunk = this.#store.lookup(first);
        const stop = runEnd(this.#store, first, newChunk, end);
        const count = Math.min(stop, end) - at;
        let wait: Maybe;
        if (newChunk >= 0) wait = this.#cow.read(bytes(newChunk * size + (at - first * size)), into, start, count);
        else {
          wait = this.#origin.read(bytes(at), into, start, count);
          if (wait) this.#reads.add(first, stop / size - 1, wait);
        }
        at += count;
        start += count;
        if (wait) {
          if (at === end && !waits) return wait;
          waits ??= [];
          waits.push(wait);
        }
      }
    } catch (error) {
      if (!waits) throw error;
      waits.push(Promise.reject(error));
    }
    if (waits) return every(waits);
  }

  write(at: number, from: Uint8Array, start: number, length: number): Maybe {
    const size = this.#size;
    const end = at + length;
    let waits: Promise<void>[] | undefined;
    try {
      while (at < end) {
        this.#exceptions.checkWritable();
        const first = Math.floor(at / size);
        const newChunk = this.#store.lookup(first);
        const stop = newChunk < 0 ? (first + 1) * size : runEnd(this.#store, first, newChunk, end);
        let count = Math.min(stop, end) - at;
        let wait: Maybe;
        if (newChunk >= 0) wait = this.#cow.write(bytes(newChunk * size + (at - first * size)), from, start, count);
        else if (count === size && at + 2 * size <= end && this.#copies.longest > 1 && !this.#copies.has(first)) {
          // Whole chunks that get places side by side are written in one go.
          const to = this.#exceptions.allocate(first);
          if (to < 0) throw this.#exceptions.overflow();
          const chunks = this.#exceptions.allocateRun(first, to, Math.floor(end / size) - 1);
          count = chunks * size;
          wait = this.#writeRun(first, to, chunks, from, start);
        } else wait = this.#writeFresh(first, at - first * size, from, start, count);
        at += count;
        start += count;
        if (wait) {
          if (at === end && !waits) return wait;
          waits ??= [];
          waits.push(wait);
        }
      }
    } catch (error) {
      if (!waits) throw error;
      waits.push(Promise.reject(error));
    }
    if (waits) return every(waits);
  }

  /** Zeroes take space on the COW device only where the device cannot do without. */
  async writeZeroes(at: number, length: number, mayUnmap: boolean): Promise<void> {
    const size = this.#size;
    const end = at + length;
    while (at < end) {
      const parts = new Parts();
      for (let runs = 0; at < end && runs < ZERO_RUNS; runs++) {
        const first = Math.floor(at / size);
        const offset = at - first * size;
        const newChunk = this.#store.lookup(first);
        const stop = newChunk < 0 ? (first + 1) * size : runEnd(this.#store, first, newChunk, end);
        const count = Math.min(stop, end) - at;
        try {
          this.#exceptions.checkWritable();
          if (newChunk >= 0) parts.add(this.#cow.writeZeroes(bytes(newChunk * size + offset), count, mayUnmap));
          else parts.add(this.#writeFresh(first, offset, undefined, 0, count, mayUnmap));
        } catch (error) {
          parts.fail(error);
        }
        at += count;
      }
      await parts.done();
      if (at < end) await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** `discard_zeroes_cow`: a mapped chunk discarded whole reads as zeroes and keeps its exception; the rest is a hint. */
  discard(at: number, length: number): Maybe {
    const size = this.#size;
    const parts = new Parts();
    for (const end = at + length; at < end; ) {
      const old = Math.floor(at / size);
      const offset = at - old * size;
      const count = Math.min(size - offset, end - at);
      try {
        this.#exceptions.checkWritable();
        const newChunk = this.#store.lookup(old);
        if (newChunk >= 0) {
          const to = bytes(newChunk * size + offset);
          if (count === size) parts.add(this.#cow.writeZeroes(to, size, true));
          else if (this.#cow.canDiscard) parts.add(this.#cow.discard(to, count));
        }
      } catch (error) {
        parts.fail(error);
      }
      at += count;
    }
    return parts.done();
  }

  /** `discard_passdown_origin`: straight to the origin, without a copy. */
  passDown(at: number, length: number): Maybe {
    this.#exceptions.checkWritable();
    const wait = this.#origin.discard(bytes(at), length);
    if (wait) this.#reads.add(Math.floor(at / this.#size), Math.floor((at + length - 1) / this.#size), wait);
    return wait;
  }

  changed(at: number, length: number): ChangedExtent[] {
    return changedExtents(this.#store, at, length);
  }

  extents(at: number, length: number): Promise<Extent[]> {
    return imageExtents(this.#store, this.#origin, this.#cow, at, length);
  }

  /** A write of `count` bytes, zeroes if `from` is absent, at `offset` into old chunk `old`, which has no exception. */
  #writeFresh(
    old: number,
    offset: number,
    from: Uint8Array | undefined,
    start: number,
    count: number,
    mayUnmap = true,
  ): Maybe {
    const size = this.#size;
    const before = this.#copies.of(old) ?? (this.#copies.full ? this.#copies.room() : undefined);
    if (before)
      return before.then(() =>
        from
          ? this.write(old * size + offset, from, start, count)
          : this.writeZeroes(old * size + offset, count, mayUnmap),
      );
    // Of the chunk a part is written; the rest is what the origin has.
    const length = count === size ? size : Math.min(size, this.#origin.size - old * size);
    if (length < offset + count)
      throw ioError(`Cannot write ${count} bytes at ${old * size + offset}: the origin ${this.#origin.name} shrank`);
    const newChunk = this.#exceptions.allocate(old);
    if (newChunk < 0) throw this.#exceptions.overflow();
    let wait: Maybe;
    try {
      if (count < size) wait = this.#copies.overlay(old, newChunk, length, offset, from, start, count);
      else if (from) wait = this.#cow.write(bytes(newChunk * size), from, start, size);
      else wait = this.#cow.writeZeroes(bytes(newChunk * size), size, mayUnmap);
    } catch (error) {
      wait = Promise.reject(error);
    }
    return this.#exceptions.written(old, newChunk, 1, wait);
  }

  /** A write of `count` whole chunks from `old` on to where they were allocated. */
  #writeRun(old: number, newChunk: number, count: number, from: Uint8Array, start: number): Maybe {
    const size = this.#size;
    let wait: Maybe;
    try {
      wait = this.#cow.write(bytes(newChunk * size), from, start, count * size);
    } catch (error) {
      wait = Promise.reject(error);
    }
    return this.#exceptions.written(old, newChunk, count, wait);
  }
}
