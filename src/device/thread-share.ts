/**
 * The threads that wait for disks, shared out among the disks.
 *
 * libuv has one pool of threads for the whole process (UV_THREADPOOL_SIZE, 4 unless told otherwise), and who finds none
 * free waits. A disk that hangs keeps every thread it is given, so none is given all of them: a disk may take another
 * one as long as it has fewer than would be left, and at most `EACH_MAX`. The first disk that hangs has half of them at
 * most, the second half of the rest, and so on. A few are never given to disks: files are opened and names looked up
 * there too.
 *
 *     64, of which 8 are kept back     disks that hang: 1 -> 16 threads, 2 -> 32, 3 -> 44, 4 -> 50 …
 *
 * What does not get its thread waits, first come first served within a disk, and disks in turn.
 */
import { type Clock, systemClock } from '../lib/clock.ts';

/** More at once brings no disk further. */
const EACH_MAX = 16;
/** What a disk is given at once where that is done without threads; many take 64 and more, a USB stick two. */
const AHEAD_MAX = 32;
/** koffi has as many calls under way on threads at most, and makes one more on the caller's. */
const POOL_MAX = 64;
/** A disk is stuck when nothing has come back from it for so long. */
const STUCK_MS = 100;

export class ThreadPool {
  readonly clock: Clock;
  #size = 0;
  /** Below 0 when it became smaller than what is in use. */
  #left = 0;
  readonly #waiting = new Set<ThreadShare>();

  /** `size`: threads there are. */
  constructor(size: number, clock = systemClock) {
    this.clock = clock;
    this.resize(size);
  }

  resize(size: number): void {
    const threads = Math.min(Math.max(1, Math.floor(size)), POOL_MAX);
    const lent = threads - (threads > 1 ? Math.ceil(threads / 8) : 0);
    this.#left += lent - this.#size;
    this.#size = lent;
    this.#admit();
  }

  /** There are fewer than a disk could use. */
  get isSmall(): boolean {
    return this.#size < EACH_MAX;
  }

  /** @internal */
  take(share: ThreadShare): boolean {
    if (share.running >= EACH_MAX || share.running >= this.#left) return false;
    this.#left--;
    return true;
  }

  /** @internal */
  wait(share: ThreadShare): void {
    this.#waiting.add(share);
  }

  /** @internal */
  give(): void {
    this.#left++;
    this.#admit();
  }

  #admit(): void {
    for (const share of this.#waiting) {
      if (!this.take(share)) continue;
      // Behind the others, whom this loop comes to first.
      this.#waiting.delete(share);
      if (share.next()) this.#waiting.add(share);
    }
  }
}

/** What one disk has of the pool. */
export class ThreadShare {
  /** Threads it has now. */
  running = 0;
  readonly #pool: ThreadPool;
  readonly #queue: (() => void)[] = [];
  /** When something last came back, or the first of those that run began. */
  #progress = 0;

  constructor(pool: ThreadPool = threads) {
    this.#pool = pool;
  }

  /** Somebody waits for a thread. */
  get isFull(): boolean {
    return this.#queue.length > 0;
  }

  /**
   * There are so few threads that more requests should be with the disk than threads wait for, and there is room for
   * one.
   */
  get mayRunAhead(): boolean {
    return this.#pool.isSmall && this.running + this.#queue.length < AHEAD_MAX;
  }

  /** Threads are in use, and none of them has come back for a while. */
  get isStuck(): boolean {
    return this.running > 0 && this.#pool.clock.now() - this.#progress > STUCK_MS;
  }

  /**
   * Nothing to wait for, or resolves when a thread is free for it; then `leave` must follow. `first`: before who waits
   * already.
   */
  enter(first = false): void | Promise<void> {
    if (this.#queue.length === 0 && this.#pool.take(this)) return this.#begin();
    return new Promise((go) => {
      if (first) this.#queue.unshift(go);
      else this.#queue.push(go);
      this.#pool.wait(this);
    });
  }

  leave(): void {
    this.running--;
    this.#progress = this.#pool.clock.now();
    this.#pool.give();
  }

  /** @internal Lets one that waits go on. True: more wait. */
  next(): boolean {
    this.#begin();
    this.#queue.shift()!();
    return this.#queue.length > 0;
  }

  #begin(): void {
    if (this.running++ === 0) this.#progress = this.#pool.clock.now();
  }
}

/** Threads of the process's pool. libuv reads the number as atoi(3) does. */
const poolSize = () => {
  const asked = process.env.UV_THREADPOOL_SIZE;
  return asked === undefined ? 4 : Math.max(1, Number.parseInt(asked, 10) || 0);
};

/** Of this thread of JavaScript. */
export const threads = new ThreadPool(poolSize());

/** From now on the pool belongs to so many threads of JavaScript that open disks. To be called in each of them. */
export function sharePool(parts: number): void {
  threads.resize(poolSize() / parts);
}
