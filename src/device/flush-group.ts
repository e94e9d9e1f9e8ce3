import type { DmError } from '../errors.ts';
import type { Maybe } from './block-device.ts';

/**
 * Group commit: at most one sync of a disk runs, and whoever comes meanwhile shares the next one. A sync covers the
 * writes that had completed when it started, so a caller whose write completed later must not take part in it.
 *
 * A sync that failed is never forgotten. Linux reports a lost write-back once and marks the pages clean; the next
 * fdatasync succeeds although the data is gone ("fsyncgate", 2018). So from then on every flush fails.
 */
export class FlushGroup {
  readonly #sync: () => Promise<void>;
  #dirty = false;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  #failure: DmError | undefined;

  /** `sync` makes durable what was written before it was called, and rejects with a DmError. */
  constructor(sync: () => Promise<void>) {
    this.#sync = sync;
  }

  /** A write has completed, or failed part way. */
  wrote(): void {
    this.#dirty = true;
  }

  flush(): Maybe {
    if (this.#failure) throw this.#failure;
    if (!this.#running) return this.#dirty ? this.#start() : undefined;
    if (!this.#dirty) return this.#running;
    // Not #start: in the moment before this goes on, another caller may have started the sync that covers both.
    this.#next ??= this.#running.then(() => {
      this.#next = undefined;
      return this.flush();
    });
    return this.#next;
  }

  #start(): Promise<void> {
    this.#dirty = false;
    this.#running = this.#sync().then(
      () => {
        this.#running = undefined;
      },
      (error: DmError) => {
        this.#running = undefined;
        this.#failure = error;
        throw error;
      },
    );
    return this.#running;
  }
}
