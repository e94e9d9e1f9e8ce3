import { setImmediate as turn } from 'node:timers/promises';
import type { Maybe } from '../../device/block-device.ts';
import { Turns } from '../../lib/turns.ts';
import type { State } from './state.ts';

/** A part of a change that is too long for one; it returns the next one. */
export type Step = () => Step | undefined;

/** Changes of a pool's metadata. */
export class Changes extends Turns {
  readonly #state: State;

  constructor(state: State) {
    super();
    this.#state = state;
  }

  /** Carries out an operation after the changes before; then there is something to commit. */
  change<T>(operation: () => T): Maybe<T> {
    return this.run(() => this.now(operation));
  }

  /** As part of a change that runs. */
  now<T>(operation: () => T): Maybe<T> {
    this.#state.checkWritable();
    return this.#state.blocks.run(() => {
      const result = operation();
      this.#state.changed = true;
      return result;
    });
  }

  /** As a change of several steps, with turns of the event loop in between. Only the first one can fail and leave no trace. */
  async long(first: Step): Promise<void> {
    await this.run(async () => {
      let step = await this.now(first);
      try {
        while (step) {
          await turn();
          step = await this.#state.blocks.run(step);
        }
      } catch (error) {
        // Whatever it was, it is not as if nothing had been done.
        this.#state.failure = error;
        this.#state.checkWhole();
      }
    });
  }
}
