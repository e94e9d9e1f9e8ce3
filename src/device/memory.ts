import { DmError } from '../errors.ts';
import { type Bytes, bytes } from '../units.ts';
import type { BlockDevice, Extent } from './block-device.ts';

/** A disk in memory. Sparse: pages of 64 KiB appear when first written, so that a device of exabytes costs nothing. */
export class MemoryDevice implements BlockDevice {
  readonly name: string;
  size: Bytes;
  readonly blockSize: number;
  readOnly = false;
  canDiscard = true;
  #pages = new Map<number, Uint8Array>();

  constructor(size: number, { name = 'memory', blockSize = 512 } = {}) {
    this.name = name;
    this.size = bytes(size);
    this.blockSize = blockSize;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): void {
    this.#check(at, length);
    eachPage(at, length, (index, from, count, done) => {
      const page = this.#pages.get(index);
      if (page) into.set(page.subarray(from, from + count), start + done);
      else into.fill(0, start + done, start + done + count);
    });
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): void {
    this.#check(at, length);
    if (this.readOnly) throw new DmError('READ_ONLY', 'EPERM', `Cannot write to ${this.name}: it is read-only`);
    eachPage(at, length, (index, offset, count, done) => {
      let page = this.#pages.get(index);
      if (!page) this.#pages.set(index, (page = new Uint8Array(PAGE)));
      page.set(from.subarray(start + done, start + done + count), offset);
    });
  }

  flush(): void {}

  discard(at: Bytes, length: number): void {
    this.writeZeroes(at, length);
  }

  writeZeroes(at: Bytes, length: number): void {
    this.#check(at, length);
    eachPage(at, length, (index, from, count) => {
      if (count === PAGE) this.#pages.delete(index);
      else this.#pages.get(index)?.fill(0, from, from + count);
    });
  }

  extents(at: Bytes, length: number): Extent[] {
    this.#check(at, length);
    const found: Extent[] = [];
    eachPage(at, length, (index, _from, count) => {
      const hole = !this.#pages.has(index);
      const last = found.at(-1);
      if (last?.hole === hole) last.length = bytes(last.length + count);
      else found.push({ length: bytes(count), hole, zero: hole });
      return found.length < 1024;
    });
    return found;
  }

  async close(): Promise<void> {}

  #check(at: number, length: number): void {
    if (at < 0 || at + length > this.size)
      throw new DmError('OUT_OF_RANGE', 'EIO', `${length} bytes at ${at} lie beyond the ${this.size} of ${this.name}`);
  }
}

const PAGE = 65536;

function eachPage(
  at: number,
  length: number,
  visit: (index: number, from: number, count: number, done: number) => boolean | void,
): void {
  for (let done = 0; done < length; ) {
    const index = Math.floor((at + done) / PAGE);
    const from = (at + done) % PAGE;
    const count = Math.min(PAGE - from, length - done);
    if (visit(index, from, count, done) === false) return;
    done += count;
  }
}
