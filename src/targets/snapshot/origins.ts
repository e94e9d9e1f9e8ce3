/**
 * Who has to be asked before an origin is written. The link between an origin and its snapshots is the identity of the
 * underlying device, nothing else, as in the kernel; devices are opened once, so the object is the identity.
 */
import { setImmediate } from 'node:timers/promises';
import type { BlockDevice, Extent, Maybe } from '../../device/block-device.ts';
import { every } from '../../lib/parts.ts';
import { type Bytes, bytes } from '../../units.ts';
import { type Copied, copyBatch, type Range } from './copy-batch.ts';
import type { Exceptions } from './exceptions.ts';
import { OriginBuffer } from './origin-buffer.ts';

/** Questions to snapshots that are asked before others get their turn. */
const TURN = 1024;

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
  /** What `snapshot-origin` targets have written and nobody has flushed. */
  readonly #buffer: OriginBuffer;
  /** Those targets. */
  #users = 0;

  constructor(device: BlockDevice) {
    this.device = device;
    this.#buffer = new OriginBuffer(device, (ranges, progress) => this.#secure(ranges, progress));
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

  /** A `snapshot-origin` target has come to be. */
  open(): void {
    this.#users++;
  }

  /** It goes. With the last one goes what could not be written; a flush has told of it. */
  async close(): Promise<void> {
    if (--this.#users === 0) await this.#buffer.abandon();
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    if (this.#buffer.empty) return this.device.read(at, into, start, length);
    return this.#buffer.read(at, into, start, length);
  }

  /** As `write`, but may be acknowledged from memory: `flush` makes it durable, `read` finds it. */
  writeBehind(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    const buffer = this.#buffer;
    const behind = !buffer.empty && buffer.overlaps(at, length);
    if (!behind && this.#isProtected(at, length)) return this.#count(this.device.write(at, from, start, length));
    // A merge reads and writes the origin by itself: nothing is held back from it.
    if (this.#members.some(isMerge)) return this.write(at, from, start, length);
    if (buffer.put(at, from, start, length)) return;
    const room = buffer.room(length);
    if (room) return room.then(() => this.writeBehind(at, from, start, length));
    if (behind) return this.#behind(() => this.write(at, from, start, length));
    return this.write(at, from, start, length);
  }

  writeZeroesBehind(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    if (this.#buffer.empty || !this.#buffer.overlaps(at, length)) return this.writeZeroes(at, length, mayUnmap);
    return this.#behind(() => this.writeZeroes(at, length, mayUnmap));
  }

  /**
   * A write that comes behind what is in memory. Nothing is added there meanwhile: who always did so could hold it up
   * for ever.
   */
  async #behind(write: () => Maybe): Promise<void> {
    await this.#buffer.close();
    try {
      await write();
    } finally {
      this.#buffer.reopen();
    }
  }

  flush(): Maybe {
    if (this.#buffer.empty) return this.device.flush();
    return this.#buffer.drained().then(() => this.device.flush());
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    if (this.#buffer.empty || !this.#buffer.overlaps(at, length)) return this.device.extents(at, length);
    return this.#buffer.drained().then(() => this.device.extents(at, length));
  }

  /** What was acknowledged is on the device below. */
  get isDrained(): boolean {
    return this.#buffer.empty;
  }

  /** The same when this resolves. Rejects with what that device answered. */
  async drain(): Promise<void> {
    await this.#buffer.drained();
  }

  /**
   * What was acknowledged is on the device below when this resolves, and until `reopen` writes wait for their copies again:
   * for those who change who has to be asked.
   */
  async emptied(): Promise<void> {
    await this.#buffer.close();
  }

  reopen(): void {
    this.#buffer.reopen();
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

  /**
   * Copies out, durably, what writes of `length` bytes at `at` would destroy. Nothing to wait for if nothing is to be
   * done.
   */
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

  /** Nobody has to be asked. */
  #isProtected(at: Bytes, length: number): boolean {
    const members = this.#members;
    for (let i = 0; i < members.length; i++) {
      const member = members[i];
      if (!copies(member) || at >= member.size) continue;
      if (!member.exceptions.protection.isProtected(at, Math.min(length, member.size - at))) return false;
    }
    return true;
  }

  #protect(at: Bytes, length: number): Promise<void> | undefined {
    let waits: Promise<void>[] | undefined;
    for (const member of this.#members) {
      if (!copies(member) || at >= member.size) continue;
      const wait = member.exceptions.protection.protect(at, Math.min(length, member.size - at));
      if (wait) (waits ??= []).push(wait);
    }
    return waits && (waits.length === 1 ? waits[0] : every(waits));
  }

  /** Copies out, durably and for all snapshots, what writes to the ranges would destroy. Never rejects. */
  async #secure(ranges: readonly Range[], progress: (part: number) => void): Promise<void> {
    const copying = () => this.#members.filter(copies);
    await copyBatch(this.device, copying, ranges, progress);
    for (let waits: Promise<void>[] | undefined; waits?.length !== 0; ) {
      waits = [];
      let asked = 0;
      for (const { at, length } of ranges) {
        const wait = this.#protect(bytes(at), length);
        if (wait) waits.push(wait);
        asked += this.#members.length;
        if (asked < TURN) continue;
        asked = 0;
        await setImmediate();
      }
      await every(waits);
    }
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

/** Writers of the origin copy for it. */
const copies = (member: Member): member is Member & Copied =>
  member.active && !member.merging && member.exceptions !== undefined;

const isMerge = (member: Member): boolean => member.active && member.merging;

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
