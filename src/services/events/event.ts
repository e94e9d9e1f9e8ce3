/** What `dmkit watch` tells, as plain data: the same in the process and over the control socket (docs/events.md). */

export type EventBody = DeviceEventBody | ({ cow: string } & CowEventBody) | PoolEventBody;

export type DeviceEventBody =
  /** The mapped device came or went, another table is live, uuid, geometry or deferred removal changed. */
  | { event: 'create' | 'table' | 'suspend' | 'resume' | 'change' | 'remove' }
  | { event: 'rename'; from: string }
  /** The kernel's event: the event number that `dmsetup wait` waits for was raised to this. */
  | { event: 'table-event'; number: number };

/** Of a snapshot or a merge; `cow` is the path, number or URI of its COW device. Sizes in bytes. */
export type CowEventBody =
  /** The store passed another 5 percent, as LVM counts them: `used` of `size`, metadata included. */
  | { event: 'fill'; percent: number; used: number; size: number }
  | { event: 'overflow' | 'invalid' }
  /** The merge passed another 5 percent; `left`: what is still to be merged. */
  | { event: 'merge'; percent: number; left: number }
  | { event: 'merge-done' | 'merge-failed' }
  /** The COW file of a fork grew. */
  | { event: 'extend'; from: number; size: number }
  /** It should have grown and did not; `code` is LIMIT or that of an error. */
  | { event: 'extend-failed'; size: number; code: string; message: string };

/** Of a pool. Sizes in bytes. */
export type PoolEventBody =
  /** Its data or its metadata passed another 5 percent. */
  | { event: 'pool-fill'; part: 'data' | 'metadata'; percent: number; used: number; size: number }
  /** No block of data is free (`full`), there is space again (`active`), or it has to be checked, or has failed. */
  | { event: 'pool-state'; state: 'active' | 'full' | 'read-only' | 'needs check' | 'failed' }
  /** Its file grew; or should have and did not, `code` being LIMIT or that of an error. */
  | { event: 'pool-extend'; part: 'data' | 'metadata'; from: number; size: number }
  | { event: 'pool-extend-failed'; code: string; message: string };

export type DeviceEvent = {
  /** Ascending, over restarts of the daemon too. */
  sequence: number;
  /** ISO 8601, UTC. */
  time: string;
  /** The mapped device's name at that time. */
  device: string;
  /** Absent where it has none. */
  uuid?: string;
} & EventBody;

export interface EventBatch {
  /** The oldest first. */
  events: DeviceEvent[];
  /** What to ask for next time. */
  next: number;
  /** There were more between `after` and these, which are not kept any longer. */
  lost: boolean;
}

export interface EventControl {
  /**
   * Events after the sequence number `after`; resolves when there is one. Without `after`: at once, with none, from now on.
   * `signal` ends the wait with EINTR.
   */
  events(after?: number, signal?: AbortSignal): Promise<EventBatch>;
}

/** Which device an event is about. */
export interface Subject {
  readonly storedName: string;
  readonly uuid: string;
}

export type Emit = (device: Subject, body: EventBody) => void;

/** `begin`: from here on. `lost`: events came faster than they were taken, and the oldest are gone. */
export type WatchEvent = DeviceEvent | { time: string; event: 'begin' | 'lost' };

/** Every event from now on. Ends when `signal` fires; rejects with what a call rejects with. */
export async function* watchEvents(
  control: EventControl,
  { signal }: { signal?: AbortSignal } = {},
): AsyncGenerator<WatchEvent, void, void> {
  const now = () => new Date().toISOString();
  try {
    let { next } = await control.events(undefined, signal);
    yield { time: now(), event: 'begin' };
    for (;;) {
      const batch = await control.events(next, signal);
      if (batch.lost) yield { time: now(), event: 'lost' };
      yield* batch.events;
      next = batch.next;
    }
  } catch (error) {
    if (!signal?.aborted) throw error;
  }
}
