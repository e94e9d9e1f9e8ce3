/**
 * Timers that fire when a seed says so, in place of the process's own while a seed runs: a slow machine must not make
 * another run of it.
 */
export class VirtualTime {
  readonly #timers = new Map<object, () => void>();
  readonly #real = { setTimeout: globalThis.setTimeout, clearTimeout: globalThis.clearTimeout };

  install(): void {
    const set = (call: () => void) => {
      const timer = { unref: () => timer, ref: () => timer };
      this.#timers.set(timer, call);
      return timer;
    };
    globalThis.setTimeout = set as unknown as typeof setTimeout;
    globalThis.clearTimeout = ((timer: object) => void this.#timers.delete(timer)) as typeof clearTimeout;
  }

  restore(): void {
    this.#timers.clear();
    Object.assign(globalThis, this.#real);
  }

  /** Enough time passes for all that wait now. */
  pass(): void {
    const due = [...this.#timers.values()];
    this.#timers.clear();
    for (const call of due) call();
  }

  /** Whoever set them is gone. */
  forget(): void {
    this.#timers.clear();
  }
}
