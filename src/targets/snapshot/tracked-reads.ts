import { every } from '../../lib/parts.ts';

interface TrackedRead {
  readonly first: number;
  readonly last: number;
  readonly ended: Promise<void>;
}

/**
 * What a snapshot has sent to its origin and not heard of: a writer of the origin must not pass it, or it would be
 * answered with data that is newer than the snapshot (Linux `track_chunk`).
 */
export class TrackedReads {
  #reads = new Set<TrackedRead>();

  /** Old chunks, both ends included. `wait` may reject: whoever asked for it hears of that. */
  add(first: number, last: number, wait: Promise<void>): void {
    const end = () => void this.#reads.delete(read);
    const read: TrackedRead = { first, last, ended: wait.then(end, end) };
    this.#reads.add(read);
  }

  /** Resolves when those that touch the chunks have ended; nothing to wait for when there are none. */
  on(first: number, last: number): Promise<void> | undefined {
    if (this.#reads.size === 0) return undefined;
    const waits: Promise<void>[] = [];
    for (const read of this.#reads) if (read.first <= last && read.last >= first) waits.push(read.ended);
    return waits.length > 0 ? every(waits) : undefined;
  }

  /** Resolves when all that are under way now have ended. */
  async ended(): Promise<void> {
    await every([...this.#reads].map((read) => read.ended));
  }
}
