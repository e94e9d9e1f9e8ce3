/**
 * Reads the log of a log-writes target, entry by entry. Nothing in it is believed before it was compared with the size
 * of the device it lies on.
 */
import type { BlockDevice } from '../../device/block-device.ts';
import { corruptLog, type LogEntry, type LogEntryKind, parseEntry, parseSuper } from '../../formats/log-writes.ts';
import { type Bytes, bytes, SECTOR } from '../../units.ts';

export type { LogEntryKind };

export interface ReadEntry extends LogEntry {
  /** From 0. */
  readonly index: number;
  /** Bytes on the log device. */
  readonly dataAt: Bytes;
}

/** Where an entry begins. */
export interface LogPosition {
  /** From 0. */
  readonly index: number;
  /** Bytes on the log device. */
  readonly at: number;
}

export class LogReader {
  /** Bytes of a block. */
  readonly blockSize: number;
  /** Entries that the super block counts. */
  readonly entries: number;
  readonly #device: BlockDevice;
  readonly #block: Buffer;
  #position: LogPosition;

  private constructor(device: BlockDevice, blockSize: number, entries: number) {
    this.#device = device;
    this.blockSize = blockSize;
    this.entries = entries;
    this.#block = Buffer.alloc(blockSize);
    this.#position = { index: 0, at: blockSize };
  }

  /** Throws FormatError where there is no log, or one that does not fit on its device. Reads only. */
  static async open(device: BlockDevice): Promise<LogReader> {
    const start = Buffer.alloc(SECTOR);
    if (device.size >= SECTOR) await device.read(bytes(0), start, 0, start.length);
    const head = parseSuper(viewOf(start), device.name);
    const room = Math.floor(device.size / head.blockSize) - 1;
    if (head.entries > Math.max(room, 0))
      throw corruptLog(device.name, `it counts ${head.entries} entries, and has room for ${Math.max(room, 0)}`);
    return new LogReader(device, head.blockSize, head.entries);
  }

  /** Of the entry that `next` reads. */
  get position(): LogPosition {
    return this.#position;
  }

  /** Back, or on, to where `position` once was. */
  seek(position: LogPosition): void {
    this.#position = position;
  }

  /** The next entry; undefined at the end. Throws FormatError for one that cannot be. Reads no data. */
  async next(): Promise<ReadEntry | undefined> {
    const { index, at } = this.#position;
    if (index === this.entries) return undefined;
    const where = `entry ${index} of ${this.#device.name}, at ${at}`;
    const dataAt = at + this.blockSize;
    if (dataAt > this.#device.size) throw corruptLog(where, `the log ends at ${this.#device.size}`);
    await this.#device.read(bytes(at), this.#block, 0, this.blockSize);
    const entry = parseEntry(viewOf(this.#block), this.blockSize, where);
    if (entry.dataBytes > this.#device.size - dataAt)
      throw corruptLog(where, `its ${entry.dataBytes} bytes of data go beyond the log's end at ${this.#device.size}`);
    this.#position = { index: index + 1, at: dataAt + entry.dataBytes };
    return { ...entry, index, dataAt: bytes(dataAt) };
  }

  /** Data of an entry, from its `dataAt` on. */
  async read(at: Bytes, into: Uint8Array, length: number): Promise<void> {
    await this.#device.read(at, into, 0, length);
  }
}

const viewOf = (block: Buffer) => new DataView(block.buffer, block.byteOffset, block.length);
