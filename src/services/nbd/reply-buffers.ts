import { Hold } from './hold.ts';
import type { Share } from './memory.ts';

/** Whole batches of small replies fit in the smallest size and stay in the processor's cache. */
const SMALLEST = 16;
/** Room for headers beside a power of two of data. */
const SLACK = 4096;
/** Bytes of the smallest buffer. */
export const SMALLEST_BUFFER = 2 ** SMALLEST + SLACK;
/** Bytes kept for reuse; what comes back beyond is left to the garbage collector. */
const KEPT_MAX = 64 * 1024 * 1024;
/** See `scratch`. */
const SCRATCH_BYTES = 1024 * 1024;

/**
 * A buffer whose users are the connection that fills it, each stretch the socket has not taken, and each slot a device is
 * still reading into. The last one gives it back to the pool.
 */
export class ReplyBuffer extends Hold {
  readonly data: Buffer;
  /** Bytes given out so far. */
  used = 0;
  readonly #pool: ReplyBuffers;
  readonly #order: number;
  /** Called with the users left when a socket has taken a stretch; the connection that fills it listens. */
  onTaken: ((users: number) => void) | undefined;

  constructor(pool: ReplyBuffers, order: number, share: Share) {
    super(share, bytesOf(order));
    this.data = Buffer.allocUnsafeSlow(bytesOf(order));
    this.#pool = pool;
    this.#order = order;
  }

  reset(share: Share): void {
    this.used = 0;
    this.onTaken = undefined;
    this.holdAgain(share);
  }

  override release(): void {
    super.release();
    if (this.users === 0) this.#pool.give(this, this.#order);
  }

  /** `release` for `socket.write`. */
  readonly taken = (): void => {
    this.release();
    this.onTaken?.(this.users);
  };
}

const bytesOf = (order: number): number => 2 ** order + SLACK;

const orderOf = (size: number): number => {
  let order = SMALLEST;
  while (bytesOf(order) < size) order++;
  return order;
};

/** Bytes of the buffer that `take(size)` returns. */
export const bufferBytes = (size: number): number => bytesOf(orderOf(size));

export class ReplyBuffers {
  readonly #free: ReplyBuffer[][] = [];
  #kept = 0;
  #scratch: Buffer | undefined;

  /** A buffer with room for `size` bytes and one user, counted as the share's. */
  take(size: number, share: Share): ReplyBuffer {
    const order = orderOf(size);
    const buffer = this.#free[order]?.pop();
    if (!buffer) return new ReplyBuffer(this, order, share);
    this.#kept -= buffer.data.length;
    buffer.reset(share);
    return buffer;
  }

  give(buffer: ReplyBuffer, order: number): void {
    if (this.#kept + buffer.data.length > KEPT_MAX) return;
    this.#kept += buffer.data.length;
    (this.#free[order] ??= []).push(buffer);
  }

  /** For what is read and not looked at; all connections have the same one. */
  get scratch(): Buffer {
    this.#scratch ??= Buffer.allocUnsafeSlow(SCRATCH_BYTES);
    return this.#scratch;
  }
}
