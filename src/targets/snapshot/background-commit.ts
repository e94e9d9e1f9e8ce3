import type { ExceptionStore } from '../../stores/exception/store.ts';

/** Exceptions that settle without a flush are committed after this time, or when there are this many. */
const COMMIT_AFTER_MS = 1000;
const COMMIT_AT = 16384;

/**
 * The commits that nobody asks for. The kernel makes every exception durable before it acknowledges the write; here a
 * client that never flushes loses no more than the last second.
 */
export class BackgroundCommit {
  readonly #store: ExceptionStore;
  readonly #onInvalid: () => Promise<void>;
  #timer: NodeJS.Timeout | undefined;
  #running = false;
  #closed = false;

  /** `onInvalid`: a commit found the store invalid, or made it so. */
  constructor(store: ExceptionStore, onInvalid: () => Promise<void>) {
    this.#store = store;
    this.#onInvalid = onInvalid;
  }

  /** To be called after each exception that settles. */
  settled(): void {
    if (this.#store.lastSettled - this.#store.durableBelow >= COMMIT_AT) void this.#commit();
    else this.#later();
  }

  /** Somebody else commits all that has settled; what settles from here on waits its own second. */
  cancel(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  close(): void {
    this.#closed = true;
    this.cancel();
  }

  #later(): void {
    if (this.#timer || this.#running || this.#closed || !this.#store.persistent) return;
    this.#timer = setTimeout(this.#commit, COMMIT_AFTER_MS);
    this.#timer.unref();
  }

  /** Never rejects. What settles meanwhile, or finds no space, has its turn a second later. */
  readonly #commit = async (): Promise<void> => {
    if (this.#running || !this.#store.valid) return;
    this.#running = true;
    this.cancel();
    const result = await this.#store.commit(this.#store.lastSettled);
    this.#running = false;
    if (result === 'invalid') await this.#onInvalid();
    else if (this.#store.lastSettled >= this.#store.durableBelow) this.#later();
  };
}
