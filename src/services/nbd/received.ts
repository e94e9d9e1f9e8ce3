/**
 * What a connection received, as long as it is needed: until it is parsed, and for writes whose payload came whole until
 * the device is done with them.
 */
import { Hold } from './hold.ts';
import type { Share } from './memory.ts';
import { type ReplyBuffer, type ReplyBuffers, SMALLEST_BUFFER } from './reply-buffers.ts';

/** Less room than this is not worth a system call. */
const ROOM_MIN = 16 * 1024;

/** Room for a header and a little of what follows. */
const HEAD_BYTES = 4096;

/** What requests are parsed from. */
export interface Source {
  /** Bytes of memory that a write whose payload lies there would keep. */
  readonly cost: number;
  /** Keeps what is being parsed for one more request. */
  hold(): Hold;
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
    return this.#held ? 0 : this.#bytes;
  }

  hold(): Hold {
    const held = this.#held;
    held?.retain();
    return held ?? (this.#hold = new Hold(this.#share, this.#bytes));
  }

  /** As long as a request needs the chunk. */
  get #held(): Hold | undefined {
    return this.#hold && this.#hold.users > 0 ? this.#hold : undefined;
  }
}

/**
 * A buffer that is filled again and again, as long as nobody needs what is in it; else what comes next lies behind, or in
 * another buffer. The rest of a long payload is received where it belongs.
 */
export class BufferSource implements Source {
  /** What comes next goes here: `room` bytes from `start` on. */
  into: Buffer;
  start = 0;
  room = 0;
  /** What is to be parsed: of `data`, from `at` to `end`. */
  data: Buffer;
  at = 0;
  end = 0;
  readonly #buffers: ReplyBuffers;
  readonly #share: Share;
  /** Filled again and again. The socket is one of the users of whatever it may write to: of this, and of a payload. */
  #buffer: ReplyBuffer;
  /** So far it is full, ... */
  #end = 0;
  /** ... and when it is as a whole, this takes its place. */
  #next: ReplyBuffer | undefined;
  #payload: ReplyBuffer | undefined;
  /** Long payloads come one after the other. */
  #flows = false;
  /** What has yet to be parsed lies here. */
  #parsed: ReplyBuffer | undefined;

  constructor(buffers: ReplyBuffers, share: Share) {
    this.#buffers = buffers;
    this.#share = share;
    this.#buffer = buffers.take(0, share);
    this.into = this.#buffer.data;
    this.data = this.into;
  }

  /**
   * Chooses where what comes next goes. Of `payload` some of its `length` bytes have yet to come. True when long payloads
   * are coming, and there may be more at once.
   */
  choose(payload: ReplyBuffer | undefined, length: number): boolean {
    this.#payload?.release();
    this.#payload = undefined;
    if (payload && length - payload.used >= ROOM_MIN) {
      payload.retain();
      this.#payload = payload;
      this.into = payload.data;
      this.start = payload.used;
      this.room = length - payload.used;
      this.#flows = true;
      return true;
    }
    if (this.#buffer.users === 1) this.#end = 0;
    else if (this.#buffer.data.length - this.#end < ROOM_MIN) {
      const full = this.#buffer;
      this.#buffer = this.#next ?? this.#buffers.take(0, this.#share);
      this.#next = undefined;
      this.#end = 0;
      full.release();
    }
    this.into = this.#buffer.data;
    this.start = this.#end;
    // Of the payload that follows, little should have to be copied.
    this.room = this.#flows ? HEAD_BYTES : this.into.length - this.start;
    return this.#flows;
  }

  /** What was chosen. */
  get place(): Uint8Array {
    return this.room === this.into.length ? this.into : this.into.subarray(this.start, this.start + this.room);
  }

  /** So many bytes came. True when they are to be parsed, false when they belong to the payload. */
  received(count: number): boolean {
    if (this.#payload) {
      this.#payload.used += count;
      return false;
    }
    this.#flows = false;
    this.#buffer.retain();
    this.#parsed = this.#buffer;
    this.data = this.into;
    this.at = this.start;
    this.end = this.start + count;
    this.#end = this.end;
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
