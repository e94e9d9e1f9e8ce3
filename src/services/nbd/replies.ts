/** The replies of one connection: slots for them in reply buffers, and their way to the socket, many in one write. */
import type { Duplex } from 'node:stream';
import { CHUNK, CHUNK_DONE, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC } from '../../formats/nbd/constants.ts';
import {
  CHUNK_HEADER_SIZE,
  chunkHeader,
  errorChunk,
  SIMPLE_REPLY_SIZE,
  simpleReply,
} from '../../formats/nbd/transmission.ts';
import { system } from '../../lib/system.ts';
import type { Share } from './memory.ts';
import { bufferBytes, type ReplyBuffer, type ReplyBuffers, SMALLEST_BUFFER } from './reply-buffers.ts';

/** Characters of an error's text that are sent. */
const MESSAGE_MAX = 1024;
/** The longest reply without data, an error with text of three bytes to a character. */
export const SHORT_REPLY_MAX = 4096;

/** A stretch of a reply buffer that is ready. The objects are used again. */
interface Stretch {
  buffer: ReplyBuffer;
  from: number;
  to: number;
}

export class Replies {
  /** Of the request to reply to. Fields, so that a request needs no object. */
  cookieHigh = 0;
  cookieLow = 0;
  /** The buffer being filled: the last slot reserved lies in it. */
  buffer: ReplyBuffer;
  /** Stretches of replies that the client has taken so far. */
  taken = 0;
  readonly #socket: Duplex;
  /** Of the socket, to send without it while it has nothing to send; -1 where that cannot be done. */
  readonly #fd: number;
  readonly #system = system();
  readonly #buffers: ReplyBuffers;
  readonly #share: Share;
  readonly #wake: () => void;
  readonly #ready: Stretch[] = [];
  #readyCount = 0;
  #readyBytes = 0;
  #flushPlanned = false;
  #closed = false;
  #released = false;

  /** `wake` is called whenever the socket has taken replies it did not take at once. */
  constructor(socket: Duplex, fd: number, buffers: ReplyBuffers, share: Share, wake: () => void) {
    this.#socket = socket;
    this.#fd = this.#system ? fd : -1;
    this.#buffers = buffers;
    this.#share = share;
    this.#wake = wake;
    this.buffer = this.#take(0);
  }

  /** Bytes the client has yet to take. */
  get unsent(): number {
    return this.#readyBytes + this.#socket.writableLength;
  }

  /** Bytes of the buffer that a reply of `size` bytes would need beside the one being filled. */
  cost(size: number): number {
    return this.buffer.data.length - this.buffer.used < size ? bufferBytes(size) : 0;
  }

  /**
   * Makes room for a reply of `size` bytes in `buffer` and fills in the header of a successful simple reply. (A chunk has
   * its cookie in the same place.)
   */
  reserve(size: number): number {
    if (this.buffer.data.length - this.buffer.used < size) {
      // A full buffer goes out while the next is filled.
      this.flush();
      const full = this.buffer;
      this.buffer = this.#take(size);
      full.release();
    }
    const { data, used: slot } = this.buffer;
    const { at } = simpleReply;
    this.buffer.used += size;
    data.writeUInt32BE(SIMPLE_REPLY_MAGIC, slot + at.magic);
    data.writeUInt32BE(0, slot + at.error);
    data.writeUInt32BE(this.cookieHigh, slot + at.cookieHigh);
    data.writeUInt32BE(this.cookieLow, slot + at.cookieLow);
    return slot;
  }

  /** The reply in that slot is ready. */
  push(buffer: ReplyBuffer, from: number, to: number): void {
    if (this.#closed) return;
    this.#readyBytes += to - from;
    const last = this.#readyCount > 0 ? this.#ready[this.#readyCount - 1] : undefined;
    if (last?.buffer === buffer && last.to === from) {
      last.to = to;
      return;
    }
    buffer.retain();
    const place = this.#ready[this.#readyCount++];
    if (place) {
      place.buffer = buffer;
      place.from = from;
      place.to = to;
    } else this.#ready.push({ buffer, from, to });
  }

  chunk(type: number, payload: Buffer, last: boolean): void {
    const size = CHUNK_HEADER_SIZE + payload.length;
    const slot = this.reserve(size);
    const { data } = this.buffer;
    const { at } = chunkHeader;
    data.writeUInt32BE(STRUCTURED_REPLY_MAGIC, slot + at.magic);
    data.writeUInt16BE(last ? CHUNK_DONE : 0, slot + at.flags);
    data.writeUInt16BE(type, slot + at.type);
    data.writeUInt32BE(payload.length, slot + at.length);
    payload.copy(data, slot + CHUNK_HEADER_SIZE);
    this.push(this.buffer, slot, slot + size);
  }

  /** `error` is the number on the wire. The text reaches clients that know structured replies. */
  error(error: number, message: string, structured: boolean) {
    if (!structured) {
      const slot = this.reserve(SIMPLE_REPLY_SIZE);
      this.buffer.data.writeUInt32BE(error, slot + simpleReply.at.error);
      return this.push(this.buffer, slot, slot + SIMPLE_REPLY_SIZE);
    }
    const text = Buffer.from(message.slice(0, MESSAGE_MAX));
    const payload = Buffer.alloc(errorChunk.size + text.length);
    payload.writeUInt32BE(error, errorChunk.at.error);
    payload.writeUInt16BE(text.length, errorChunk.at.messageLength);
    text.copy(payload, errorChunk.size);
    this.chunk(CHUNK.ERROR, payload, true);
  }

  /** Replies that get ready one by one within a turn of the event loop leave together. */
  planFlush(): void {
    if (this.#flushPlanned) return;
    this.#flushPlanned = true;
    setImmediate(this.#plannedFlush);
  }

  flush(): void {
    const count = this.#readyCount;
    if (count === 0) return;
    this.#readyCount = 0;
    this.#readyBytes = 0;
    const first = this.#fd >= 0 ? this.#send(count) : 0;
    if (first === count) return;
    if (count > 1) this.#socket.cork();
    for (let i = first; i < count; i++) {
      const { buffer, from, to } = this.#ready[i];
      this.#socket.write(buffer.data.subarray(from, to), buffer.taken);
    }
    if (count > 1) this.#socket.uncork();
  }

  /** Sends what the socket takes at once. Returns the number of stretches it has taken whole. */
  #send(count: number): number {
    // What the socket has yet to send goes first. Destroyed, it has given its descriptor back.
    if (this.#socket.writableLength > 0 || this.#socket.destroyed) return 0;
    for (let i = 0; i < count; i++) {
      const ready = this.#ready[i];
      const { buffer, from, to } = ready;
      const sent = this.#system!.send(this.#fd, buffer.data, from, to - from);
      if (sent < to - from) {
        if (sent > 0) ready.from += sent;
        return i;
      }
      buffer.release();
      this.#taken(buffer, buffer.users);
    }
    return count;
  }

  /** The socket is gone: what was not sent never will be. */
  close(): void {
    this.#closed = true;
    for (let i = 0; i < this.#readyCount; i++) this.#ready[i].buffer.release();
    this.#readyCount = 0;
    this.#readyBytes = 0;
  }

  /** After `close`, when no slot is in use any more: gives the buffer back. */
  release(): void {
    if (this.#released) return;
    this.#released = true;
    this.buffer.release();
  }

  readonly #plannedFlush = () => {
    this.#flushPlanned = false;
    this.flush();
    this.#wake();
  };

  #take(size: number): ReplyBuffer {
    const buffer = this.#buffers.take(size, this.#share);
    buffer.onTaken = (users) => {
      this.#taken(buffer, users);
      this.#wake();
    };
    return buffer;
  }

  /** A stretch has been sent, and `users` are left. */
  #taken(buffer: ReplyBuffer, users: number): void {
    this.taken++;
    // Nothing of it is in use: fill it from the start again. A large one is not kept by a connection that may be idle.
    if (users === 1 && buffer === this.buffer && !this.#released) {
      buffer.used = 0;
      if (buffer.data.length > SMALLEST_BUFFER) {
        this.buffer = this.#take(0);
        buffer.release();
      }
    }
  }
}
