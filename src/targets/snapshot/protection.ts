/**
 * What writers of an origin ask of one snapshot before they write: first copies of what they would destroy, durably, and
 * the end of reads that were sent there. Whatever goes wrong costs the snapshot, never the write.
 */
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { every } from '../../lib/parts.ts';
import type { Commit, ExceptionStore } from '../../stores/exception/store.ts';
import type { Copies } from './copies.ts';
import type { Exceptions } from './exceptions.ts';
import type { TrackedReads } from './tracked-reads.ts';

export class Protection {
  readonly #exceptions: Exceptions;
  readonly #store: ExceptionStore;
  readonly #origin: BlockDevice;
  readonly #size: number;
  readonly #copies: Copies;
  readonly #reads: TrackedReads;

  constructor(exceptions: Exceptions) {
    this.#exceptions = exceptions;
    this.#store = exceptions.store;
    this.#origin = exceptions.origin;
    this.#size = exceptions.chunkBytes;
    this.#copies = exceptions.copies;
    this.#reads = exceptions.reads;
  }

  /** An origin write of `length` bytes at `at` may go ahead at once: `protect` would have nothing to do. */
  isProtected(at: number, length: number): boolean {
    const size = this.#size;
    const store = this.#store;
    const first = Math.floor(at / size);
    const last = Math.floor((at + length - 1) / size);
    if (this.#exceptions.resetting) return false;
    if (!store.valid) return this.#exceptions.marked && this.#reads.on(first, last) === undefined;
    const end = store.durableBelow;
    for (let old = first; old <= last; old++) {
      const newChunk = store.lookup(old);
      if (newChunk < 0 ? old * size < this.#origin.size : newChunk >= end) return false;
    }
    return this.#reads.on(first, last) === undefined;
  }

  /**
   * Copies out what an origin write of `length` bytes at `at` would destroy. Returns nothing if the write may go ahead at
   * once, else a promise that never rejects, after which the question has to be asked again.
   */
  protect(at: number, length: number): Promise<void> | undefined {
    const exceptions = this.#exceptions;
    if (exceptions.resetting) return exceptions.resetting;
    const size = this.#size;
    const store = this.#store;
    const first = Math.floor(at / size);
    const last = Math.floor((at + length - 1) / size);
    // An invalid snapshot needs no copies; but what it sent to the origin before must not find new data there.
    if (!store.valid) return exceptions.marked ? this.#reads.on(first, last) : exceptions.becomeInvalid();
    let waits: Promise<void>[] | undefined;
    let upTo = -1;
    for (let old = first; old <= last; ) {
      const newChunk = store.lookup(old);
      let wait: Maybe = this.#copies.of(old);
      if (newChunk >= 0) {
        if (newChunk >= store.durableBelow && newChunk > upTo) upTo = newChunk;
        wait = this.#reads.on(old, old);
        old++;
      } else if (wait) old++;
      else if (this.#copies.full) {
        (waits ??= []).push(this.#copies.room());
        break;
      } else if (old * size >= this.#origin.size) break;
      else {
        const from = exceptions.allocate(old);
        if (from < 0) return exceptions.becomeInvalid();
        const count = exceptions.allocateRun(old, from, last);
        wait = this.#copyRun(old, from, count);
        if (!wait) upTo = from + count - 1;
        old += count;
      }
      if (wait) (waits ??= []).push(wait);
    }
    if (upTo >= 0) {
      const commit = store.commit(upTo);
      if (typeof commit !== 'string') (waits ??= []).push(commit.then((result) => this.#afterCommit(result)));
      else if (commit !== 'durable') (waits ??= []).push(this.#afterCommit(commit));
    }
    return waits && (waits.length === 1 ? waits[0] : every(waits));
  }

  /** For a batch of copies: nobody has begun one of chunk `old`, which the origin has. */
  needsCopy(old: number): boolean {
    const store = this.#store;
    return store.valid && !this.#exceptions.resetting && store.lookup(old) < 0 && !this.#copies.has(old);
  }

  /**
   * A new chunk for `old`, which `needsCopy`: `copied` is to be called before anything else happens. -1 if there is
   * none, which may have cost the snapshot.
   */
  claim(old: number): number {
    if (this.#copies.full) return -1;
    const newChunk = this.#exceptions.allocate(old);
    if (newChunk < 0) void this.#exceptions.becomeInvalid();
    return newChunk;
  }

  /** `wait` puts `count` chunks where they were claimed. The promise never rejects: a copy that fails costs the snapshot. */
  copied(old: number, newChunk: number, count: number, wait: Maybe): Promise<void> | undefined {
    return this.#exceptions.written(old, newChunk, count, wait)?.catch(() => this.#exceptions.becomeInvalid());
  }

  #copyRun(old: number, newChunk: number, count: number): Promise<void> | undefined {
    let wait: Maybe;
    try {
      wait = this.#copies.copy(old, newChunk, count);
    } catch (error) {
      wait = Promise.reject(error);
    }
    return this.copied(old, newChunk, count, wait);
  }

  async #afterCommit(result: Commit): Promise<void> {
    if (result !== 'durable') await this.#exceptions.becomeInvalid();
  }
}
