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
    for (const outcome of await Promise.allSettled(this.#waits))
      if (outcome.status === 'rejected') this.fail(outcome.reason);
    if (this.#failed) throw this.#error;
  }
}
