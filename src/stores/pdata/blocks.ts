/**
 * The blocks of a metadata device, in memory as far as they are needed (Linux `dm-block-manager.c`).
 *
 * A metadata operation is a function that finds the blocks it needs in memory, and runs to its end or not at all. When it
 * asks for one that is not there, or fails, everything it has changed is put back as it was; a missing block is then
 * read, and the operation runs again. So between two turns of the event loop metadata is always whole, nothing has to be
 * locked, and an operation that finds no space leaves no trace.
 *
 * Nothing is overwritten in place: what an operation changes is new since the last commit (`transaction.ts`), so it does not
 * matter when before the next superblock it is written.
 */
import { setImmediate as turn } from 'node:timers/promises';
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { FormatError } from '../../errors.ts';
import {
  BLOCK_BYTES,
  type BlockData,
  blockData,
  isSealed,
  type Kind,
  numberOf,
  seal,
} from '../../formats/pdata/block.ts';
import { bytes } from '../../units.ts';

/** Memory that an operation may change, of a block's size at most. */
export interface Cell {
  readonly bytes: Uint8Array;
  /** The operation that changed it last. */
  changedBy: number;
}

/** Numbers that an operation may change, like a block. */
export class Numbers implements Cell {
  readonly numbers: Float64Array;
  readonly bytes: Uint8Array;
  changedBy = 0;

  constructor(count: number) {
    this.numbers = new Float64Array(count);
    this.bytes = new Uint8Array(this.numbers.buffer);
  }
}

export interface Block extends BlockData, Cell {
  readonly number: number;
  kind: Kind;
  /** Differs from what is on the device. */
  dirty: boolean;
  /** Asked for since the last search for one to drop. */
  recent: boolean;
}

/** What a cell held before the operation that runs. */
interface Saved {
  cell: Cell;
  readonly bytes: Uint8Array;
  /** Of a block. */
  kind: Kind | undefined;
  dirty: boolean;
}

/** Thrown by an operation: blocks are not in memory. The first one it cannot do without. */
class Missing {
  numbers: readonly number[] = [];
  kind!: Kind;
}
const missing = new Missing();

/** Blocks in memory that are as on the device, at most: 32 MiB. */
const CLEAN_MAX = 8192;
/** Blocks written in one go, and bytes on their way at once. */
const RUN_MAX = 64;
const WRITING_MAX = 8 * 2 ** 20;
/** Blocks that are written before the event loop has its turn: a third of a millisecond, most of it for checksums. */
const SLICE = 64;
/** Copies of cells that are kept for the operations to come. */
const SAVED_MAX = 64;
/** Memory of blocks that is kept for those to come: what is allocated outside of the heap is dear. */
const SPARE_MAX = 256;

export class Blocks {
  readonly device: BlockDevice;
  readonly #blocks = new Map<number, Block>();
  /** Those that a commit has to write. */
  readonly #dirty = new Set<Block>();
  /** Being read. What is made anew or forgotten meanwhile is taken out: what was read of it is of yesterday. */
  readonly #reads = new Map<number, Promise<void>>();
  /** Of the operation that runs, or ran last. */
  #operation = 0;
  #running = false;
  /** The first `#savedCount` are of the operation that runs. */
  readonly #saved: Saved[] = [];
  #savedCount = 0;
  readonly #made: Block[] = [];
  readonly #undo: (() => void)[] = [];
  readonly #spare: BlockData[] = [];
  /** For blocks that are written together, but for while they are. */
  #together: Uint8Array | undefined = undefined;

  constructor(device: BlockDevice) {
    this.device = device;
  }

  /** Blocks that a commit has to write. */
  get dirty(): number {
    return this.#dirty.size;
  }

  /** Which operation runs, or ran last. */
  get operation(): number {
    return this.#operation;
  }

  /** Called when an operation is undone: puts back what is not in a cell. */
  onUndo(undo: () => void): void {
    this.#undo.push(undo);
  }

  /**
   * Carries out an operation, which must not do anything that is not in cells, unless nothing can fail after it. Operations that
   * wait for a block let others run: who needs an order sees to it.
   */
  run<T>(operation: () => T): Maybe<T> {
    try {
      return this.#attempt(operation);
    } catch (error) {
      return this.again(error, () => this.#attempt(operation));
    }
  }

  /** For an operation that changes nothing and threw `error`: reads what it missed, and lets it run again. Else throws `error`. */
  again<T>(error: unknown, operation: () => T): Promise<T> {
    if (error !== missing) throw error;
    return this.#again(operation);
  }

  async #again<T>(operation: () => T): Promise<T> {
    for (;;) {
      const { kind, numbers } = missing;
      const ahead = numbers.slice(1).map((number) => this.load(number, kind));
      // Who needs one of these will ask for it, and hears of its error then.
      for (const read of ahead) read.catch(() => {});
      await this.load(numbers[0], kind);
      await Promise.allSettled(ahead);
      try {
        return operation();
      } catch (error) {
        if (error !== missing) throw error;
      }
    }
  }

  #attempt<T>(operation: () => T): T {
    if (this.#running) throw new Error('an operation within an operation');
    this.#running = true;
    this.#operation++;
    this.#savedCount = 0;
    this.#made.length = 0;
    try {
      return operation();
    } catch (error) {
      this.#putBack();
      throw error;
    } finally {
      this.#running = false;
      if (this.#saved.length > SAVED_MAX) this.#saved.length = SAVED_MAX;
    }
  }

  #putBack(): void {
    for (const block of this.#made) {
      this.#blocks.delete(block.number);
      this.#dirty.delete(block);
    }
    for (let i = 0; i < this.#savedCount; i++) {
      const { cell, bytes, kind, dirty } = this.#saved[i];
      cell.bytes.set(bytes.length === cell.bytes.length ? bytes : bytes.subarray(0, cell.bytes.length));
      cell.changedBy = 0;
      if (!kind) continue;
      const block = cell as Block;
      block.kind = kind;
      block.dirty = dirty;
      if (!dirty) this.#dirty.delete(block);
    }
    for (const undo of this.#undo) undo();
  }

  /** To be called before the operation that runs changes a cell. */
  change(cell: Cell): void {
    if (cell.changedBy === this.#operation) return;
    cell.changedBy = this.#operation;
    const block = cell as Partial<Block>;
    const saved = (this.#saved[this.#savedCount++] ??= {
      cell,
      bytes: new Uint8Array(BLOCK_BYTES),
      kind: undefined,
      dirty: false,
    });
    saved.cell = cell;
    saved.bytes.set(cell.bytes);
    saved.kind = block.kind;
    saved.dirty = block.dirty ?? false;
    if (!block.kind || block.dirty) return;
    block.dirty = true;
    this.#dirty.add(cell as Block);
  }

  /** A block that is in memory. Throws what ends the operation when it is not. */
  get(number: number, kind: Kind): Block {
    const block = this.#blocks.get(number);
    if (!block) throw miss([number], kind);
    if (block.kind !== kind)
      throw new FormatError(
        'METADATA_KIND',
        'EINVAL',
        `Metadata block ${number} is a ${block.kind.name} and a ${kind.name}`,
      );
    block.recent = true;
    return block;
  }

  has(number: number): boolean {
    return this.#blocks.has(number);
  }

  /** Of these, those that are not in memory are read together, once for all. */
  need(numbers: readonly number[], kind: Kind): void {
    const absent = numbers.filter((number) => !this.#blocks.has(number));
    if (absent.length > 0) throw miss(absent, kind);
  }

  /** A block of zeroes, whatever it was, for the operation that runs to fill. */
  fresh(number: number, kind: Kind): Block {
    let block = this.#blocks.get(number);
    if (block) {
      this.change(block);
      block.kind = kind;
      block.bytes.fill(0);
    } else {
      const { bytes, view } = this.#spare.pop() ?? blockData();
      bytes.fill(0);
      block = { bytes, view, number, kind, dirty: true, recent: true, changedBy: this.#operation };
      this.#reads.delete(number);
      this.#blocks.set(number, block);
      this.#dirty.add(block);
      this.#made.push(block);
    }
    return block;
  }

  /** Nothing leads to a block any more. */
  forget(number: number): void {
    const block = this.#blocks.get(number);
    if (!block || block.dirty) return;
    this.#blocks.delete(number);
    if (this.#spare.length < SPARE_MAX) this.#spare.push(block);
  }

  /**
   * Reads and checks a block, unless it is in memory; it may be gone again when this resolves. Rejects with FormatError (EINVAL:
   * there is no such block, ENOTBLK, EILSEQ) or what the device says.
   */
  async load(number: number, kind: Kind): Promise<void> {
    if (this.#blocks.has(number)) return;
    const known = this.#reads.get(number);
    if (known) return known;
    // Known before it begins, so that it sees whether it is still wanted.
    const read: Promise<void> = Promise.resolve().then(() =>
      this.#read(number, kind, () => this.#reads.get(number) === read),
    );
    this.#reads.set(number, read);
    try {
      await read;
    } finally {
      if (this.#reads.get(number) === read) this.#reads.delete(number);
    }
  }

  async #read(number: number, kind: Kind, wanted: () => boolean): Promise<void> {
    if ((number + 1) * BLOCK_BYTES > this.device.size)
      throw new FormatError(
        'METADATA_BLOCK',
        'EINVAL',
        `Block ${number} of the metadata on ${this.device.name}, referred to as ${kind.name}, lies beyond its end`,
      );
    const data = blockData();
    const wait = this.device.read(bytes(number * BLOCK_BYTES), data.bytes, 0, BLOCK_BYTES);
    if (wait) await wait;
    if (!wanted()) return;
    checkBlock(data, number, kind, this.device.name);
    this.#makeRoom();
    this.#blocks.set(number, { ...data, number, kind, dirty: false, recent: true, changedBy: 0 });
  }

  #makeRoom(): void {
    if (this.#blocks.size - this.#dirty.size < CLEAN_MAX) return;
    // Those that nobody asked for since the last time, a quarter at most.
    let left = CLEAN_MAX / 4;
    for (const block of this.#blocks.values()) {
      if (block.dirty) continue;
      if (!block.recent) {
        this.#blocks.delete(block.number);
        if (--left === 0) return;
      }
      block.recent = false;
    }
  }

  /**
   * Writes what differs from the device, but for `except`, in order, neighbours together. Flushes nothing. Nothing may be changed
   * until it resolves.
   */
  async write(except?: number): Promise<void> {
    const dirty: Block[] = [];
    for (const block of this.#dirty) if (block.number !== except) dirty.push(block);
    dirty.sort((a, b) => a.number - b.number);
    let writing: Promise<void>[] = [];
    let length = 0;
    let slice = 0;
    try {
      for (let i = 0; i < dirty.length; ) {
        let end = i + 1;
        while (end < i + RUN_MAX && dirty[end]?.number === dirty[i].number + end - i) end++;
        const wait = this.#writeRun(dirty, i, end);
        if (wait) writing.push(wait);
        length += (end - i) * BLOCK_BYTES;
        if (length >= WRITING_MAX) {
          await Promise.all(writing);
          writing = [];
          length = 0;
        }
        slice += end - i;
        if (slice >= SLICE && end < dirty.length) {
          await turn();
          slice = 0;
        }
        i = end;
      }
    } finally {
      // None may still be on its way when this has failed.
      await Promise.allSettled(writing);
    }
    await Promise.all(writing);
    for (const block of dirty) this.#clean(block);
  }

  #writeRun(dirty: readonly Block[], begin: number, end: number): Maybe {
    const { number, bytes: first } = dirty[begin];
    for (let i = begin; i < end; i++) seal(dirty[i], dirty[i].number, dirty[i].kind);
    const at = bytes(number * BLOCK_BYTES);
    if (end === begin + 1) return this.device.write(at, first, 0, BLOCK_BYTES);
    const buffer = this.#together ?? new Uint8Array(RUN_MAX * BLOCK_BYTES);
    this.#together = undefined;
    for (let i = begin; i < end; i++) buffer.set(dirty[i].bytes, (i - begin) * BLOCK_BYTES);
    const wait = this.device.write(at, buffer, 0, (end - begin) * BLOCK_BYTES);
    if (!wait) this.#together = buffer;
    return wait?.finally(() => void (this.#together = buffer));
  }

  #clean(block: Block): void {
    block.dirty = false;
    this.#dirty.delete(block);
  }

  /** Writes one block. */
  async writeOne(block: Block): Promise<void> {
    seal(block, block.number, block.kind);
    const wait = this.device.write(bytes(block.number * BLOCK_BYTES), block.bytes, 0, BLOCK_BYTES);
    if (wait) await wait;
    this.#clean(block);
  }

  /** Forgets everything, also what was changed since it was written, and takes what `others` have, which are not used any more. */
  become(others: Blocks): void {
    this.#blocks.clear();
    this.#dirty.clear();
    this.#reads.clear();
    for (const block of others.#blocks.values()) this.#blocks.set(block.number, block);
  }
}

function miss(numbers: readonly number[], kind: Kind): Missing {
  missing.numbers = numbers;
  missing.kind = kind;
  return missing;
}

/** Throws FormatError: ENOTBLK for a block of another number, EILSEQ for what its kind does not allow. */
export function checkBlock(data: BlockData, number: number, kind: Kind, name: string): void {
  const wrong = (errno: 'ENOTBLK' | 'EILSEQ', what: string) =>
    new FormatError('METADATA_BLOCK', errno, `Block ${number} of the metadata on ${name} is no ${kind.name}: ${what}`, {
      hint: 'check it with `dmkit thin check`',
    });
  if (numberOf(data) !== number) throw wrong('ENOTBLK', `it bears the number ${numberOf(data)}`);
  if (!isSealed(data, kind)) throw wrong('EILSEQ', 'its checksum is wrong');
  const fault = kind.fault?.(data);
  if (fault) throw wrong('EILSEQ', fault);
}
