/** Time as it is asked for by what waits or counts seconds, so that a test can pass it by hand. */
export interface Clock {
  /** Milliseconds since some moment, never going back. */
  now(): number;
  /** Calls once, after about `ms`; earlier where that is more than a timer holds (24 days). Returns what cancels it. */
  after(ms: number, call: () => void): () => void;
}

const TIMER_MAX_MS = 2 ** 31 - 1;

export const systemClock: Clock = {
  now: () => performance.now(),
  after(ms, call) {
    const timer = setTimeout(call, Math.min(Math.ceil(ms), TIMER_MAX_MS));
    return () => clearTimeout(timer);
  },
};
