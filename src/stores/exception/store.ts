import type { Maybe } from '../../device/block-device.ts';
import type { Layout } from '../../formats/exception-store.ts';
import type { Sector } from '../../units.ts';

/** What a commit came to. `full`: no space under the COW device for its metadata; try again once there is. */
export type Commit = 'durable' | 'invalid' | 'full';

/** Sectors, as `dmsetup status` prints them. */
export interface Usage {
  allocated: Sector;
  total: Sector;
  metadata: Sector;
}

/** Exceptions that lie side by side, on the origin and on the COW device, in ascending order. */
export interface Run {
  oldChunk: number;
  newChunk: number;
  count: number;
}

/**
 * The exceptions of one snapshot: which chunk of the origin lives in which chunk of the COW device.
 *
 *     allocate(old) -> new chunk        the caller copies or writes the chunk's data to the COW device
 *     settle(new, true)                 the data is written (not yet durable); `lookup(old)` finds it from here on
 *     commit(new) -> durable            data and exception survive a power cut
 *
 * New chunks are handed out in ascending order, and committed in that order, so one comparison tells whether an
 * exception is durable: `new < durableBelow`.
 */
export interface ExceptionStore {
  readonly persistent: boolean;
  readonly layout: Layout;
  /** Cleared by `invalidate` and set again by nothing but `reset`. */
  readonly valid: boolean;
  /** Settled exceptions. */
  readonly size: number;
  readonly durableBelow: number;
  /** The highest settled new chunk, -1 if there is none: what a flush has to commit. */
  readonly lastSettled: number;
  /** The new chunk of a settled exception, or -1. */
  lookup(oldChunk: number): number;
  /** A new chunk for `oldChunk`, or -1 if no whole chunk is left on the COW device, whose size is asked anew. */
  allocate(oldChunk: number): number;
  /**
   * Ends an allocation: the chunk's data is on the COW device, or (`ok` false) it could not be written and the exception
   * does not come to be. A chunk given up that way is used again at once if it was the last one allocated, else after
   * the store is opened anew.
   */
  settle(newChunk: number, ok: boolean): void;
  /** Everything settled up to `newChunk` is durable when this returns nothing or resolves with `durable`. Never rejects. */
  commit(newChunk: number): Maybe<Commit>;
  /** Marks the store invalid, in memory at once and on disk when this settles. Never rejects: what fails is lost. */
  invalidate(): Promise<void>;
  /**
   * Nothing is on its way to the COW device when this settles, of a commit that nobody waits for any more either. Never
   * rejects.
   */
  ended(): Promise<void>;
  usage(): Usage;
  each(visit: (oldChunk: number, newChunk: number) => void): void;
  /**
   * Forgets every exception, on disk too. Nothing may be in flight. A cut-off reset leaves the old store or an empty
   * one.
   */
  reset(): Promise<void>;
}
