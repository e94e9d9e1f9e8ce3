/** One piece of work at a time, in the order of asking. One that finds nobody at work and need not wait has ended when `run` returns. */
export class Turns {
  /** Resolves when the last one that had to wait has ended. */
  #last: Promise<void> | undefined;

  run<T>(work: () => T | Promise<T>): T | Promise<T> {
    const result = this.#last ? this.#last.then(work) : work();
    if (!(result instanceof Promise)) return result;
    const ended: Promise<void> = result.then(
      () => this.#end(ended),
      () => this.#end(ended),
    );
    this.#last = ended;
    return result;
  }

  #end(ended: Promise<void>): void {
    if (this.#last === ended) this.#last = undefined;
  }
}
