/**
 * Who has to be asked before an origin is written. The link between an origin and its snapshots is the identity of the
 * underlying device, nothing else, as in the kernel; devices are opened once, so the object is the identity.
 */
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { every } from '../../lib/parts.ts';
import type { Bytes } from '../../units.ts';
import type { Exceptions } from './exceptions.ts';

/** A snapshot table, registered from load to removal. */
export interface Member {
  readonly cow: BlockDevice;
  /** Absent while the table waits to take over another one's. */
  readonly exceptions: Exceptions | undefined;
  /** Has been resumed. */
  readonly active: boolean;
  /** Its exceptions go to the origin: nobody copies for it. Else writers of the origin do, once it is active. */
  readonly merging: boolean;
  /** Bytes of the snapshot's table; what lies behind is not copied. */
  readonly size: Bytes;
}

export class Origin {
  readonly device: BlockDevice;
  /** The largest chunks first, then in order of registration. */
  #members: Member[] = [];
  /** Those that go to the device below now. */
  #writers = new Writers();
  #settling: Promise<unknown> = Promise.resolve();

  constructor(device: BlockDevice) {
    this.device = device;
  }

  get members(): readonly Member[] {
    return this.#members;
  }

  add(member: Member): void {
    this.#members.push(member);
    this.sort();
  }

  remove(member: Member): void {
    this.#members = this.#members.filter((other) => other !== member);
  }

  /** After a member took over exceptions, whose chunks may be larger. */
  sort(): void {
    this.#members.sort((a, b) => (b.exceptions?.chunkBytes ?? 0) - (a.exceptions?.chunkBytes ?? 0));
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    const wait = this.#protect(at, length);
    if (wait) return this.#later(wait, at, length, () => this.device.write(at, from, start, length));
    return this.#count(this.device.write(at, from, start, length));
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    const wait = this.#protect(at, length);
    if (wait) return this.#later(wait, at, length, () => this.device.writeZeroes(at, length, mayUnmap));
    return this.#count(this.device.writeZeroes(at, length, mayUnmap));
  }

  /** As a write of what `source` has at `from`. Resolves with false when there is no way but to read and write it. */
  async copyFrom(source: BlockDevice, from: Bytes, at: Bytes, length: number): Promise<boolean> {
    const { device } = this;
    if (!device.copyFrom) return false;
    let copied = false;
    const copy = async () => {
      copied = await device.copyFrom!(source, from, at, length);
    };
    const wait = this.#protect(at, length);
    await (wait ? this.#later(wait, at, length, copy) : this.#count(copy()));
    return copied;
  }

  /** Copies out, durably, what writes of `length` bytes at `at` would destroy. Nothing to wait for if nothing is to be done. */
  prepare(at: Bytes, length: number): Maybe {
    const wait = this.#protect(at, length);
    if (wait) return this.#later(wait, at, length, () => {});
  }

  /** Resolves when the writes that passed before a snapshot became active are on the device below. */
  async settled(): Promise<void> {
    if (this.#writers.count > 0) {
      this.#settling = Promise.all([this.#settling, this.#writers.drained()]);
      this.#writers = new Writers();
    }
    await this.#settling;
  }

  #protect(at: Bytes, length: number): Promise<void> | undefined {
    let waits: Promise<void>[] | undefined;
    for (const { active, merging, exceptions, size } of this.#members) {
      if (!active || merging || !exceptions || at >= size) continue;
      const wait = exceptions.protect(at, Math.min(length, size - at));
      if (wait) (waits ??= []).push(wait);
    }
    return waits && (waits.length === 1 ? waits[0] : every(waits));
  }

  /** Asks again after each wait: a copy has to be committed, a snapshot may have been added. */
  async #later(first: Promise<void>, at: Bytes, length: number, write: () => Maybe): Promise<void> {
    for (let wait: Promise<void> | undefined = first; wait; wait = this.#protect(at, length)) await wait;
    await this.#count(write());
  }

  #count(wait: Maybe): Maybe {
    if (!wait) return;
    const { end } = this.#writers;
    this.#writers.count++;
    wait.then(end, end);
    return wait;
  }
}

/** Writes of which the end can be awaited, however many begin after them. */
class Writers {
  count = 0;
  #idle: (() => void) | undefined;

  readonly end = () => {
    if (--this.count === 0) this.#idle?.();
  };

  /** `count` is above 0, and no write joins these any more. */
  drained(): Promise<void> {
    return new Promise((resolve) => (this.#idle = resolve));
  }
}

const origins = new WeakMap<BlockDevice, Origin>();

export function originOf(device: BlockDevice): Origin {
  let origin = origins.get(device);
  if (!origin) origins.set(device, (origin = new Origin(device)));
  return origin;
}

/** The tables over one COW device, of any origin. */
export const cowUsers = new WeakMap<BlockDevice, Origin>();
