import type { Clock } from '../lib/clock.ts';

/** Time passes when a test says so. */
export class FakeClock implements Clock {
  #now = 0;
  #timers = new Set<{ at: number; call: () => void }>();

  now(): number {
    return this.#now;
  }

  after(ms: number, call: () => void): () => void {
    const timer = { at: this.#now + ms, call };
    this.#timers.add(timer);
    return () => void this.#timers.delete(timer);
  }

  get timers(): number {
    return this.#timers.size;
  }

  /** Lets `ms` pass and calls what is due, each at its moment. */
  pass(ms: number): void {
    const end = this.#now + ms;
    for (;;) {
      let next: { at: number; call: () => void } | undefined;
      for (const timer of this.#timers) if (timer.at <= end && (!next || timer.at < next.at)) next = timer;
      if (!next) break;
      this.#timers.delete(next);
      this.#now = Math.max(this.#now, next.at);
      next.call();
    }
    this.#now = end;
  }
}
