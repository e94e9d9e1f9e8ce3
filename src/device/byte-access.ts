import { type Bytes, bytes } from '../units.ts';
import type { BlockDevice, Maybe } from './block-device.ts';

type Below = Pick<BlockDevice, 'size' | 'read' | 'write' | 'writeZeroes' | 'discard'>;

/**
 * Requests of any alignment on a device that takes whole blocks only: reads are widened, writes read and modify the
 * blocks at their ends, discards shrink.
 *
 * A read-modify-write must not run beside another write to the same block, or it would bring back what that one
 * replaced. It is rare, so it simply runs alone: it waits for the writes in flight, and later ones wait for it. All
 * writers of a device must therefore share one ByteAccess. Aligned writes pay one comparison.
 */
export class ByteAccess {
  readonly #device: Below;
  readonly #block: number;
  /** Aligned writes the device has not completed. */
  #inFlight = 0;
  #idle: (() => void) | undefined;
  /** Settles when the last read-modify-write so far has ended. */
  #gate: Promise<void> | undefined;

  /** `block` is a power of two, in bytes. */
  constructor(device: Below, block: number) {
    this.#device = device;
    this.#block = block;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    if (this.#aligned(at, length)) return this.#device.read(at, into, start, length);
    return this.#readWidened(at, into, start, length);
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    if (this.#gate) return this.#after(() => this.write(at, from, start, length));
    if (this.#aligned(at, length)) return this.#counted(this.#device.write(at, from, start, length));
    return this.#alone(() =>
      this.#modify(at, length, (block, offset) => block.set(from.subarray(start, start + length), offset)),
    );
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    if (this.#gate) return this.#after(() => this.writeZeroes(at, length, mayUnmap));
    if (this.#aligned(at, length)) return this.#counted(this.#device.writeZeroes(at, length, mayUnmap));
    return this.#alone(async () => {
      const { first, end } = this.#inside(at, length);
      if (first >= end) return this.#modify(at, length, (block, offset) => block.fill(0, offset, offset + length));
      const head = first - at;
      const tail = at + length - end;
      if (head > 0) await this.#modify(at, head, (block, offset) => block.fill(0, offset, offset + head));
      await this.#device.writeZeroes(first, end - first, mayUnmap);
      if (tail > 0) await this.#modify(end, tail, (block, offset) => block.fill(0, offset, offset + tail));
    });
  }

  discard(at: Bytes, length: number): Maybe {
    if (this.#gate) return this.#after(() => this.discard(at, length));
    const { first, end } = this.#inside(at, length);
    if (first < end) return this.#counted(this.#device.discard(first, end - first));
  }

  #aligned(at: number, length: number): boolean {
    return at % this.#block === 0 && length % this.#block === 0;
  }

  /** The whole blocks within a range. */
  #inside(at: number, length: number) {
    const block = this.#block;
    return { first: bytes(Math.ceil(at / block) * block), end: bytes(Math.floor((at + length) / block) * block) };
  }

  /** The blocks a range touches; the last block of a device may be short. */
  #around(at: number, length: number) {
    const block = this.#block;
    const end = Math.min(Math.ceil((at + length) / block) * block, this.#device.size);
    return { first: bytes(Math.floor(at / block) * block), end: bytes(end) };
  }

  async #readWidened(at: Bytes, into: Uint8Array, start: number, length: number): Promise<void> {
    const { first, end } = this.#around(at, length);
    const blocks = Buffer.allocUnsafe(end - first);
    await this.#device.read(first, blocks, 0, blocks.length);
    into.set(blocks.subarray(at - first, at - first + length), start);
  }

  /** Only the blocks at the ends are read; `change` sets everything between. */
  async #modify(at: Bytes, length: number, change: (blocks: Buffer, offset: number) => void): Promise<void> {
    const { first, end } = this.#around(at, length);
    const blocks = Buffer.allocUnsafe(end - first);
    const head = Math.min(this.#block, blocks.length);
    const tail = bytes(Math.floor((end - 1) / this.#block) * this.#block);
    if (at > first || end === first + head) await this.#device.read(first, blocks, 0, head);
    if (at + length < end && tail > first) await this.#device.read(tail, blocks, tail - first, end - tail);
    change(blocks, at - first);
    await this.#device.write(first, blocks, 0, blocks.length);
  }

  #counted(wait: Maybe): Maybe {
    if (!wait) return;
    this.#inFlight++;
    return wait.then(this.#left, this.#failed);
  }

  readonly #left = () => {
    if (--this.#inFlight === 0) this.#idle?.();
  };

  readonly #failed = (error: unknown) => {
    this.#left();
    throw error;
  };

  async #after(retry: () => Maybe): Promise<void> {
    while (this.#gate) await this.#gate;
    await retry();
  }

  async #alone(work: () => Promise<void>): Promise<void> {
    let open!: () => void;
    const gate = new Promise<void>((resolve) => (open = resolve));
    this.#gate = gate;
    try {
      if (this.#inFlight > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
      await work();
    } finally {
      this.#idle = undefined;
      this.#gate = undefined;
      open();
    }
  }
}
