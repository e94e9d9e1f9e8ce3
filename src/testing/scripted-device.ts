import type { BlockDevice, Maybe } from '../device/block-device.ts';
import { DmError, type Errno } from '../errors.ts';
import { SECTOR } from '../units.ts';
import { type Operation, WrappedDevice } from './wrapped-device.ts';

const LETTERS: Record<Operation, string> = {
  read: 'R',
  write: 'W',
  flush: 'F',
  discard: 'D',
  writeZeroes: 'Z',
  extents: 'E',
};

type Ask<T> = (operation: Operation, sector: number, count: number) => T;

/**
 * A disk that does what a test says: it tells what it was asked and in which order, fails where it should, and answers
 * when it should. It answers at once unless told otherwise.
 */
export class ScriptedDevice extends WrappedDevice {
  /** `W 16+8` (sectors), `F`: in the order of arrival. */
  readonly log: string[] = [];
  /** The errno with which an operation fails. */
  fault: Ask<Errno | undefined> | undefined;
  /** Which operations wait for `go`. */
  hold: Ask<boolean> | undefined;
  /** Everything is answered in a later turn of the event loop, failures too. */
  later = false;
  readonly #tell: ((entry: string) => void) | undefined;
  #held: (() => void)[] = [];
  #awaited: { count: number; resolve(): void }[] = [];

  /** `tell` hears the log's entries too: for the order among several disks. */
  constructor(disk: BlockDevice, tell?: (entry: string) => void) {
    super(disk);
    this.#tell = tell;
  }

  /** Resolves as soon as `count` operations wait. */
  held(count: number): Promise<void> {
    if (this.#held.length >= count) return Promise.resolve();
    return new Promise((resolve) => this.#awaited.push({ count, resolve }));
  }

  get waiting(): number {
    return this.#held.length;
  }

  /** Lets the operation at `index` of those that wait go on; all, and all later ones, if it is absent. */
  go(index?: number): void {
    if (index === undefined) this.hold = undefined;
    const going = index === undefined ? this.#held.splice(0) : this.#held.splice(index, 1);
    for (const proceed of going) proceed();
  }

  /** What it was asked since the last call, without the operations that `except` names. */
  takeLog(except = ''): string[] {
    return this.log.splice(0).filter((entry) => !except.includes(entry[0]));
  }

  protected override perform<T>(operation: Operation, at: number, length: number, pass: () => Maybe<T>): Maybe<T> {
    const sector = at / SECTOR;
    const count = length / SECTOR;
    const entry = operation === 'flush' ? 'F' : `${LETTERS[operation]} ${sector}+${count}`;
    this.log.push(entry);
    this.#tell?.(entry);
    const answer = () => {
      const errno = this.fault?.(operation, sector, count);
      if (errno) throw new DmError('INJECTED', errno, `${operation} of sectors ${sector}+${count} of ${this.name}`);
      return pass();
    };
    if (this.hold?.(operation, sector, count)) return this.#wait().then(answer);
    if (this.later) return new Promise<void>((resolve) => setImmediate(resolve)).then(answer);
    return answer();
  }

  #wait(): Promise<void> {
    return new Promise((proceed) => {
      this.#held.push(proceed);
      const ready = this.#awaited.filter(({ count }) => this.#held.length >= count);
      this.#awaited = this.#awaited.filter((waiter) => !ready.includes(waiter));
      for (const { resolve } of ready) resolve();
    });
  }
}
