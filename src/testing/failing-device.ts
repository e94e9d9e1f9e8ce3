import type { BlockDevice, Maybe } from '../device/block-device.ts';
import { DmError, type Errno, errnoText } from '../errors.ts';
import { type Operation, WrappedDevice } from './wrapped-device.ts';

interface Failure {
  operations: readonly Operation[];
  /** Bytes. */
  from: number;
  to: number;
  errno: Errno;
}

/** A disk that fails chosen operations, where they touch a chosen range. */
export class FailingDevice extends WrappedDevice {
  #failures: Failure[] = [];

  constructor(disk: BlockDevice) {
    super(disk);
  }

  fail(
    operations: readonly Operation[],
    { from = 0, to = Number.POSITIVE_INFINITY, errno = 'EIO' as Errno } = {},
  ): void {
    this.#failures.push({ operations, from, to, errno });
  }

  repair(): void {
    this.#failures = [];
  }

  protected override perform<T>(operation: Operation, at: number, length: number, pass: () => Maybe<T>): Maybe<T> {
    const failure = this.#failures.find(
      ({ operations, from, to }) =>
        operations.includes(operation) && (operation === 'flush' || (at < to && at + length > from)),
    );
    if (!failure) return pass();
    const text = `${operation} of ${length} bytes at ${at} of ${this.name}: ${errnoText(failure.errno)}`;
    throw new DmError('INJECTED', failure.errno, text);
  }
}
