/**
 * What a connection received, as long as it is needed: until it is parsed, and for writes whose payload came whole until
 * the device is done with them.
 */
import { Hold, type Share } from './memory.ts';
import { type ReplyBuffer, type ReplyBuffers, SMALLEST_BUFFER } from './reply-buffers.ts';

/** Less room than this is not worth a system call. */
const ROOM_MIN = 16 * 1024;

/** What a request in flight keeps. */
export interface Held {
  release(): void;
}

/** What requests are parsed from. */
export interface Source {
  /** Bytes of memory that a write whose payload lies there would keep. */
  readonly cost: number;
  /** Keeps what is being parsed for one more request. */
  hold(): Held;
}

/** Chunks of a stream: each is memory of its own. */
export class ChunkSource implements Source {
  readonly #share: Share;
  #bytes = 0;
  #hold: Hold | undefined;

  constructor(share: Share) {
    this.#share = share;
  }

  /** Requests come from another chunk, of so many bytes. */
  next(bytes: number): void {
    this.#bytes = bytes;
    this.#hold = undefined;
  }

  get cost(): number {
    return this.#hold?.isHeld ? 0 : this.#bytes;
  }

  hold(): Hold {
    if (this.#hold?.isHeld) this.#hold.retain();
    else this.#hold = new Hold(this.#share, this.#bytes);
    return this.#hold;
  }
}

/**
 * A buffer that is filled again and again, as long as nobody needs what is in it; else what comes next lies behind, or in
 * another buffer. The rest of a long payload is received where it belongs.
 */
export class BufferSource implements Source {
  /** What is to be parsed: from `at` to `end`. */
  data: Buffer;
  at = 0;
  end = 0;
  readonly #buffers: ReplyBuffers;
  readonly #share: Share;
  /** The socket is one of the users of each place that it may write to; what comes next goes here, from `#start` on, ... */
  #buffer: ReplyBuffer;
  #start = 0;
  /** ... or here. */
  #payload: ReplyBuffer | undefined;
  /** Takes the place of `#buffer` when that is full. */
  #next: ReplyBuffer | undefined;
  /** What has yet to be parsed lies here. */
  #parsed: ReplyBuffer | undefined;

  constructor(buffers: ReplyBuffers, share: Share) {
    this.#buffers = buffers;
    this.#share = share;
    this.#buffer = buffers.take(0, share);
    this.data = this.#buffer.data;
  }

  /** The place for what comes next. Of `payload` some of its `length` bytes have yet to come. */
  place(payload: ReplyBuffer | undefined, length: number): Uint8Array {
    this.#payload?.release();
    this.#payload = undefined;
    if (payload && length - payload.used >= ROOM_MIN) {
      payload.retain();
      this.#payload = payload;
      return payload.data.subarray(payload.used, length);
    }
    if (this.#buffer.users === 1) this.#start = 0;
    else if (this.#buffer.data.length - this.#start < ROOM_MIN) {
      const full = this.#buffer;
      this.#buffer = this.#next ?? this.#buffers.take(0, this.#share);
      this.#next = undefined;
      this.#start = 0;
      full.release();
    }
    const { data } = this.#buffer;
    return this.#start === 0 ? data : data.subarray(this.#start);
  }

  /** So many bytes came. True when they are to be parsed, false when they belong to the payload. */
  received(count: number): boolean {
    if (this.#payload) {
      this.#payload.used += count;
      return false;
    }
    this.#buffer.retain();
    this.#parsed = this.#buffer;
    this.data = this.#buffer.data;
    this.at = this.#start;
    this.#start += count;
    this.end = this.#start;
    return true;
  }

  /** Nothing is left to be parsed. */
  parsed(): void {
    this.#parsed?.release();
    this.#parsed = undefined;
  }

  /** The first write that keeps the buffer makes another one necessary. */
  get cost(): number {
    return this.#parsed === this.#buffer && !this.#next ? SMALLEST_BUFFER : 0;
  }

  hold(): ReplyBuffer {
    const parsed = this.#parsed!;
    parsed.retain();
    if (parsed === this.#buffer) this.#next ??= this.#buffers.take(0, this.#share);
    return parsed;
  }

  /** The socket is gone. */
  close(): void {
    this.parsed();
    this.#payload?.release();
    this.#payload = undefined;
    this.#next?.release();
    this.#next = undefined;
    this.#buffer.release();
  }
}
