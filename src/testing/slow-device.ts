import type { BlockDevice, Maybe } from '../device/block-device.ts';
import { type Operation, WrappedDevice } from './wrapped-device.ts';

/**
 * A disk that answers later: in a later turn of the event loop, or, while stopped, when it is told to go on. Nothing is
 * read or written before.
 */
export class SlowDevice extends WrappedDevice {
  /** Operations in the order of arrival. */
  readonly seen: { operation: Operation; at: number; length: number }[] = [];
  #stopped = false;
  #waiting: (() => void)[] = [];

  constructor(disk: BlockDevice) {
    super(disk);
  }

  /** Requests that have not been answered. */
  get waiting(): number {
    return this.#waiting.length;
  }

  stop(): void {
    this.#stopped = true;
  }

  go(): void {
    this.#stopped = false;
    for (const proceed of this.#waiting.splice(0)) proceed();
  }

  protected override async perform<T>(
    operation: Operation,
    at: number,
    length: number,
    pass: () => Maybe<T>,
  ): Promise<T> {
    this.seen.push({ operation, at, length });
    await new Promise<void>((resolve) => {
      if (this.#stopped) this.#waiting.push(resolve);
      else setImmediate(resolve);
    });
    return pass();
  }
}
