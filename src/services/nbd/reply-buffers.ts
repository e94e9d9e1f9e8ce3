/** Whole batches of small replies fit in the smallest size and stay in the processor's cache. */
const SMALLEST = 17;
/** Room for headers beside a power of two of data. */
const SLACK = 4096;
/** Bytes kept for reuse; what comes back beyond is left to the garbage collector. */
const KEPT_MAX = 64 * 1024 * 1024;

/**
 * A buffer with its users counted: the connection that fills it, each stretch the socket has not taken, and each slot a
 * device is still reading into. The last one gives it back to the pool.
 */
export class ReplyBuffer {
  readonly data: Buffer;
  /** Bytes given out so far. */
  used = 0;
  #users = 1;
  readonly #pool: ReplyBuffers;
  readonly #order: number;
  /** Called with the users left when a socket has taken a stretch; the connection that fills it listens. */
  onTaken: ((users: number) => void) | undefined;

  constructor(pool: ReplyBuffers, order: number) {
    this.data = Buffer.allocUnsafeSlow(2 ** order + SLACK);
    this.#pool = pool;
    this.#order = order;
  }

  reset(): void {
    this.used = 0;
    this.#users = 1;
    this.onTaken = undefined;
  }

  retain(): void {
    this.#users++;
  }

  /** A function of its own, so that it can be handed on as it is. */
  readonly release = (): void => {
    if (--this.#users === 0) this.#pool.give(this, this.#order);
  };

  /** `release` for `socket.write`. */
  readonly taken = (): void => {
    this.release();
    this.onTaken?.(this.#users);
  };
}

export class ReplyBuffers {
  readonly #free: ReplyBuffer[][] = [];
  #kept = 0;

  /** A buffer with room for `size` bytes and one user. */
  take(size: number): ReplyBuffer {
    let order = SMALLEST;
    while (2 ** order + SLACK < size) order++;
    const buffer = this.#free[order]?.pop();
    if (!buffer) return new ReplyBuffer(this, order);
    this.#kept -= buffer.data.length;
    buffer.reset();
    return buffer;
  }

  give(buffer: ReplyBuffer, order: number): void {
    if (this.#kept + buffer.data.length > KEPT_MAX) return;
    this.#kept += buffer.data.length;
    (this.#free[order] ??= []).push(buffer);
  }
}
