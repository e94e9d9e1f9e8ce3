/**
 * `snapshot-merge <origin> <COW device> <P|PO> <chunk sectors> [<#features> <feature>…]` (Linux `dm-snap.c`).
 *
 * Loaded in place of `snapshot-origin`, it shows the snapshot from its first moment on, and puts the snapshot's chunks
 * back into the origin until none is left. It makes no exceptions of its own; writes copy for the other snapshots.
 */
import type { Extent, Maybe } from '../../device/block-device.ts';
import { TableError } from '../../errors.ts';
import { every, Parts } from '../../lib/parts.ts';
import { PersistentStore } from '../../stores/exception/persistent.ts';
import { type Bytes, bytes } from '../../units.ts';
import { refuse } from '../arguments.ts';
import type { TableLine, Target, TargetType } from '../target.ts';
import { readArguments } from './arguments.ts';
import type { Exceptions } from './exceptions.ts';
import { runEnd } from './image.ts';
import { Merging } from './merging.ts';
import { SnapshotTable } from './snapshot-table.ts';

const TYPE = 'snapshot-merge';

export const snapshotMerge: TargetType = {
  name: TYPE,
  version: [1, 5, 0],
  writesTo: ([origin]) => origin,
  create,
};

async function create(line: TableLine): Promise<Target> {
  const args = await readArguments(TYPE, line, 'rw');
  if (!args.persistent) throw refuse(TYPE, 'Snapshot exception store does not support snapshot-merge');
  if (args.origin.readOnly)
    throw new TableError(
      'TABLE_DEVICE',
      'EACCES',
      `${TYPE}: Cannot get origin device: ${args.origin.name} is read-only`,
    );
  return new SnapshotMerge(snapshotMerge, line, args).open();
}

class SnapshotMerge extends SnapshotTable implements Target {
  readonly merging = true;
  #merging: Merging | undefined;

  /** Why the merge stopped. Unlike the status, nothing once it has been begun again. */
  override get note(): string | undefined {
    const fault = this.#merging?.fault;
    return fault ? `merging failed: ${fault.message}` : super.note;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    const from = bytes(at + this.shift);
    return (this.#mapped?.io ?? this.origin.device).read(from, into, start, length);
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    const to = bytes(at + this.shift);
    if (!this.#mapped) return this.origin.write(to, from, start, length);
    return this.#put(to, from, start, length, false);
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    const to = bytes(at + this.shift);
    if (!this.#mapped) return this.origin.writeZeroes(to, length, mayUnmap);
    return this.#put(to, undefined, 0, length, mayUnmap);
  }

  /** Success without effect, as the kernel has it. */
  discard(): void {}

  flush(): Maybe {
    if (!this.#mapped) return this.origin.device.flush();
    const parts = new Parts();
    for (const device of [this.origin.device, this.cow]) parts.try(() => device.flush());
    return parts.done();
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    const from = bytes(at + this.shift);
    return (this.#mapped?.io ?? this.origin.device).extents(from, length);
  }

  override presuspend(): void {
    super.presuspend();
    this.#merging?.stop();
  }

  override presuspendUndo(): void {
    super.presuspendUndo();
    this.#merging?.start();
  }

  override async postsuspend(): Promise<void> {
    await this.#merging?.stopped();
    await super.postsuspend();
  }

  override resume(): void {
    super.resume();
    const { exceptions } = this;
    if (exceptions?.store.valid && exceptions.store instanceof PersistentStore)
      this.#merging ??= new Merging(exceptions.store, exceptions, this.origin);
    this.#merging?.start();
  }

  override async close(): Promise<void> {
    await this.#merging?.stopped();
    await super.close();
  }

  protected override get mergeFailed(): boolean {
    return this.#merging?.failure !== undefined;
  }

  protected override async release(): Promise<void> {
    await this.#merging?.finish();
    this.#merging = undefined;
  }

  /** Absent: the snapshot is invalid or has another table, and the origin is all there is. */
  get #mapped(): Exceptions | undefined {
    return this.exceptions?.store.valid ? this.exceptions : undefined;
  }

  /** Zeroes if `from` is absent. */
  #put(at: number, from: Uint8Array | undefined, start: number, length: number, mayUnmap: boolean): Maybe {
    const { store, chunkBytes } = this.live();
    const merging = this.#merging!;
    const end = at + length;
    let waits: Promise<void>[] | undefined;
    try {
      while (at < end) {
        const first = Math.floor(at / chunkBytes);
        const newChunk = store.lookup(first);
        // A batch may begin or end at any chunk.
        const alone = newChunk >= 0 && merging.busy;
        const stop = alone ? (first + 1) * chunkBytes : runEnd(store, first, newChunk, end);
        const count = Math.min(stop, end) - at;
        const wait = this.#putRun(first, newChunk, at, from, start, count, mayUnmap);
        at += count;
        start += count;
        if (wait) {
          if (at === end && !waits) return wait;
          waits ??= [];
          waits.push(wait);
        }
      }
    } catch (error) {
      if (!waits) throw error;
      waits.push(Promise.reject(error));
    }
    if (waits) return every(waits);
  }

  #putRun(
    first: number,
    newChunk: number,
    at: number,
    from: Uint8Array | undefined,
    start: number,
    count: number,
    mayUnmap: boolean,
  ): Maybe {
    const { chunkBytes } = this.live();
    if (newChunk < 0) {
      const to = bytes(at);
      return from ? this.origin.write(to, from, start, count) : this.origin.writeZeroes(to, count, mayUnmap);
    }
    const merging = this.#merging!;
    const wait = merging.hold(first);
    if (wait) return wait.then(() => this.#put(at, from, start, count, mayUnmap));
    const to = bytes(newChunk * chunkBytes + at - first * chunkBytes);
    const written = from ? this.cow.write(to, from, start, count) : this.cow.writeZeroes(to, count, mayUnmap);
    if (written) merging.track(first, Math.floor((at + count - 1) / chunkBytes), written);
    return written;
  }
}
