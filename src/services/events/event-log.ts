import { DmError } from '../../errors.ts';
import type { DeviceEvent, EventBatch, EventBody, Subject } from './event.ts';

/** Events that are kept for who has not asked for them yet. */
const KEPT_MAX = 4096;
/** Events of one answer. */
const BATCH_MAX = 512;

/**
 * The last events, in a ring. Nobody who emits waits for somebody who reads: a reader that is too slow loses the oldest
 * ones, and is told.
 */
export class EventLog {
  readonly #now: () => number;
  readonly #keptMax: number;
  readonly #ring: DeviceEvent[] = [];
  /** Sequence number of the oldest event, and of the one that comes next. */
  #start: number;
  #end: number;
  readonly #waiters = new Set<() => void>();

  /** `now`: Unix time in milliseconds. */
  constructor({ now = Date.now, keptMax = KEPT_MAX }: { now?: () => number; keptMax?: number } = {}) {
    this.#now = now;
    this.#keptMax = keptMax;
    // In microseconds, so that numbers go on ascending when a restart has lost the log.
    this.#start = now() * 1000;
    this.#end = this.#start;
  }

  /** Readers that wait for the next event. */
  get waiting(): number {
    return this.#waiters.size;
  }

  readonly emit = ({ storedName, uuid }: Subject, body: EventBody): void => {
    const head = { sequence: this.#end, time: new Date(this.#now()).toISOString(), device: storedName };
    this.#ring[this.#end % this.#keptMax] = { ...head, ...(uuid !== '' && { uuid }), ...body };
    this.#end++;
    if (this.#end - this.#start > this.#keptMax) this.#start++;
    for (const wake of this.#waiters) wake();
    this.#waiters.clear();
  };

  /** As `EventControl.events`. */
  async events(after?: number, signal?: AbortSignal): Promise<EventBatch> {
    const last = this.#end - 1;
    if (after === undefined) return { events: [], next: last, lost: false };
    if (after === last) await this.#next(signal);
    // From a log before this one, or events that are gone.
    const lost = after < this.#start - 1 || after >= this.#end;
    const events: DeviceEvent[] = [];
    for (let at = lost ? this.#start : after + 1; at < this.#end && events.length < BATCH_MAX; at++)
      events.push(this.#ring[at % this.#keptMax]);
    return { events, next: events.at(-1)?.sequence ?? this.#end - 1, lost };
  }

  #next(signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const interrupted = () => {
        this.#waiters.delete(wake);
        reject(new DmError('INTERRUPTED', 'EINTR', 'Cannot wait for an event: interrupted before one came'));
      };
      const wake = () => {
        signal?.removeEventListener('abort', interrupted);
        resolve();
      };
      if (signal?.aborted) return interrupted();
      this.#waiters.add(wake);
      signal?.addEventListener('abort', interrupted, { once: true });
    });
  }
}
