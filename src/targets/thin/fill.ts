import type { BlockDevice, Extent, Maybe } from '../../device/block-device.ts';
import { type Bytes, bytes } from '../../units.ts';

/** Bytes of a block that are in memory at once. */
const PIECE = 2 ** 20;
/** Memory that is kept for the next blocks. */
const SPARE_BYTES = 4 * 2 ** 20;

export interface Filling {
  readonly at: Bytes;
  /** What was there before, `inside` bytes of it. */
  readonly source: BlockDevice | undefined;
  readonly from: Bytes;
  readonly inside: number;
  /** Behind that there are zeroes; else it stays as it was on the disk. */
  readonly zero: boolean;
  /** What is written: `count` bytes at `offset`; zeroes if absent. */
  readonly data: Uint8Array | undefined;
  readonly start: number;
  readonly offset: number;
  readonly count: number;
}

/** Writes new blocks of a data device, each byte once: what is written laid over what was there. */
export class Filler {
  readonly #to: BlockDevice;
  /** Of a block. */
  readonly #size: number;
  readonly #spare: Uint8Array[] = [];

  constructor(to: BlockDevice, size: number) {
    this.#to = to;
    this.#size = size;
  }

  fill(filling: Filling): Maybe {
    const { inside, zero, offset, count } = filling;
    // Written whole, it needs nothing from anywhere.
    const last = count === this.#size ? 0 : zero ? this.#size : inside;
    if (last === 0) return this.#write(filling, offset, count);
    if (inside > 0) return this.#lay(filling, last);
    const extents = this.#to.extents(filling.at, this.#size);
    if (extents instanceof Promise) return extents.then((found) => this.#zero(filling, found));
    return this.#zero(filling, extents);
  }

  /** Where the disk holds zeroes already, none are written. */
  #zero(filling: Filling, extents: readonly Extent[]): Maybe {
    let zero = 0;
    for (const extent of extents) if (extent.zero) zero += extent.length;
    return zero >= this.#size ? this.#write(filling, filling.offset, filling.count) : this.#lay(filling, this.#size);
  }

  /** All up to `last`, and what is written behind it. */
  #lay(filling: Filling, last: number): Maybe {
    if (last <= PIECE && filling.offset + filling.count <= last) return this.#piece(filling, 0, last);
    return this.#pieces(filling, last);
  }

  async #pieces(filling: Filling, last: number): Promise<void> {
    for (let from = 0; from < last; from += PIECE) {
      const wait = this.#piece(filling, from, Math.min(PIECE, last - from));
      if (wait) await wait;
    }
    const rest = Math.max(filling.offset, last);
    const end = filling.offset + filling.count;
    if (rest < end) await this.#write(filling, rest, end - rest);
  }

  /** `length` bytes of the block, from `from` on. */
  #piece(filling: Filling, from: number, length: number): Maybe {
    const { source, inside } = filling;
    const buffer = this.#spare.pop() ?? new Uint8Array(Math.min(PIECE, this.#size));
    const there = Math.max(0, Math.min(length, inside - from));
    let wait: Maybe;
    try {
      const read = there > 0 ? source!.read(bytes(filling.from + from), buffer, 0, there) : undefined;
      wait = read
        ? read.then(() => this.#layPiece(filling, buffer, from, there, length))
        : this.#layPiece(filling, buffer, from, there, length);
    } catch (error) {
      this.#give(buffer);
      throw error;
    }
    if (!wait) return this.#give(buffer);
    return wait.finally(() => this.#give(buffer));
  }

  /** `there` bytes of the piece have been read. */
  #layPiece(filling: Filling, buffer: Uint8Array, from: number, there: number, length: number): Maybe {
    const { at, data, start, offset, count } = filling;
    buffer.fill(0, there, length);
    const begin = Math.max(from, offset);
    const end = Math.min(from + length, offset + count);
    if (begin < end) {
      if (data) buffer.set(data.subarray(start + begin - offset, start + end - offset), begin - from);
      else buffer.fill(0, begin - from, end - from);
    }
    return this.#to.write(bytes(at + from), buffer, 0, length);
  }

  #give(buffer: Uint8Array): void {
    if (this.#spare.length * buffer.length < SPARE_BYTES) this.#spare.push(buffer);
  }

  /** Of what is written, `length` bytes from `from` in the block on. */
  #write({ at, data, start, offset }: Filling, from: number, length: number): Maybe {
    const place = bytes(at + from);
    if (data) return this.#to.write(place, data, start + from - offset, length);
    return this.#to.writeZeroes(place, length, false);
  }
}
