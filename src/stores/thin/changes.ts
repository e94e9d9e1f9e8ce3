import type { Maybe } from '../../device/block-device.ts';

/** Changes of a pool's metadata, one at a time in the order of asking. One that finds all it needs ends before `run` returns. */
export class Changes {
  /** Resolves when the last one that had to wait has ended. */
  #last: Promise<void> | undefined;

  run<T>(change: () => Maybe<T>): Maybe<T> {
    const result = this.#last ? this.#last.then(change) : change();
    if (!(result instanceof Promise)) return result;
    const ended: Promise<void> = result.then(
      () => this.#end(ended),
      () => this.#end(ended),
    );
    this.#last = ended;
    return result;
  }

  #end(change: Promise<void>): void {
    if (this.#last === change) this.#last = undefined;
  }
}
