/**
 * Calls go through it side by side. Who has to be alone closes it, but for a while only: nobody waits for what hangs, or for
 * those who wait for that.
 */
import { DmError } from '../../errors.ts';
import type { Clock } from '../../lib/clock.ts';

/**
 * How long calls that are inside may hold up who has to be alone, how long he may then take until nothing is to be begun any
 * more, and after that until the gate opens.
 */
const PATIENCE_MS = 2000;

const NEVER = new AbortController().signal;

export class Gate {
  readonly #clock: Clock;
  /** Settles when it is open again. */
  #closed: Promise<void> | undefined;
  #inside = 0;
  #empty: (() => void) | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Runs `work` when it is open; nobody is alone meanwhile. */
  async through<T>(work: () => Promise<T>): Promise<T> {
    while (this.#closed) await this.#closed;
    return this.inside(work);
  }

  /**
   * Runs `work`, which may take any time, when it is open; who wants to be alone does not wait for it. Rejects with EINTR when
   * `signal` fires before it has begun.
   */
  async aside<T>(work: () => Promise<T>, signal: AbortSignal = NEVER): Promise<T> {
    while (this.#closed) {
      await firedOr(signal, this.#closed);
      if (signal.aborted) throw interrupted();
    }
    return work();
  }

  /** As `through`, for who knows that it is open. */
  async inside<T>(work: () => Promise<T>): Promise<T> {
    this.#inside++;
    try {
      return await work();
    } finally {
      if (--this.#inside === 0) this.#empty?.();
    }
  }

  /**
   * Runs `work` while nobody is inside, one at a time. `soon` fires when it has taken so long that it should end. When it does
   * not, or those inside do not leave, this rejects with `late`, and the gate opens: `work` goes on, and begins nothing more.
   */
  async alone<T>(work: (soon: AbortSignal) => Promise<T>, late: (why: string) => Error): Promise<T> {
    let open = () => {};
    this.#closed = new Promise((resolve) => (open = resolve));
    const timers: (() => void)[] = [];
    const after = (ms: number) =>
      new Promise<void>((passed) => {
        timers.push(this.#clock.after(ms, passed));
      });
    try {
      if (this.#inside > 0) {
        const empty = new Promise<void>((resolve) => (this.#empty = resolve));
        await Promise.race([empty, after(PATIENCE_MS)]);
        this.#empty = undefined;
      }
      if (this.#inside > 0) throw late('other calls take too long');
      const soon = new AbortController();
      void after(PATIENCE_MS).then(() => soon.abort());
      const end = after(2 * PATIENCE_MS).then(() => {
        throw late('a disk does not answer');
      });
      return await Promise.race([work(soon.signal), end]);
    } finally {
      for (const cancel of timers) cancel();
      this.#closed = undefined;
      open();
    }
  }
}

/** Settles as `other`, or when `signal` fires. */
async function firedOr(signal: AbortSignal, other: Promise<void>): Promise<void> {
  if (signal.aborted) return;
  let fire = () => {};
  const fired = new Promise<void>((resolve) => (fire = resolve));
  signal.addEventListener('abort', fire, { once: true });
  try {
    await Promise.race([other, fired]);
  } finally {
    signal.removeEventListener('abort', fire);
  }
}

const interrupted = () => new DmError('INTERRUPTED', 'EINTR', 'Interrupted while devices were being moved');
