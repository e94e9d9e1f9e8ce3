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

/** Memory that an operation may change. */
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

/** Thrown by an operation: a block is not in memory. */
class Missing {
  number = 0;
  kind!: Kind;
}
const missing = new Missing();

/** Blocks in memory that are as on the device, at most: 32 MiB. */
const CLEAN_MAX = 8192;
/** Blocks written in one go. */
const RUN_MAX = 64;

export class Blocks {
  readonly device: BlockDevice;
  readonly #blocks = new Map<number, Block>();
  #dirty = 0;
  /** Of the operation that runs, or ran last. */
  #operation = 0;
  #running = false;
  /** What cells held before the operation that runs. */
  readonly #before: { cell: Cell; bytes: Uint8Array; kind: Kind | undefined; dirty: boolean }[] = [];
  readonly #made: Block[] = [];
  readonly #undo: (() => void)[] = [];

  constructor(device: BlockDevice) {
    this.device = device;
  }

  /** Blocks that a commit has to write. */
  get dirty(): number {
    return this.#dirty;
  }

  /** Called when an operation is undone: puts back what is not in a cell. */
  onUndo(undo: () => void): void {
    this.#undo.push(undo);
  }

  /** Carries out an operation, which must not do anything that is not in cells. */
  run<T>(operation: () => T): Maybe<T> {
    try {
      return this.#attempt(operation);
    } catch (error) {
      if (error !== missing) throw error;
      return this.#again(operation);
    }
  }

  async #again<T>(operation: () => T): Promise<T> {
    for (;;) {
      await this.load(missing.number, missing.kind);
      try {
        return this.#attempt(operation);
      } catch (error) {
        if (error !== missing) throw error;
      }
    }
  }

  #attempt<T>(operation: () => T): T {
    if (this.#running) return operation();
    this.#running = true;
    this.#operation++;
    this.#before.length = 0;
    this.#made.length = 0;
    try {
      return operation();
    } catch (error) {
      this.#putBack();
      throw error;
    } finally {
      this.#running = false;
    }
  }

  #putBack(): void {
    for (const block of this.#made) {
      this.#blocks.delete(block.number);
      this.#dirty--;
    }
    for (const { cell, bytes, kind, dirty } of this.#before) {
      cell.bytes.set(bytes);
      cell.changedBy = 0;
      if (!kind) continue;
      const block = cell as Block;
      block.kind = kind;
      if (block.dirty && !dirty) this.#dirty--;
      block.dirty = dirty;
    }
    for (const undo of this.#undo) undo();
  }

  /** To be called before the operation that runs changes a cell. */
  change(cell: Cell): void {
    if (cell.changedBy === this.#operation) return;
    cell.changedBy = this.#operation;
    const block = cell as Partial<Block>;
    this.#before.push({ cell, bytes: cell.bytes.slice(), kind: block.kind, dirty: block.dirty ?? false });
    if (block.kind && !block.dirty) {
      block.dirty = true;
      this.#dirty++;
    }
  }

  /** A block that is in memory. Throws what ends the operation when it is not. */
  get(number: number, kind: Kind): Block {
    const block = this.#blocks.get(number);
    if (!block) {
      missing.number = number;
      missing.kind = kind;
      throw missing;
    }
    if (block.kind !== kind)
      throw new FormatError(
        'METADATA_KIND',
        'EINVAL',
        `Metadata block ${number} is a ${block.kind.name} and a ${kind.name}`,
      );
    block.recent = true;
    return block;
  }

  /** A block of zeroes, whatever it was, for the operation that runs to fill. */
  fresh(number: number, kind: Kind): Block {
    let block = this.#blocks.get(number);
    if (block) {
      this.change(block);
      block.kind = kind;
      block.bytes.fill(0);
    } else {
      const data = blockData();
      block = { ...data, number, kind, dirty: true, recent: true, changedBy: this.#operation };
      this.#blocks.set(number, block);
      this.#dirty++;
      this.#made.push(block);
    }
    return block;
  }

  /** Reads and checks a block, unless it is in memory. Rejects with FormatError (ENOTBLK, EILSEQ) or what the device says. */
  async load(number: number, kind: Kind): Promise<Block> {
    const found = this.#blocks.get(number);
    if (found) return found;
    const data = blockData();
    const wait = this.device.read(bytes(number * BLOCK_BYTES), data.bytes, 0, BLOCK_BYTES);
    if (wait) await wait;
    // Somebody else may have been faster.
    const now = this.#blocks.get(number);
    if (now) return now;
    checkBlock(data, number, kind, this.device.name);
    this.#makeRoom();
    const block: Block = { ...data, number, kind, dirty: false, recent: true, changedBy: 0 };
    this.#blocks.set(number, block);
    return block;
  }

  #makeRoom(): void {
    if (this.#blocks.size - this.#dirty < CLEAN_MAX) return;
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

  /** Writes what differs from the device, but for `except`, in order, neighbours together. Flushes nothing. */
  async write(except?: number): Promise<void> {
    const dirty: Block[] = [];
    for (const block of this.#blocks.values()) if (block.dirty && block.number !== except) dirty.push(block);
    dirty.sort((a, b) => a.number - b.number);
    const buffer = new Uint8Array(Math.min(dirty.length, RUN_MAX) * BLOCK_BYTES);
    for (let i = 0; i < dirty.length; ) {
      const first = dirty[i].number;
      let count = 0;
      while (count < RUN_MAX && dirty[i + count]?.number === first + count) {
        const block = dirty[i + count];
        seal(block, block.number, block.kind);
        buffer.set(block.bytes, count * BLOCK_BYTES);
        count++;
      }
      const wait = this.device.write(bytes(first * BLOCK_BYTES), buffer, 0, count * BLOCK_BYTES);
      if (wait) await wait;
      for (const block of dirty.slice(i, i + count)) {
        block.dirty = false;
        this.#dirty--;
      }
      i += count;
    }
  }

  /** Writes one block. */
  async writeOne(block: Block): Promise<void> {
    seal(block, block.number, block.kind);
    const wait = this.device.write(bytes(block.number * BLOCK_BYTES), block.bytes, 0, BLOCK_BYTES);
    if (wait) await wait;
    if (block.dirty) this.#dirty--;
    block.dirty = false;
  }

  /** Forgets everything that was changed since it was written. */
  forget(): void {
    this.#blocks.clear();
    this.#dirty = 0;
  }
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
