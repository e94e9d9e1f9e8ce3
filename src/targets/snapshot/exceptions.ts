/**
 * One snapshot's exceptions: how each comes to be, and what becomes of all of them together. This is what a handover moves
 * from one table to the next.
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
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { DmError, ioError } from '../../errors.ts';
import { isMetadata } from '../../formats/exception-store.ts';
import type { ExceptionStore } from '../../stores/exception/store.ts';
import { BackgroundCommit } from './background-commit.ts';
import { Copies } from './copies.ts';
import { ImageIo } from './image-io.ts';
import { Protection } from './protection.ts';
import { TrackedReads } from './tracked-reads.ts';

export class Exceptions {
  readonly store: ExceptionStore;
  readonly origin: BlockDevice;
  readonly cow: BlockDevice;
  readonly chunkBytes: number;
  /** The data of those that have not settled. */
  readonly copies: Copies;
  /** Sent to the origin for readers of the snapshot. */
  readonly reads = new TrackedReads();
  /** For who uses the snapshot, ... */
  readonly io: ImageIo;
  /** ... and for who writes to its origin. */
  readonly protection: Protection;
  /** A snapshot write found no space and the table says `PO`: no writes any more, reads go on. */
  overflowed = false;
  /** The table says `PO`: a write that finds no space ends in `overflowed`, not in an invalid store. */
  overflows = false;
  /** Called once when the store becomes invalid. */
  onInvalid: () => void = () => {};
  /** Asks for a larger COW device. True: it is larger now. */
  enlarge: () => boolean = () => false;

  readonly #background: BackgroundCommit;
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
    this.chunkBytes = store.layout.chunkBytes;
    this.copies = new Copies(origin, cow, this.chunkBytes);
    this.io = new ImageIo(this);
    this.protection = new Protection(this);
    this.#background = new BackgroundCommit(store, () => this.becomeInvalid());
    this.#marked = !store.valid;
  }

  /** The store is invalid, and nothing more can be done to have its header say so. */
  get marked(): boolean {
    return this.#marked;
  }

  /** Settles, never rejects, when a reset that is under way has ended. */
  get resetting(): Promise<void> | undefined {
    return this.#resetting;
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
      await this.becomeInvalid();
      throw this.invalidError('flush');
    }
    await this.cow.flush();
  }

  /**
   * Everything that was acknowledged is durable, and what was under way has ended, when this settles; copies for writers
   * of the origin may have begun meanwhile. Rejects with ENOSPC only.
   */
  async drain(): Promise<void> {
    this.#background.cancel();
    await this.copies.ended();
    await this.reads.ended();
    const result = this.store.valid ? await this.store.commit(this.store.lastSettled) : 'invalid';
    if (result === 'full') throw this.#fullError();
    if (result === 'invalid' && !this.#marked) await this.becomeInvalid();
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
      await this.becomeInvalid();
      throw error;
    } finally {
      this.#resetting = undefined;
    }
  }

  /** Throws if the snapshot takes no writes. */
  checkWritable(): void {
    if (!this.store.valid) throw this.invalidError('write');
    if (this.overflowed) throw this.#overflowError();
  }

  invalidError(action: string): DmError {
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

  /** As the store does, from a COW device that is enlarged before it is full, if it can be. `written` is to be called. */
  allocate(old: number): number {
    let newChunk = -1;
    try {
      newChunk = this.store.allocate(old);
      while (newChunk < 0 && this.#isWhole && this.enlarge()) newChunk = this.store.allocate(old);
      // The exception that fills its area needs the next area too, and would come too late to ask for it.
      const fillsArea = newChunk >= 0 && this.store.persistent && isMetadata(this.store.layout, newChunk + 1);
      if (fillsArea && this.cow.size < (newChunk + 2) * this.chunkBytes) this.enlarge();
    } catch {
      // A disk that does not even tell its size has no room. What was allocated before is not forgotten for it.
    }
    return newChunk;
  }

  /** The COW device was not cut short: enlarged, it would show zeroes for what it had there. */
  get #isWhole(): boolean {
    const { allocated, total } = this.store.usage();
    return allocated <= total;
  }

  /** Extends an allocation of `from` for `old` over the chunks up to `last` that need and get a place right behind it. */
  allocateRun(old: number, from: number, last: number): number {
    const most = Math.min(last - old + 1, this.copies.longest);
    let count = 1;
    while (count < most) {
      const next = old + count;
      if (this.store.lookup(next) >= 0 || this.copies.has(next)) break;
      const to = this.allocate(next);
      if (to < 0) break;
      if (to !== from + count) {
        this.store.settle(to, false);
        break;
      }
      count++;
    }
    return count;
  }

  /**
   * Settles `count` exceptions from `old` on once `wait` has put their data on the COW device, and keeps others waiting
   * until then. An error leaves nothing of them, and may cost the snapshot.
   */
  written(old: number, newChunk: number, count: number, wait: Maybe): Promise<void> | undefined {
    if (!wait) return this.#settle(old, newChunk, count);
    const done = wait.then(
      () => {
        this.copies.end(old, count);
        const reads = this.#settle(old, newChunk, count);
        return this.store.valid ? reads : Promise.reject(this.invalidError('write'));
      },
      async (error) => {
        this.copies.end(old, count);
        // Last first: given up in that order, the chunks can be allocated again.
        for (let i = count - 1; i >= 0; i--) this.store.settle(newChunk + i, false);
        if (error instanceof DmError && error.errno === 'ENOSPC') throw this.#fullError();
        await this.becomeInvalid();
        throw new DmError(
          'SNAPSHOT_INVALID',
          'EIO',
          `The snapshot on ${this.cow.name} became invalid: a chunk could not be copied`,
          { cause: error },
        );
      },
    );
    this.copies.begin(old, count, done);
    return done;
  }

  /** Reads of the origin that began before have to end too. */
  #settle(old: number, newChunk: number, count: number): Promise<void> | undefined {
    for (let i = 0; i < count; i++) {
      this.store.settle(newChunk + i, true);
      this.#background.settled();
    }
    return this.reads.on(old, old + count - 1);
  }

  /** No chunk is left for a snapshot write. */
  overflow(): DmError {
    if (this.overflows) {
      this.overflowed = true;
      return this.#overflowError();
    }
    void this.becomeInvalid();
    return this.invalidError('write');
  }

  /** Invalid in memory from here on; on disk, as far as that is possible, when the promise settles. Never rejects. */
  becomeInvalid(): Promise<void> {
    if (!this.#marking) {
      if (this.store.persistent && this.store.lastSettled >= this.store.durableBelow) this.#lost = true;
      this.#marking = this.store.invalidate().then(() => void (this.#marked = true));
      this.onInvalid();
    }
    return this.#marking;
  }
}
