/**
 * The background of a `snapshot-merge`: exceptions go back to the origin, those at the end of the list first, a batch of
 * some MiB at a time (Linux `dm-snap.c`, `snapshot_merge_next_chunks`; there a batch is one run of neighbours).
 *
 *     1  window                          writes to the batch's chunks wait from here on
 *     2  other snapshots have copies     of what the batch will overwrite, durably
 *     3  writes under way have ended     those to the batch's chunks on the COW device: they are part of what is copied
 *     4  COW device -> origin            reads still find the chunks on the COW device
 *     5  origin flushed
 *     6  exceptions off the list         durably: reads find the chunks on the origin
 *     7  window                          what waited goes to the origin
 *
 * Cut off before 6, the batch is copied again when the store is opened: its chunks are still on the COW device, and
 * nobody has written to them on the origin. Cut off within 6, each exception is in the list or not, and either is right.
 *
 * Whatever fails ends the merge, until the device is suspended and resumed. If it was step 6, nobody knows which
 * exceptions the disk still has, so that neither place would keep a write: those to the window fail until it succeeds.
 */
import { setImmediate } from 'node:timers/promises';
import type { Maybe } from '../../device/block-device.ts';
import { DmError, ioError } from '../../errors.ts';
import { every } from '../../lib/parts.ts';
import type { PersistentStore } from '../../stores/exception/persistent.ts';
import type { Run } from '../../stores/exception/store.ts';
import { bytes } from '../../units.ts';
import type { Exceptions } from './exceptions.ts';
import type { Origin } from './origins.ts';
import { TrackedReads } from './tracked-reads.ts';

/** Pieces under way: one is read while another is written, and threads are left for everybody else. */
const PIECES = 2;
/** Bytes written at once before other requests get their turn. */
const TURN = 256 * 1024;

/** Neighbours on the COW device, in bytes, and where their parts go; parts and runs from the end backwards. */
interface Piece {
  from: number;
  length: number;
  parts: { run: number; from: number; to: number; length: number }[];
}

interface Failed {
  run: number;
  error: unknown;
}

export class Merging {
  /** Bytes of a batch, but at least a chunk: what a writer may have to wait for. Tests make it small. */
  static batch = 32 * 1024 * 1024;
  /** Bytes read from the COW device at once. Tests make it small. */
  static piece = 4 * 1024 * 1024;
  /** What ended the merge before its time, if anything ever did. */
  failure: Error | undefined;
  /** The same, of the last time it was begun. */
  fault: Error | undefined;
  #store: PersistentStore;
  #exceptions: Exceptions;
  #origin: Origin;
  #size: number;
  /** Old chunks of the batch. */
  #window = new Set<number>();
  #closed: Promise<void> = Promise.resolve();
  #open: () => void = () => {};
  /** Writes that are on their way to the COW device. */
  #writes = new TrackedReads();
  /** Exceptions of which step 6 failed. */
  #unfinished = 0;
  #stopping = false;
  #running: Promise<void> | undefined;
  #buffers: Uint8Array[] = [];

  constructor(store: PersistentStore, exceptions: Exceptions, origin: Origin) {
    this.#store = store;
    this.#exceptions = exceptions;
    this.#origin = origin;
    this.#size = store.layout.chunkBytes;
  }

  /** Begins, or goes on. */
  start(): void {
    this.#stopping = false;
    if (this.#running) return;
    if (this.#unfinished > 0) this.#close();
    this.fault = undefined;
    this.#running = this.#run();
  }

  /** No further batch begins. */
  stop(): void {
    this.#stopping = true;
  }

  async stopped(): Promise<void> {
    this.stop();
    await this.#running;
  }

  /** Before anybody else uses the store. Rejects if it is still not known which exceptions are on the disk. */
  async finish(): Promise<void> {
    await this.stopped();
    if (this.#unfinished > 0) await this.#remove(this.#unfinished);
    this.#release();
  }

  /** Some writes have to wait. */
  get busy(): boolean {
    return this.#window.size > 0;
  }

  /** What a write to `oldChunk`, which has an exception, has to wait for before it asks again where to go. */
  hold(oldChunk: number): Promise<void> | undefined {
    if (!this.#window.has(oldChunk)) return undefined;
    if (this.#unfinished > 0 && !this.#running)
      throw ioError(`Cannot write: the merge failed on ${this.#exceptions.cow.name} in the middle of these chunks`);
    return this.#closed;
  }

  /** A write to the COW device, into old chunks up to `last`, that takes its time. */
  track(first: number, last: number, wait: Promise<void>): void {
    this.#writes.add(first, last, wait);
  }

  async #run(): Promise<void> {
    try {
      await setImmediate();
      if (this.#unfinished > 0) {
        await this.#remove(this.#unfinished);
        this.#release();
      }
      while (!this.#stopping && (await this.#batch()));
    } catch (error) {
      this.failure = error as Error;
      this.fault = this.failure;
    } finally {
      this.#running = undefined;
      this.#buffers = [];
      this.#release();
    }
  }

  /** False: nothing is left to merge. */
  async #batch(): Promise<boolean> {
    const runs = await this.#store.lastRuns(Math.max(1, Math.floor(Merging.batch / this.#size)));
    if (runs.length === 0) return false;
    this.#close();
    for (const { oldChunk, count } of runs) for (let i = 0; i < count; i++) this.#window.add(oldChunk + i);
    const pieces = this.#pieces(runs);
    await this.#others(pieces);
    await every(runs.map(({ oldChunk, count }) => this.#writes.on(oldChunk, oldChunk + count - 1)).filter(isPromise));
    const failed = await this.#copy(pieces);
    const merged = runs.slice(0, failed?.run).reduce((sum, { count }) => sum + count, 0);
    if (merged > 0) {
      await this.#origin.device.flush();
      await this.#remove(merged);
    }
    if (failed) throw failed.error;
    this.#release();
    return true;
  }

  async #others(pieces: readonly Piece[]): Promise<void> {
    const waits: Promise<void>[] = [];
    for (const { parts } of pieces)
      for (const { to, length } of parts) {
        const wait = this.#origin.prepare(bytes(to), length);
        if (wait) waits.push(wait);
      }
    await every(waits);
  }

  async #remove(count: number): Promise<void> {
    this.#unfinished = count;
    await this.#store.removeLast(count);
    this.#unfinished = 0;
  }

  #close(): void {
    this.#closed = new Promise((open) => (this.#open = open));
  }

  #release(): void {
    if (this.#unfinished === 0) this.#window.clear();
    this.#open();
  }

  #pieces(runs: readonly Run[]): Piece[] {
    const pieces: Piece[] = [];
    const end = this.#exceptions.origin.size;
    runs.forEach(({ oldChunk, newChunk, count }, run) => {
      const start = oldChunk * this.#size;
      if (start + (count - 1) * this.#size >= end)
        throw new DmError(
          'MERGE_BEYOND',
          'EIO',
          `Cannot merge chunk ${oldChunk + count - 1}: it lies beyond the origin ${this.#exceptions.origin.name} of ${end} bytes`,
          {
            hint: 'the COW device belongs to another origin, or the origin was made shorter',
          },
        );
      const shift = newChunk * this.#size - start;
      for (let stop = Math.min(start + count * this.#size, end); stop > start; ) {
        const to = Math.max(start, stop - Merging.piece);
        this.#join(pieces, { run, from: to + shift, to, length: stop - to });
        stop = to;
      }
    });
    return pieces;
  }

  #join(pieces: Piece[], part: Piece['parts'][number]): void {
    const last = pieces.at(-1);
    if (last && part.from + part.length === last.from && last.length + part.length <= Merging.piece) {
      last.from = part.from;
      last.length += part.length;
      last.parts.push(part);
    } else pieces.push({ from: part.from, length: part.length, parts: [part] });
  }

  /** Resolves with the first run, from the end, that could not be copied; those before it are on the origin. */
  async #copy(pieces: readonly Piece[]): Promise<Failed | undefined> {
    const failures: Failed[] = [];
    // The other way round, as disks read ahead.
    let next = pieces.length;
    const work = async (buffer: Uint8Array) => {
      while (next > 0) {
        const failed = await this.#try(pieces[--next], buffer);
        if (failed) failures.push(failed);
      }
    };
    const length = Math.max(...pieces.map((piece) => piece.length));
    while (this.#buffers.length < PIECES) this.#buffers.push(new Uint8Array(0));
    this.#buffers = this.#buffers.map((buffer) => (buffer.length < length ? new Uint8Array(length) : buffer));
    await Promise.all(this.#buffers.slice(0, pieces.length).map(work));
    return failures.sort((a, b) => a.run - b.run)[0];
  }

  /** A piece that fails is repeated part by part: the parts before the bad one can be merged. */
  async #try(piece: Piece, buffer: Uint8Array): Promise<Failed | undefined> {
    const { parts } = piece;
    try {
      await this.#copyPiece(piece, buffer);
    } catch (error) {
      if (parts.length === 1) return { run: parts[0].run, error };
      for (const part of parts) {
        const failed = await this.#try({ from: part.from, length: part.length, parts: [part] }, buffer);
        if (failed) return failed;
      }
    }
    return undefined;
  }

  async #copyPiece(piece: Piece, buffer: Uint8Array): Promise<void> {
    const { from, length, parts } = piece;
    if (await this.#copyWithin(piece)) return;
    await this.#exceptions.cow.read(bytes(from), buffer, 0, length);
    const waits: Promise<void>[] = [];
    let turn = 0;
    try {
      for (const part of parts) {
        const wait: Maybe = this.#origin.write(bytes(part.to), buffer, part.from - from, part.length);
        if (wait) waits.push(wait);
        turn += part.length;
        if (turn < TURN) continue;
        turn = 0;
        await setImmediate();
      }
    } finally {
      // The buffer is the origin's until then.
      await every(waits);
    }
  }

  /** The way that needs no buffer, for parts that are worth a thread. */
  async #copyWithin({ parts }: Piece): Promise<boolean> {
    if (parts.some(({ length }) => length < TURN)) return false;
    for (const { from, to, length } of parts.toReversed())
      if (!(await this.#origin.copyFrom(this.#exceptions.cow, bytes(from), bytes(to), length))) return false;
    return true;
  }
}

const isPromise = (wait: Promise<void> | undefined): wait is Promise<void> => wait !== undefined;
