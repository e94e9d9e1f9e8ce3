import { DmError } from '../errors.ts';

/** One holder at a time, in the order of asking. */
export class Lock {
  #last: Promise<unknown> = Promise.resolve();

  /**
   * Runs `work` when everything asked for before has ended, and settles as it does. When `signal` fires before that it rejects
   * with EINTR, and `work` is not run.
   */
  run<T>(work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    let begun = false;
    const mine = this.#last.then(() => {
      if (signal?.aborted) throw interrupted();
      begun = true;
      return work();
    });
    this.#last = mine.catch(() => {});
    if (!signal) return mine;
    return new Promise((resolve, reject) => {
      const abort = () => {
        if (!begun) reject(interrupted());
      };
      if (signal.aborted) abort();
      else signal.addEventListener('abort', abort, { once: true });
      mine.finally(() => signal.removeEventListener('abort', abort)).then(resolve, reject);
    });
  }
}

const interrupted = () => new DmError('INTERRUPTED', 'EINTR', 'Interrupted while others were at work');
