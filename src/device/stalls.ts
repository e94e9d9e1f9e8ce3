/**
 * Whether writes into the page cache of a file are made to wait: when more is written than the disk keeps up with, the
 * kernel lets the writer sleep (`balance_dirty_pages`, 10 to 200 ms each time), and whoever shares its thread with it.
 *
 *     usual     a write that takes long may have waited for the disk, or for a processor: look closer for a while
 *     watched   one that takes long and slept: it was the disk
 *     stalled   writes go through other threads, for longer each time that is found again; then watched
 */
import { type Clock, systemClock } from '../lib/clock.ts';
import { system } from '../lib/system.ts';

/** A write takes microseconds, a nap of the kernel's 10 ms or more. */
const LONG_MS = 8;
const WATCHED_MS = 250;
const STALLED_MS = 1000;
const STALLED_MAX_MS = 32_000;

export class Stalls {
  readonly #clock: Clock;
  readonly #naps: (() => number) | undefined;
  /** By the clock. */
  #began = 0;
  #watchedUntil = 0;
  #stalledUntil = 0;
  #stalledMs = STALLED_MS;
  /** Before the write; -1 when it is not watched. */
  #napsBefore = -1;

  /** `naps`: how often this thread has slept so far. Without it nothing is ever found to stall. */
  constructor(clock: Clock = systemClock, naps = system()?.naps) {
    this.#clock = clock;
    this.#naps = naps;
  }

  /** The next write is likely to wait. */
  get expected(): boolean {
    return this.#stalledUntil > 0 && this.#clock.now() < this.#stalledUntil;
  }

  /** Before a write; `after` must follow. */
  before(): void {
    if (!this.#naps) return;
    this.#began = this.#clock.now();
    this.#napsBefore = this.#began < this.#watchedUntil ? this.#naps() : -1;
  }

  after(): void {
    if (!this.#naps) return;
    const now = this.#clock.now();
    if (now - this.#began <= LONG_MS) return;
    if (this.#napsBefore < 0) this.#stalledMs = STALLED_MS;
    else if (this.#naps() > this.#napsBefore) {
      this.#stalledUntil = now + this.#stalledMs;
      this.#stalledMs = Math.min(this.#stalledMs * 2, STALLED_MAX_MS);
    }
    this.#watchedUntil = Math.max(now, this.#stalledUntil) + WATCHED_MS;
  }
}
