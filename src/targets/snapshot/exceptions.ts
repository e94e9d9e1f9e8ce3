/**
 * One snapshot's exceptions at work: reads and writes through the snapshot, copies made for its origin's writers. This
 * is what a handover moves from one table to the next.
 *
 * Life of an exception, and what may happen when (Linux `dm-snap.c`):
 *
 *     none ── first write ──> allocated ── chunk's data on the COW device ──> settled ── commit ──> durable
 *                                 |
 *     reads:  origin          origin (the copy is not there yet)             COW                  COW
 *     writes: allocate        wait for it to settle                          COW                  COW
 *     origin's writers: allocate, then wait for each step up to durable ─────────────────────────> go on
 *
 * An origin's writer also waits for reads that were sent to the origin's chunk before the exception settled. A write to
 * the snapshot is acknowledged when it is settled; its exception becomes durable with the next flush, with the next
 * origin write to the chunk, or a second later.
 */
import type { BlockDevice, ChangedExtent, Extent, Maybe } from '../../device/block-device.ts';
import { DmError, ioError } from '../../errors.ts';
import { isMetadata } from '../../formats/exception-store.ts';
import { every, Parts } from '../../lib/parts.ts';
import type { Commit, ExceptionStore } from '../../stores/exception/store.ts';
import { bytes } from '../../units.ts';
import { BackgroundCommit } from './background-commit.ts';
import { Copies } from './copies.ts';
import { changedExtents, imageExtents, runEnd } from './image.ts';
import { TrackedReads } from './tracked-reads.ts';

/** Stretches zeroed before other requests get their turn. */
const ZERO_RUNS = 256;

export class Exceptions {
  readonly store: ExceptionStore;
  readonly origin: BlockDevice;
  readonly cow: BlockDevice;
  /** A snapshot write found no space and the table says `PO`: no writes any more, reads go on. */
  overflowed = false;
  /** The table says `PO`: a write that finds no space ends in `overflowed`, not in an invalid store. */
  overflows = false;
  /** Called once when the store becomes invalid. */
  onInvalid: () => void = () => {};
  /** Asks for a larger COW device. True: it is larger now. */
  enlarge: () => boolean = () => false;

  #chunkBytes: number;
  #copies: Copies;
  #reads = new TrackedReads();
  #background: BackgroundCommit;
  /** Since the store became invalid under this object. */
  #marking: Promise<void> | undefined;
  /** The header says invalid, or as much as was possible was done for it. */
  #marked: boolean;
  /** Acknowledged writes went with the store: no flush may succeed. */
  #lost = false;
  /** A reset is running; origin writes wait for it. */
  #resetting: Promise<void> | undefined;

  constructor(store: ExceptionStore, origin: BlockDevice, cow: BlockDevice) {
    this.store = store;
    this.origin = origin;
    this.cow = cow;
    this.#chunkBytes = store.layout.chunkBytes;
    this.#copies = new Copies(origin, cow, this.#chunkBytes);
    this.#background = new BackgroundCommit(store, () => this.#becomeInvalid());
    this.#marked = !store.valid;
  }

  get chunkBytes(): number {
    return this.#chunkBytes;
  }

  read(at: number, into: Uint8Array, start: number, length: number): Maybe {
    if (!this.store.valid) throw this.#invalidError('read');
    const size = this.#chunkBytes;
    const end = at + length;
    let waits: Promise<void>[] | undefined;
    try {
      while (at < end) {
        const first = Math.floor(at / size);
        const newChunk = this.store.lookup(first);
        const stop = runEnd(this.store, first, newChunk, end);
        const count = Math.min(stop, end) - at;
        let wait: Maybe;
        if (newChunk >= 0) wait = this.cow.read(bytes(newChunk * size + (at - first * size)), into, start, count);
        else {
          wait = this.origin.read(bytes(at), into, start, count);
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
    const size = this.#chunkBytes;
    const end = at + length;
    let waits: Promise<void>[] | undefined;
    try {
      while (at < end) {
        this.#checkWritable();
        const first = Math.floor(at / size);
        const newChunk = this.store.lookup(first);
        const stop = newChunk < 0 ? (first + 1) * size : runEnd(this.store, first, newChunk, end);
        let count = Math.min(stop, end) - at;
        let wait: Maybe;
        if (newChunk >= 0) wait = this.cow.write(bytes(newChunk * size + (at - first * size)), from, start, count);
        else if (count === size && at + 2 * size <= end && this.#copies.longest > 1 && !this.#copies.of(first)) {
          // Whole chunks that get places side by side are written in one go.
          const to = this.#allocate(first);
          if (to < 0) throw this.#overflow();
          const chunks = this.#allocateRun(first, to, Math.floor(end / size) - 1);
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
    const size = this.#chunkBytes;
    const end = at + length;
    while (at < end) {
      const parts = new Parts();
      for (let runs = 0; at < end && runs < ZERO_RUNS; runs++) {
        const first = Math.floor(at / size);
        const offset = at - first * size;
        const newChunk = this.store.lookup(first);
        const stop = newChunk < 0 ? (first + 1) * size : runEnd(this.store, first, newChunk, end);
        const count = Math.min(stop, end) - at;
        try {
          this.#checkWritable();
          if (newChunk >= 0) parts.add(this.cow.writeZeroes(bytes(newChunk * size + offset), count, mayUnmap));
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
    const size = this.#chunkBytes;
    const parts = new Parts();
    for (const end = at + length; at < end; ) {
      const old = Math.floor(at / size);
      const offset = at - old * size;
      const count = Math.min(size - offset, end - at);
      try {
        this.#checkWritable();
        const newChunk = this.store.lookup(old);
        if (newChunk >= 0) {
          const to = bytes(newChunk * size + offset);
          if (count === size) parts.add(this.cow.writeZeroes(to, size, true));
          else if (this.cow.canDiscard) parts.add(this.cow.discard(to, count));
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
    this.#checkWritable();
    const wait = this.origin.discard(bytes(at), length);
    if (wait)
      this.#reads.add(Math.floor(at / this.#chunkBytes), Math.floor((at + length - 1) / this.#chunkBytes), wait);
    return wait;
  }

  flush(): Maybe {
    if (this.#lost)
      throw ioError(`Cannot flush: writes that were acknowledged went with the exception store on ${this.cow.name}`);
    if (this.store.valid && this.store.lastSettled >= this.store.durableBelow) return this.#flushAll();
    return this.cow.flush();
  }

  async #flushAll(): Promise<void> {
    const result = await this.store.commit(this.store.lastSettled);
    if (result === 'full') throw this.#fullError();
    if (result === 'invalid') {
      await this.#becomeInvalid();
      throw this.#invalidError('flush');
    }
    await this.cow.flush();
  }

  /** An origin write of `length` bytes at `at` may go ahead at once: `protect` has nothing to do. */
  isProtected(at: number, length: number): boolean {
    const size = this.#chunkBytes;
    const first = Math.floor(at / size);
    const last = Math.floor((at + length - 1) / size);
    if (this.#resetting) return false;
    const { store } = this;
    if (!store.valid) return this.#marked && this.#reads.on(first, last) === undefined;
    const end = store.durableBelow;
    for (let old = first; old <= last; old++) {
      const newChunk = store.lookup(old);
      if (newChunk < 0 ? old * size < this.origin.size : newChunk >= end) return false;
    }
    return this.#reads.on(first, last) === undefined;
  }

  /**
   * Copies out what an origin write of `length` bytes at `at` would destroy. Returns nothing if the write may go ahead at
   * once, else a promise that never rejects, after which the question has to be asked again.
   */
  protect(at: number, length: number): Promise<void> | undefined {
    if (this.#resetting) return this.#resetting;
    const size = this.#chunkBytes;
    const last = Math.floor((at + length - 1) / size);
    // An invalid snapshot needs no copies; but what it sent to the origin before must not find new data there.
    if (!this.store.valid) return this.#marked ? this.#reads.on(Math.floor(at / size), last) : this.#becomeInvalid();
    let waits: Promise<void>[] | undefined;
    let upTo = -1;
    for (let old = Math.floor(at / size); old <= last; ) {
      const newChunk = this.store.lookup(old);
      let wait: Maybe = this.#copies.of(old);
      if (newChunk >= 0) {
        if (newChunk >= this.store.durableBelow && newChunk > upTo) upTo = newChunk;
        wait = this.#reads.on(old, old);
        old++;
      } else if (wait) old++;
      else if (this.#copies.full) {
        (waits ??= []).push(this.#copies.room());
        break;
      } else if (old * size >= this.origin.size) break;
      else {
        const from = this.#allocate(old);
        if (from < 0) return this.#becomeInvalid();
        const count = this.#allocateRun(old, from, last);
        wait = this.#copyRun(old, from, count);
        if (!wait) upTo = from + count - 1;
        old += count;
      }
      if (wait) (waits ??= []).push(wait);
    }
    if (upTo >= 0) {
      const commit = this.store.commit(upTo);
      if (typeof commit !== 'string') (waits ??= []).push(commit.then((result) => this.#afterCommit(result)));
      else if (commit !== 'durable') (waits ??= []).push(this.#afterCommit(commit));
    }
    return waits && (waits.length === 1 ? waits[0] : every(waits));
  }

  /** For a batch of copies: nobody has begun one of chunk `old`, which the origin has. */
  needsCopy(old: number): boolean {
    return this.store.valid && !this.#resetting && this.store.lookup(old) < 0 && !this.#copies.of(old);
  }

  /**
   * A new chunk for `old`, which `needsCopy`: `copied` is to be called before anything else happens. -1 if there is none, which
   * may have cost the snapshot.
   */
  claim(old: number): number {
    if (this.#copies.full) return -1;
    const newChunk = this.#allocate(old);
    if (newChunk < 0) void this.#becomeInvalid();
    return newChunk;
  }

  /** `wait` puts `count` chunks where they were claimed. The promise never rejects: a copy that fails costs the snapshot. */
  copied(old: number, newChunk: number, count: number, wait: Maybe): Promise<void> | undefined {
    if (wait) return this.#whenWritten(old, newChunk, count, wait).catch(() => this.#becomeInvalid());
    for (let i = 0; i < count; i++) this.#settle(newChunk + i);
    return this.#reads.on(old, old + count - 1);
  }

  /**
   * Everything that was acknowledged is durable, and what was under way has ended, when this settles; copies for writers
   * of the origin may have begun meanwhile. Rejects with ENOSPC only.
   */
  async drain(): Promise<void> {
    this.#background.cancel();
    await this.#copies.ended();
    await this.#reads.ended();
    const result = this.store.valid ? await this.store.commit(this.store.lastSettled) : 'invalid';
    if (result === 'full') throw this.#fullError();
    if (result === 'invalid' && !this.#marked) await this.#becomeInvalid();
  }

  /** Ends what is under way. Nothing is lost by an error: what a failed commit leaves out was never flushed. */
  async close(): Promise<void> {
    await this.drain().catch(() => {});
    this.#background.close();
    // A batch goes on when the store becomes invalid: not on a device that somebody else may have by then.
    await this.store.ended();
  }

  /**
   * Makes the snapshot equal to its origin again. The snapshot itself is suspended; its origin need not be: its writers
   * wait. `settled` resolves when those that had not to wait have ended. Rejects with what the COW device answered; the
   * snapshot is invalid then.
   */
  async reset(settled: () => Promise<void>): Promise<void> {
    const resetting = this.#reset(settled);
    const ended = () => {};
    this.#resetting = resetting.then(ended, ended);
    await resetting;
  }

  async #reset(settled: () => Promise<void>): Promise<void> {
    try {
      // No space to commit them does not matter to exceptions that are to go.
      await this.drain().catch(() => {});
      await settled();
      await this.#marking;
      await this.store.reset();
      this.overflowed = false;
      this.#marking = undefined;
      this.#marked = false;
      this.#lost = false;
    } catch (error) {
      // The header may be wiped: nothing that this store says later would be found again.
      await this.#becomeInvalid();
      throw error;
    } finally {
      this.#resetting = undefined;
    }
  }

  changed(at: number, length: number): ChangedExtent[] {
    return changedExtents(this.store, at, length);
  }

  extents(at: number, length: number): Promise<Extent[]> {
    return imageExtents(this.store, this.origin, this.cow, at, length);
  }

  #checkWritable(): void {
    if (!this.store.valid) throw this.#invalidError('write');
    if (this.overflowed) throw this.#overflowError();
  }

  #invalidError(action: string): DmError {
    return new DmError('SNAPSHOT_INVALID', 'EIO', `Cannot ${action}: the snapshot on ${this.cow.name} is invalid`, {
      hint: 'its COW device ran full or failed; the origin is intact',
    });
  }

  #overflowError(): DmError {
    return new DmError('SNAPSHOT_OVERFLOW', 'EIO', `Cannot write: the snapshot overflowed, ${this.cow.name} is full`, {
      hint: 'enlarge the COW device, then remove the snapshot and create it again',
    });
  }

  #fullError(): DmError {
    return new DmError('COW_NO_SPACE', 'ENOSPC', `No space is left for the COW device ${this.cow.name}`, {
      hint: 'free space where it is stored and repeat the operation; nothing is lost',
    });
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
    const size = this.#chunkBytes;
    const before = this.#copies.of(old) ?? (this.#copies.full ? this.#copies.room() : undefined);
    if (before)
      return before.then(() =>
        from
          ? this.write(old * size + offset, from, start, count)
          : this.writeZeroes(old * size + offset, count, mayUnmap),
      );
    // Of the chunk a part is written; the rest is what the origin has.
    const length = count === size ? size : Math.min(size, this.origin.size - old * size);
    if (length < offset + count)
      throw ioError(`Cannot write ${count} bytes at ${old * size + offset}: the origin ${this.origin.name} shrank`);
    const newChunk = this.#allocate(old);
    if (newChunk < 0) throw this.#overflow();
    let wait: Maybe;
    try {
      if (count < size) wait = this.#copies.overlay(old, newChunk, length, offset, from, start, count);
      else if (from) wait = this.cow.write(bytes(newChunk * size), from, start, size);
      else wait = this.cow.writeZeroes(bytes(newChunk * size), size, mayUnmap);
    } catch (error) {
      wait = Promise.reject(error);
    }
    if (wait) return this.#whenWritten(old, newChunk, 1, wait);
    this.#settle(newChunk);
    return this.#reads.on(old, old);
  }

  /** A write of `count` whole chunks from `old` on to where they were allocated. */
  #writeRun(old: number, newChunk: number, count: number, from: Uint8Array, start: number): Maybe {
    const size = this.#chunkBytes;
    let wait: Maybe;
    try {
      wait = this.cow.write(bytes(newChunk * size), from, start, count * size);
    } catch (error) {
      wait = Promise.reject(error);
    }
    if (wait) return this.#whenWritten(old, newChunk, count, wait);
    for (let i = 0; i < count; i++) this.#settle(newChunk + i);
    return this.#reads.on(old, old + count - 1);
  }

  /** As the store does, from a COW device that is enlarged before it is full, if it can be. */
  #allocate(old: number): number {
    let newChunk = this.store.allocate(old);
    while (newChunk < 0 && this.#isWhole && this.enlarge()) newChunk = this.store.allocate(old);
    // The exception that fills its area needs the next area too, and would come too late to ask for it.
    const fillsArea = newChunk >= 0 && this.store.persistent && isMetadata(this.store.layout, newChunk + 1);
    if (fillsArea && this.cow.size < (newChunk + 2) * this.#chunkBytes) this.enlarge();
    return newChunk;
  }

  /** The COW device was not cut short: enlarged, it would show zeroes for what it had there. */
  get #isWhole(): boolean {
    const { allocated, total } = this.store.usage();
    return allocated <= total;
  }

  /** Extends an allocation of `from` for `old` over the chunks up to `last` that need and get a place right behind it. */
  #allocateRun(old: number, from: number, last: number): number {
    const most = Math.min(last - old + 1, this.#copies.longest);
    let count = 1;
    while (count < most) {
      const next = old + count;
      if (this.store.lookup(next) >= 0 || this.#copies.of(next)) break;
      const to = this.#allocate(next);
      if (to < 0) break;
      if (to !== from + count) {
        this.store.settle(to, false);
        break;
      }
      count++;
    }
    return count;
  }

  /** Copies `count` chunks out of the origin. Never rejects: a copy that fails costs the snapshot. */
  #copyRun(old: number, newChunk: number, count: number): Maybe {
    let wait: Maybe;
    try {
      wait = this.#copies.copy(old, newChunk, count);
    } catch (error) {
      wait = Promise.reject(error);
    }
    return this.copied(old, newChunk, count, wait);
  }

  /** Settles `count` exceptions once `wait` has put their data on the COW device, and keeps others waiting until then. */
  #whenWritten(old: number, newChunk: number, count: number, wait: Promise<void>): Promise<void> {
    const done = wait.then(
      () => {
        this.#copies.end(old, count);
        for (let i = 0; i < count; i++) this.#settle(newChunk + i);
        return this.store.valid ? this.#reads.on(old, old + count - 1) : Promise.reject(this.#invalidError('write'));
      },
      async (error) => {
        this.#copies.end(old, count);
        // Last first: given up in that order, the chunks can be allocated again.
        for (let i = count - 1; i >= 0; i--) this.store.settle(newChunk + i, false);
        if (error instanceof DmError && error.errno === 'ENOSPC') throw this.#fullError();
        await this.#becomeInvalid();
        throw new DmError(
          'SNAPSHOT_INVALID',
          'EIO',
          `The snapshot on ${this.cow.name} became invalid: a chunk could not be copied`,
          { cause: error },
        );
      },
    );
    this.#copies.begin(old, count, done);
    return done;
  }

  #settle(newChunk: number): void {
    this.store.settle(newChunk, true);
    this.#background.settled();
  }

  /** A commit on behalf of an origin write: whatever went wrong costs the snapshot, so that the write can go ahead. */
  async #afterCommit(result: Commit): Promise<void> {
    if (result !== 'durable') await this.#becomeInvalid();
  }

  /** No chunk is left for a snapshot write. */
  #overflow(): DmError {
    if (this.overflows) {
      this.overflowed = true;
      return this.#overflowError();
    }
    void this.#becomeInvalid();
    return this.#invalidError('write');
  }

  /** Invalid in memory from here on; on disk, as far as that is possible, when the promise settles. Never rejects. */
  #becomeInvalid(): Promise<void> {
    if (!this.#marking) {
      if (this.store.persistent && this.store.lastSettled >= this.store.durableBelow) this.#lost = true;
      this.#marking = this.store.invalidate().then(() => void (this.#marked = true));
      this.onInvalid();
    }
    return this.#marking;
  }
}
