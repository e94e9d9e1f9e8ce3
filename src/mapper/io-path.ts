/**
 * The way of a request into a mapped device (Linux `dm.c`, `dm_submit_bio`). While requests flow they go straight to
 * the live table and only those that have to wait for something are counted; while the device is suspended they queue,
 * and go through the table that is live when it resumes.
 */
import type { BlockDevice, ChangedExtent, Extent, Maybe } from '../device/block-device.ts';
import { DmError } from '../errors.ts';
import { type Bytes, bytes } from '../units.ts';
import { type Limits, outOfRange, type Table } from './table.ts';

type Operation = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes' | 'extents' | 'changed';

/** A request that waits for the device to resume. */
interface Held {
  operation: Operation;
  at: Bytes;
  length: number;
  buffer: Uint8Array;
  start: number;
  mayUnmap: boolean;
  resolve(value: unknown): void;
  reject(error: unknown): void;
}

const NO_BUFFER: Uint8Array = new Uint8Array(0);

export class IoPath implements BlockDevice {
  /** `major:minor`. */
  readonly name: string;
  /** The live table while requests flow; undefined while they are held, and before the first table. */
  #flowing: Table | undefined;
  #live: Table | undefined;
  #limits: Limits = { blockSize: 512, minimumIo: 512, optimalIo: 0 };
  #size = bytes(0);
  #holding = false;
  #held: Held[] = [];
  #abandoned = false;
  #inFlight = 0;
  #drained: (() => void) | undefined;

  constructor(name: string) {
    this.name = name;
  }

  get size(): Bytes {
    return this.#size;
  }

  get blockSize(): number {
    return this.#limits.blockSize;
  }

  get hints(): { readonly minimumIo: Bytes; readonly optimalIo: Bytes } {
    return { minimumIo: bytes(this.#limits.minimumIo), optimalIo: bytes(this.#limits.optimalIo) };
  }

  get readOnly(): boolean {
    return this.#live?.readOnly ?? false;
  }

  get canDiscard(): boolean {
    return this.#live?.canDiscard ?? false;
  }

  /** Something is there that `changed` compares with. */
  get hasOrigin(): boolean {
    return this.#live?.hasOrigin ?? false;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    const table = this.#flowing;
    if (table === undefined) return this.#wait('read', at, length, into, start);
    if (at < 0 || at + length > this.#size) throw outOfRange(this.name, at, length, this.#size);
    const wait = table.read(at, into, start, length);
    if (wait !== undefined) return this.#track(wait);
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    const table = this.#flowing;
    if (table === undefined) return this.#wait('write', at, length, from, start);
    if (table.readOnly) throw readOnly(this.name);
    if (at < 0 || at + length > this.#size) throw outOfRange(this.name, at, length, this.#size);
    const wait = table.write(at, from, start, length);
    if (wait !== undefined) return this.#track(wait);
  }

  flush(): Maybe {
    const table = this.#flowing;
    if (table === undefined) return this.#wait('flush', bytes(0), 0);
    const wait = table.flush();
    if (wait !== undefined) return this.#track(wait);
  }

  discard(at: Bytes, length: number): Maybe {
    const table = this.#flowing;
    if (table === undefined) return this.#wait('discard', at, length);
    if (table.readOnly) throw readOnly(this.name);
    if (!table.canDiscard)
      throw new DmError('CANNOT_DISCARD', 'EOPNOTSUPP', `Cannot discard on ${this.name}: not every target of it can`);
    if (at < 0 || at + length > this.#size) throw outOfRange(this.name, at, length, this.#size);
    const wait = table.discard(at, length);
    if (wait !== undefined) return this.#track(wait);
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    const table = this.#flowing;
    if (table === undefined) return this.#wait('writeZeroes', at, length, NO_BUFFER, 0, mayUnmap);
    if (table.readOnly) throw readOnly(this.name);
    if (at < 0 || at + length > this.#size) throw outOfRange(this.name, at, length, this.#size);
    const wait = table.writeZeroes(at, length, mayUnmap);
    if (wait !== undefined) return this.#track(wait);
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    const table = this.#flowing;
    if (table === undefined) return this.#wait('extents', at, length);
    if (at < 0 || at + length > this.#size) throw outOfRange(this.name, at, length, this.#size);
    const found = table.extents(at, length);
    return found instanceof Promise ? this.#track(found) : found;
  }

  /** Which parts differ from the origin; all is unchanged where there is none. */
  changed(at: Bytes, length: number): Maybe<ChangedExtent[]> {
    const table = this.#flowing;
    if (table === undefined) return this.#wait('changed', at, length);
    if (at < 0 || at + length > this.#size) throw outOfRange(this.name, at, length, this.#size);
    const found = table.changed(at, length);
    return found instanceof Promise ? this.#track(found) : found;
  }

  /** A mapped device is closed by its mapper. */
  async close(): Promise<void> {}

  /** Fails the requests that are held, and all that would be: nothing will resume this device. */
  abandon(): void {
    this.#abandoned = true;
    const held = this.#held;
    this.#held = [];
    for (const { operation, reject } of held) reject(this.#stopping(operation));
  }

  protected get live(): Table | undefined {
    return this.#live;
  }

  /** While requests are held. */
  protected setLive(table: Table | undefined, limits: Limits = this.#limits): void {
    this.#live = table;
    this.#limits = limits;
    this.#size = table?.size ?? bytes(0);
    this.#flowing = this.#holding ? undefined : table;
  }

  protected get limits(): Limits {
    return this.#limits;
  }

  /** From here on requests queue. */
  protected hold(): void {
    this.#holding = true;
    this.#flowing = undefined;
  }

  /** Lets requests flow again: first those that queued, in order. */
  protected release(): void {
    this.#holding = false;
    this.#flowing = this.#live;
    const held = this.#held;
    this.#held = [];
    for (const request of held) {
      try {
        request.resolve(this.#submit(request));
      } catch (error) {
        request.reject(error);
      }
    }
  }

  /** Resolves when no request is with the targets, or when `signal` fires: the caller asks which. */
  protected async drain(signal?: AbortSignal): Promise<void> {
    if (this.#inFlight === 0 || signal?.aborted) return;
    await new Promise<void>((resolve) => {
      const done = () => {
        this.#drained = undefined;
        signal?.removeEventListener('abort', done);
        resolve();
      };
      this.#drained = done;
      signal?.addEventListener('abort', done);
    });
  }

  /** Flushes the live table although requests are held. */
  protected async flushLive(): Promise<void> {
    const wait = this.#live?.flush();
    if (wait !== undefined) await this.#track(wait);
  }

  /** Apart from the operations, so that they need no closure of their own. */
  #wait<T>(
    operation: Operation,
    at: Bytes,
    length: number,
    buffer: Uint8Array = NO_BUFFER,
    start = 0,
    mayUnmap = false,
  ): Promise<T> {
    if (this.#abandoned) throw this.#stopping(operation);
    if (!this.#holding)
      throw new DmError('NO_TABLE', 'EIO', `Cannot ${verbs[operation]} ${this.name}: it has no live table`);
    return new Promise<unknown>((resolve, reject) => {
      this.#held.push({ operation, at, length, buffer, start, mayUnmap, resolve, reject });
    }) as Promise<T>;
  }

  #stopping(operation: Operation): DmError {
    return new DmError('SHUTDOWN', 'ESHUTDOWN', `Cannot ${verbs[operation]} ${this.name}: the mapper is stopping`);
  }

  #submit({ operation, at, length, buffer, start, mayUnmap }: Held): Maybe<unknown> {
    switch (operation) {
      case 'read':
      case 'write':
        return this[operation](at, buffer, start, length);
      case 'flush':
        return this.flush();
      case 'writeZeroes':
        return this.writeZeroes(at, length, mayUnmap);
      default:
        return this[operation](at, length);
    }
  }

  #track<T>(wait: Promise<T>): Promise<T> {
    this.#inFlight++;
    return wait.then(this.#completed, this.#failed) as Promise<T>;
  }

  readonly #completed = (value: unknown): unknown => {
    if (--this.#inFlight === 0) this.#drained?.();
    return value;
  };

  readonly #failed = (error: unknown): never => {
    if (--this.#inFlight === 0) this.#drained?.();
    throw error;
  };
}

const verbs: Record<Operation, string> = {
  read: 'read',
  write: 'write to',
  flush: 'flush',
  discard: 'discard on',
  writeZeroes: 'write zeroes to',
  extents: 'list the extents of',
  changed: 'compare',
};

const readOnly = (name: string) => new DmError('READ_ONLY', 'EPERM', `Cannot write to ${name}: it is read-only`);
