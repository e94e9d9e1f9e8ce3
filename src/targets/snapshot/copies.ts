import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { bytes } from '../../units.ts';

/** Copies that one snapshot has running before further ones wait: the kernel's `snapshot_cow_threshold`, by default. */
const THRESHOLD = 2048;
/** And in bytes, since each holds a buffer. */
const THRESHOLD_BYTES = 64 * 1024 * 1024;
/** Chunks that lie side by side are copied together up to this. */
const COPY_BYTES = 1024 * 1024;
/** Buffers of one chunk that are kept for the next copies. */
const SPARE_MAX = 64;

/** The data of new exceptions on its way to one COW device: what is under way, and how much of it there may be. */
export class Copies {
  readonly #origin: BlockDevice;
  readonly #cow: BlockDevice;
  readonly #chunkBytes: number;
  /** Chunks that may be under way at once. */
  readonly #threshold: number;
  /** Chunks under way. */
  #count = 0;
  /** By old chunk; the promise may reject. */
  #pending = new Map<number, Promise<void>>();
  #throttled: (() => void)[] = [];
  #buffers: Uint8Array[] = [];

  constructor(origin: BlockDevice, cow: BlockDevice, chunkBytes: number) {
    this.#origin = origin;
    this.#cow = cow;
    this.#chunkBytes = chunkBytes;
    this.#threshold = Math.max(1, Math.min(THRESHOLD, Math.floor(THRESHOLD_BYTES / chunkBytes)));
  }

  /** The data of old chunk `old` is under way. */
  has(old: number): boolean {
    return this.#pending.has(old);
  }

  /** Resolves when the data of old chunk `old` has arrived or failed. */
  of(old: number): Promise<void> | undefined {
    return this.#pending.get(old)?.catch(() => {});
  }

  /** No copy may begin before `room`. */
  get full(): boolean {
    return this.#count >= this.#threshold;
  }

  /** The next moment at which a copy may be allowed to begin. */
  room(): Promise<void> {
    return new Promise((go) => this.#throttled.push(go));
  }

  /** Chunks that one copy may have now. */
  get longest(): number {
    return Math.min(this.#threshold - this.#count, Math.floor(COPY_BYTES / this.#chunkBytes));
  }

  async ended(): Promise<void> {
    await Promise.allSettled(this.#pending.values());
  }

  /** Copies `count` chunks out of the origin, whose end may cut the last one short. */
  copy(old: number, newChunk: number, count: number): Maybe {
    const size = this.#chunkBytes;
    const length = Math.min(count * size, this.#origin.size - old * size);
    const buffer = this.#take(Math.max(size, length));
    const to = bytes(newChunk * size);
    const wait = this.#origin.read(bytes(old * size), buffer, 0, length);
    return this.#giveAfter(
      wait ? wait.then(() => this.#cow.write(to, buffer, 0, length)) : this.#cow.write(to, buffer, 0, length),
      buffer,
    );
  }

  /**
   * Copies `length` bytes of a chunk with `count` bytes at `offset` in it, zeroes if `from` is absent, laid over: the
   * chunk is written once.
   */
  overlay(
    old: number,
    newChunk: number,
    length: number,
    offset: number,
    from: Uint8Array | undefined,
    start: number,
    count: number,
  ): Maybe {
    const size = this.#chunkBytes;
    const own = this.#take(size);
    const lay = () => {
      if (from) own.set(from.subarray(start, start + count), offset);
      else own.fill(0, offset, offset + count);
      return this.#cow.write(bytes(newChunk * size), own, 0, length);
    };
    let wait: Maybe;
    wait = this.#origin.read(bytes(old * size), own, 0, length);
    wait = wait ? wait.then(lay) : lay();
    return this.#giveAfter(wait, own);
  }

  /** `count` chunks are under way: to be ended before `done` settles. */
  begin(old: number, count: number, done: Promise<void>): void {
    this.#count += count;
    for (let i = 0; i < count; i++) this.#pending.set(old + i, done);
  }

  /** Their data has arrived or failed. */
  end(old: number, count: number): void {
    this.#count -= count;
    for (let i = 0; i < count; i++) this.#pending.delete(old + i);
    for (const go of this.#throttled.splice(0)) go();
  }

  #take(length: number): Uint8Array {
    if (length !== this.#chunkBytes) return new Uint8Array(length);
    return this.#buffers.pop() ?? new Uint8Array(length);
  }

  #giveAfter(wait: Maybe, buffer: Uint8Array): Maybe {
    if (!wait) return this.#give(buffer);
    return wait.then(
      () => this.#give(buffer),
      (error) => {
        this.#give(buffer);
        throw error;
      },
    );
  }

  #give(buffer: Uint8Array): void {
    if (buffer.length === this.#chunkBytes && this.#buffers.length < SPARE_MAX) this.#buffers.push(buffer);
  }
}
