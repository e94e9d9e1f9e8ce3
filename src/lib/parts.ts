/**
 * Resolves when all of `waits` have ended, and rejects then with the error of the last among them that failed: whoever
 * lent a buffer to several operations may use it again.
 */
export async function every(waits: readonly Promise<unknown>[]): Promise<void> {
  let failed: PromiseRejectedResult | undefined;
  for (const outcome of await Promise.allSettled(waits)) if (outcome.status === 'rejected') failed = outcome;
  if (failed) throw failed.reason;
}

/**
 * The outcome of a request that was cut into parts. Every part is sent, whatever becomes of the others, and the whole
 * completes only when all have: until then the buffer belongs to them. It fails with the last error reported.
 */
export class Parts {
  #waits: Promise<unknown>[] = [];
  #failed = false;
  #error: unknown;

  add(wait: void | Promise<unknown>): void {
    if (wait !== undefined) this.#waits.push(wait);
  }

  /** Adds what `operation` returns, or fails with what it throws. */
  try(operation: () => void | Promise<unknown>): void {
    try {
      this.add(operation());
    } catch (error) {
      this.fail(error);
    }
  }

  fail(error: unknown): void {
    this.#failed = true;
    this.#error = error;
  }

  /** Throws or rejects with the last error. Nothing to wait for when every part answered at once. */
  done(): void | Promise<void> {
    if (this.#waits.length > 0) return this.#settle();
    if (this.#failed) throw this.#error;
  }

  async #settle(): Promise<void> {
    await every(this.#waits);
    if (this.#failed) throw this.#error;
  }
}
