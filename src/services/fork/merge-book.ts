/** How far each merge is, for those who ask, and for those who wait until it is further. */
import { DmError } from '../../errors.ts';
import type { MergeProgress } from './fork-control.ts';

/** Results kept for those who ask late. */
const FINISHED_MAX = 64;
/** How long somebody waits for a change. */
const PATIENCE_MS = 10_000;

export class MergeBook {
  readonly #running = new Set<MergeProgress>();
  /** The oldest first. */
  #finished: MergeProgress[] = [];
  /** Those of `#finished` whose name a device was given since: only who has followed them asks for them. */
  readonly #outdated = new WeakSet<MergeProgress>();
  readonly #waiters = new Set<() => void>();
  #version = 0;

  /** A merge begins, or goes on after a restart. */
  enter(progress: MergeProgress): void {
    this.#running.add(progress);
    this.touch(progress);
  }

  /** It has changed. */
  touch(progress: MergeProgress): void {
    progress.version = ++this.#version;
    this.wake();
  }

  /** It has come to its end, and is kept for a while. */
  end(progress: MergeProgress): void {
    this.#running.delete(progress);
    this.#finished = [...this.#finished.slice(1 - FINISHED_MAX), progress];
    this.touch(progress);
  }

  /** Of the fork of that name; of several that have ended, the last. */
  find(name: string): MergeProgress | undefined {
    for (const progress of this.#running) if (progress.name === name) return progress;
    return this.#finished.findLast((progress) => progress.name === name);
  }

  /** A device has that name now: a merge that is asked for is not the one that has ended. */
  outdate(name: string): void {
    for (const progress of this.#finished) if (progress.name === name) this.#outdated.add(progress);
  }

  /** For those who ask again for a merge that has ended. */
  finished(name: string): MergeProgress | undefined {
    const last = this.#finished.findLast((progress) => progress.name === name);
    return last && !this.#outdated.has(last) ? last : undefined;
  }

  /** On the origin device of that name. */
  on(origin: string): MergeProgress | undefined {
    for (const progress of this.#running) if (progress.origin === origin) return progress;
  }

  /** See `ForkControl.mergeProgress`. */
  async progress(name: string, { since }: { since?: number }, signal?: AbortSignal): Promise<MergeProgress> {
    const found = this.find(name);
    if (!found)
      throw new DmError('NOT_MERGING', 'ENXIO', `${name} is not being merged`, { hint: `begin: dmkit merge ${name}` });
    if (found.version !== since || found.state !== 'merging') return { ...found };
    await this.#changed(signal);
    return { ...(this.find(name) ?? found) };
  }

  /** Nobody waits any longer. */
  wake(): void {
    for (const waiter of this.#waiters) waiter();
    this.#waiters.clear();
  }

  #changed(signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const interrupted = () =>
        reject(new DmError('INTERRUPTED', 'EINTR', 'The wait for a merge was interrupted; the merge goes on'));
      if (signal?.aborted) return interrupted();
      const end = (settle: () => void) => () => {
        this.#waiters.delete(waiter);
        clearTimeout(timer);
        signal?.removeEventListener('abort', abort);
        settle();
      };
      const waiter = end(resolve);
      const abort = end(interrupted);
      const timer = setTimeout(waiter, PATIENCE_MS);
      this.#waiters.add(waiter);
      signal?.addEventListener('abort', abort, { once: true });
    });
  }
}
