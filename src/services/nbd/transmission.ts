/**
 * The transmission phase of one connection (doc/proto.md, "Transmission"). This is the hot path: a request that its
 * device answers at once costs no promise, closure or buffer.
 *
 *     data event -> one loop over the chunk: requests are parsed where they lie
 *                -> device.read straight into the reply buffer, behind the place of its header
 *                -> at the end of the chunk, one write of all replies
 *
 * - A request's reply has its place (a *slot*) before the device is called, and the cookie is copied there. When the
 *   device returns a promise, the slot waits, and later replies go out before it.
 * - A write's payload goes to the device from the chunk if it lies there whole; otherwise it is gathered once.
 * - The loop stops between two requests, and the socket is paused, while too much is in flight or the client does not
 *   take its replies. It goes on where it stopped.
 *
 * The client is not trusted: what it may break is its own connection.
 */
import type { Duplex } from 'node:stream';
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import type { ByteAccess } from '../../device/byte-access.ts';
import { DmError, type Errno, fromSystem } from '../../errors.ts';
import {
  CHUNK,
  CHUNK_DONE,
  CMD,
  CMD_FLAG,
  REQUEST_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from '../../formats/nbd/constants.ts';
import { toWire } from '../../formats/nbd/errors.ts';
import { CHUNK_HEADER_SIZE, REQUEST_SIZE, requestHeader, SIMPLE_REPLY_SIZE } from '../../formats/nbd/transmission.ts';
import type { Bytes } from '../../units.ts';
import { blockStatus } from './block-status.ts';
import type { Session } from './handshake.ts';
import type { Limits } from './limits.ts';
import { Replies } from './replies.ts';
import type { ReplyBuffer, ReplyBuffers } from './reply-buffers.ts';

const AT = requestHeader.at;
const EMPTY = Buffer.alloc(0);
/** CACHE reads in pieces of this size and lets others run in between. */
const CACHE_PIECE = 1024 * 1024;

/** FUA may be sent with every command. */
const ALLOWED_FLAGS: readonly number[] = [
  CMD_FLAG.FUA | CMD_FLAG.DF,
  CMD_FLAG.FUA,
  CMD_FLAG.FUA,
  CMD_FLAG.FUA,
  CMD_FLAG.FUA,
  CMD_FLAG.FUA,
  CMD_FLAG.FUA | CMD_FLAG.NO_HOLE | CMD_FLAG.FAST_ZERO,
  CMD_FLAG.FUA | CMD_FLAG.REQ_ONE,
];

const nextTurn = () => new Promise<void>((resolve) => setImmediate(resolve));

export class Transmission {
  readonly #socket: Duplex;
  readonly #session: Session;
  readonly #device: BlockDevice;
  /** The same device for requests of any alignment; writes of all connections go through the same one. */
  readonly #access: ByteAccess;
  readonly #buffers: ReplyBuffers;
  readonly #replies: Replies;
  readonly #limits: Limits;
  readonly #structured: boolean;
  readonly #readOnly: boolean;
  readonly #log: (line: string) => void;

  /** Received and not yet parsed: `#chunk` from `#at` on. */
  #chunk: Buffer = EMPTY;
  #at = 0;
  /** A request header cut in two by the end of a chunk. */
  readonly #head = Buffer.alloc(REQUEST_SIZE);
  #headLength = 0;
  /** Payload bytes of a refused write that are still to come. */
  #skip = 0;
  /** The payload of a write that did not lie whole in one chunk. */
  #payload: ReplyBuffer | undefined;
  #payloadLength = 0;
  #payloadFlags = 0;
  #payloadOffset = 0;
  #payloadCookieHigh = 0;
  #payloadCookieLow = 0;

  #requestsInFlight = 0;
  #bytesInFlight = 0;
  #parsing = false;
  #paused = false;
  /** No further request is taken. */
  #stopped = false;
  /** The client may have more to say: wait for it to close. */
  #lingers = false;
  #ended = false;
  #closed = false;
  #resolve!: () => void;
  /** Settles when the socket is closed and the device has completed every operation. Never rejects. */
  readonly done: Promise<void>;

  /** Of the request being parsed. */
  #flags = 0;

  constructor(
    socket: Duplex,
    session: Session,
    access: ByteAccess,
    buffers: ReplyBuffers,
    limits: Limits,
    log: (line: string) => void,
  ) {
    this.#socket = socket;
    this.#session = session;
    this.#device = session.open.device;
    this.#access = access;
    this.#buffers = buffers;
    this.#limits = limits;
    this.#structured = session.structured;
    this.#readOnly = session.open.readOnly;
    this.#log = log;
    this.#replies = new Replies(socket, buffers, () => this.#wake());
    this.done = new Promise((resolve) => (this.#resolve = resolve));
  }

  /** Begins with the bytes that came behind the handshake. */
  start(rest: Buffer) {
    const socket = this.#socket;
    socket.on('close', () => this.#onClose());
    if (socket.destroyed) return this.#onClose();
    socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    socket.on('end', () => this.#onEnd());
    if (rest.length > 0) this.#onData(rest);
    if (!this.#paused && !this.#stopped) socket.resume();
  }

  /** Takes no further request; ends the connection when those in flight are answered. */
  drain(): void {
    this.#lingers = true;
    this.#stop();
  }

  #onData(chunk: Buffer) {
    if (this.#stopped) return;
    this.#chunk = chunk;
    this.#at = 0;
    this.#parse();
  }

  #onEnd() {
    if (this.#stopped) return;
    if (this.#headLength > 0 || this.#skip > 0 || this.#payload) {
      this.#log('disconnected in the middle of a request');
    }
    this.#stop();
  }

  #onClose() {
    if (this.#closed) return;
    this.#closed = true;
    this.#stopped = true;
    this.#payload?.release();
    this.#payload = undefined;
    this.#replies.close();
    this.#settle();
  }

  #stop(): void {
    this.#stopped = true;
    this.#chunk = EMPTY;
    this.#at = 0;
    this.#settle();
  }

  /** Ends the socket, then the phase, once nothing is in flight. */
  #settle() {
    if (!this.#stopped || this.#requestsInFlight > 0) return;
    if (this.#closed) {
      this.#replies.release();
      return this.#resolve();
    }
    if (this.#parsing || this.#ended) return;
    this.#ended = true;
    this.#replies.flush();
    this.#socket.end(() => {
      if (!this.#lingers) this.#socket.destroy();
    });
    // What still comes is read and dropped, so that unread bytes do not reset the connection under the last replies.
    this.#socket.resume();
  }

  /** A client that broke the protocol cannot be understood any further. */
  #violation(state: string): void {
    this.#log(state);
    this.#stopped = true;
    this.#chunk = EMPTY;
    this.#at = 0;
    this.#socket.destroy();
  }

  #mustWait(): boolean {
    return (
      this.#requestsInFlight >= this.#limits.requestsInFlight ||
      this.#bytesInFlight >= this.#limits.bytesInFlight ||
      this.#replies.unsent >= this.#limits.replyBytes
    );
  }

  #parse(): void {
    this.#parsing = true;
    while (!this.#stopped) {
      const left = this.#chunk.length - this.#at;
      if (this.#skip > 0) {
        const count = Math.min(this.#skip, left);
        this.#skip -= count;
        this.#at += count;
        if (this.#skip > 0) break;
        continue;
      }
      if (this.#payload) {
        if (!this.#gather()) break;
        continue;
      }
      if (left === 0) break;
      if (this.#mustWait()) {
        // What is ready must be on its way, or nobody would wake this connection.
        this.#replies.flush();
        if (this.#mustWait()) {
          this.#paused = true;
          this.#socket.pause();
          break;
        }
      }
      if (this.#headLength > 0 || left < REQUEST_SIZE) {
        const count = this.#chunk.copy(this.#head, this.#headLength, this.#at);
        this.#headLength += count;
        this.#at += count;
        if (this.#headLength < REQUEST_SIZE) break;
        this.#headLength = 0;
        this.#request(this.#head, 0);
      } else {
        this.#at += REQUEST_SIZE;
        this.#request(this.#chunk, this.#at - REQUEST_SIZE);
      }
    }
    this.#parsing = false;
    if (this.#at >= this.#chunk.length) {
      this.#chunk = EMPTY;
      this.#at = 0;
    }
    this.#replies.flush();
    this.#settle();
  }

  /** Goes on where `#parse` stopped. */
  #wake(): void {
    if (!this.#paused || this.#parsing || this.#stopped || this.#mustWait()) return;
    this.#paused = false;
    this.#parse();
    if (!this.#paused && !this.#stopped) this.#socket.resume();
  }

  #request(head: Buffer, base: number) {
    if (head.readUInt32BE(base + AT.magic) !== REQUEST_MAGIC)
      return this.#violation('sent a request without its magic');
    const flags = head.readUInt16BE(base + AT.flags);
    const type = head.readUInt16BE(base + AT.type);
    const offset = head.readUInt32BE(base + AT.offset) * 0x1_0000_0000 + head.readUInt32BE(base + AT.offset + 4);
    const length = head.readUInt32BE(base + AT.length);
    this.#flags = flags;
    this.#replies.cookieHigh = head.readUInt32BE(base + AT.cookieHigh);
    this.#replies.cookieLow = head.readUInt32BE(base + AT.cookieLow);

    if (type === CMD.DISC) return this.#stop();
    // Whatever is wrong with a write, its payload follows.
    if (type === CMD.WRITE) return this.#writeRequest(offset, length);
    if ((flags & ~(ALLOWED_FLAGS[type] ?? 0xffff)) !== 0) {
      return this.#refuse('EINVAL', `command ${type} does not take the flags 0x${flags.toString(16)}`);
    }
    switch (type) {
      case CMD.READ:
        return this.#read(offset, length);
      case CMD.FLUSH:
        if (offset !== 0 || length !== 0) return this.#refuse('EINVAL', 'a flush takes no offset and no length');
        return this.#flushRequest();
      case CMD.TRIM:
      case CMD.WRITE_ZEROES:
        return this.#zeroOrTrim(type, offset, length);
      case CMD.CACHE:
        if (this.#outside('cache', offset, length, 'EINVAL')) return;
        return this.#answer(this.#replies.reserve(SIMPLE_REPLY_SIZE), 0, this.#cache(offset as Bytes, length));
      case CMD.BLOCK_STATUS:
        return this.#blockStatusRequest(offset, length);
      default:
        return this.#refuse('EINVAL', `command ${type} is not known to this server`);
    }
  }

  #read(offset: number, length: number) {
    if (this.#outside('read', offset, length, 'EINVAL')) return;
    if (length > this.#limits.payloadBytes) {
      return this.#refuse('EINVAL', `cannot read ${length} bytes at once: ${this.#limits.payloadBytes} is the most`);
    }
    if ((this.#flags & CMD_FLAG.DF) !== 0 && !this.#structured) {
      return this.#refuse('EINVAL', 'DF needs structured replies, which were not negotiated');
    }
    const header = this.#structured ? CHUNK_HEADER_SIZE + 8 : SIMPLE_REPLY_SIZE;
    const slot = this.#replies.reserve(header + length);
    const { data } = this.#replies.buffer;
    if (this.#structured) {
      // One chunk for all of it: DF or not, holes or not.
      data.writeUInt32BE(STRUCTURED_REPLY_MAGIC, slot);
      data.writeUInt32BE((CHUNK_DONE << 16) | CHUNK.OFFSET_DATA, slot + 4);
      data.writeUInt32BE(8 + length, slot + 16);
      data.writeUInt32BE(Math.floor(offset / 0x1_0000_0000), slot + 20);
      data.writeUInt32BE(offset % 0x1_0000_0000, slot + 24);
    }
    let wait: Maybe;
    try {
      wait = this.#access.read(offset as Bytes, data, slot + header, length);
    } catch (error) {
      return this.#fail(error);
    }
    if (wait) this.#later(slot, header + length, length, wait, false);
    else this.#replies.push(this.#replies.buffer, slot, slot + header + length);
  }

  #writeRequest(offset: number, length: number) {
    if (length > this.#limits.payloadBytes) {
      this.#skip = length;
      return this.#refuse('EINVAL', `cannot write ${length} bytes at once: ${this.#limits.payloadBytes} is the most`);
    }
    const whole = this.#chunk.length - this.#at >= length;
    if ((this.#flags & ~ALLOWED_FLAGS[CMD.WRITE]) !== 0) {
      this.#skip = length;
      return this.#refuse('EINVAL', `a write does not take the flags 0x${this.#flags.toString(16)}`);
    }
    if (this.#refusesWrite('write', offset, length)) {
      this.#skip = length;
      return;
    }
    if (!whole) {
      this.#payload = this.#buffers.take(length);
      this.#payloadLength = length;
      this.#payloadFlags = this.#flags;
      this.#payloadOffset = offset;
      this.#payloadCookieHigh = this.#replies.cookieHigh;
      this.#payloadCookieLow = this.#replies.cookieLow;
      return;
    }
    const start = this.#at;
    this.#at += length;
    this.#write(offset, this.#chunk, start, length, undefined);
  }

  /** Copies what is there of a payload; true when it was the rest and the write has begun. */
  #gather(): boolean {
    const payload = this.#payload!;
    const count = Math.min(this.#payloadLength - payload.used, this.#chunk.length - this.#at);
    this.#chunk.copy(payload.data, payload.used, this.#at, this.#at + count);
    payload.used += count;
    this.#at += count;
    if (payload.used < this.#payloadLength) return false;
    this.#payload = undefined;
    this.#flags = this.#payloadFlags;
    this.#replies.cookieHigh = this.#payloadCookieHigh;
    this.#replies.cookieLow = this.#payloadCookieLow;
    this.#write(this.#payloadOffset, payload.data, 0, this.#payloadLength, payload);
    return true;
  }

  /** `payload` is given back when the device is done with it. */
  #write(offset: number, from: Buffer, start: number, length: number, payload: ReplyBuffer | undefined) {
    const slot = this.#replies.reserve(SIMPLE_REPLY_SIZE);
    let wait: Maybe;
    try {
      // The device may have shrunk while the payload was gathered.
      if (payload && offset + length > this.#device.size)
        throw beyond('write', offset, length, this.#device.size, 'ENOSPC');
      wait = this.#access.write(offset as Bytes, from, start, length);
    } catch (error) {
      payload?.release();
      return this.#fail(error);
    }
    if (payload) {
      if (wait) wait = wait.finally(payload.release);
      else payload.release();
    }
    this.#answer(slot, length, wait);
  }

  #zeroOrTrim(type: number, offset: number, length: number) {
    const zero = type === CMD.WRITE_ZEROES;
    if (this.#refusesWrite(zero ? 'write zeroes' : 'trim', offset, length)) return;
    const mayUnmap = (this.#flags & CMD_FLAG.NO_HOLE) === 0;
    // Fast is what unmaps; all else may write every block.
    if ((this.#flags & CMD_FLAG.FAST_ZERO) !== 0 && !(mayUnmap && this.#device.canDiscard)) {
      return this.#refuse('EOPNOTSUPP', 'zeroes here are no faster than a write');
    }
    const slot = this.#replies.reserve(SIMPLE_REPLY_SIZE);
    let wait: Maybe;
    try {
      if (zero) wait = this.#access.writeZeroes(offset as Bytes, length, mayUnmap);
      else wait = this.#access.discard(offset as Bytes, length);
    } catch (error) {
      return this.#fail(error);
    }
    this.#answer(slot, 0, wait);
  }

  #flushRequest() {
    const slot = this.#replies.reserve(SIMPLE_REPLY_SIZE);
    let wait: Maybe;
    try {
      wait = this.#device.flush();
    } catch (error) {
      return this.#fail(error);
    }
    if (wait) this.#later(slot, SIMPLE_REPLY_SIZE, 0, wait, false);
    else this.#replies.push(this.#replies.buffer, slot, slot + SIMPLE_REPLY_SIZE);
  }

  /** Success without data, after `wait`, and after a flush with FUA. */
  #answer(slot: number, length: number, wait: Maybe) {
    const fua = (this.#flags & CMD_FLAG.FUA) !== 0;
    if (!wait && fua) {
      try {
        wait = this.#device.flush();
      } catch (error) {
        return this.#fail(error);
      }
      if (wait) return this.#later(slot, SIMPLE_REPLY_SIZE, length, wait, false);
    }
    if (wait) this.#later(slot, SIMPLE_REPLY_SIZE, length, wait, fua);
    else this.#replies.push(this.#replies.buffer, slot, slot + SIMPLE_REPLY_SIZE);
  }

  /** Keeps the slot until the device is done. */
  #later(slot: number, size: number, length: number, wait: Promise<void>, thenFlush: boolean): void {
    const { buffer } = this.#replies;
    const cookieHigh = this.#replies.cookieHigh;
    const cookieLow = this.#replies.cookieLow;
    buffer.retain();
    this.#requestsInFlight++;
    this.#bytesInFlight += length;
    const settled = thenFlush ? wait.then(() => this.#device.flush()) : wait;
    settled.then(
      () => {
        this.#replies.push(buffer, slot, slot + size);
        this.#completed(buffer, length);
      },
      (error) => {
        this.#replies.cookieHigh = cookieHigh;
        this.#replies.cookieLow = cookieLow;
        this.#fail(error);
        this.#completed(buffer, length);
      },
    );
  }

  #completed(buffer: ReplyBuffer, length: number): void {
    this.#requestsInFlight--;
    this.#bytesInFlight -= length;
    buffer.release();
    this.#replies.planFlush();
    if (this.#stopped) this.#settle();
  }

  #blockStatusRequest(offset: number, length: number) {
    if (this.#outside('ask for the status of', offset, length, 'EINVAL')) return;
    if (this.#session.contexts.length === 0) return this.#refuse('EINVAL', 'no meta context was negotiated');
    const cookieHigh = this.#replies.cookieHigh;
    const cookieLow = this.#replies.cookieLow;
    const one = (this.#flags & CMD_FLAG.REQ_ONE) !== 0;
    this.#requestsInFlight++;
    this.#blockStatuses(offset as Bytes, length, one)
      .then(
        (payloads) => {
          this.#replies.cookieHigh = cookieHigh;
          this.#replies.cookieLow = cookieLow;
          payloads.forEach((payload, index) => {
            this.#replies.chunk(CHUNK.BLOCK_STATUS, payload, index === payloads.length - 1);
          });
        },
        (error) => {
          this.#replies.cookieHigh = cookieHigh;
          this.#replies.cookieLow = cookieLow;
          this.#fail(error);
        },
      )
      .finally(() => {
        this.#requestsInFlight--;
        this.#replies.planFlush();
        if (this.#stopped) this.#settle();
      });
  }

  async #blockStatuses(at: Bytes, length: number, one: boolean): Promise<Buffer[]> {
    const payloads: Buffer[] = [];
    for (const context of this.#session.contexts) {
      payloads.push(await blockStatus(this.#session.open, context, at, length, this.#limits.extents, one));
    }
    return payloads;
  }

  /** Reading is what brings data into caches, whoever keeps them. */
  async #cache(offset: Bytes, length: number): Promise<void> {
    const scratch = this.#buffers.take(Math.min(length, CACHE_PIECE));
    try {
      for (let done = 0; done < length && !this.#closed; done += CACHE_PIECE) {
        await this.#access.read((offset + done) as Bytes, scratch.data, 0, Math.min(CACHE_PIECE, length - done));
        await nextTurn();
      }
    } finally {
      scratch.release();
    }
  }

  /** Refuses what is not inside the device, at the size it has now. */
  #outside(verb: string, offset: number, length: number, errno: Errno): boolean {
    const { size } = this.#device;
    if (length > 0 && offset + length <= size) return false;
    if (length === 0) this.#refuse('EINVAL', `cannot ${verb} 0 bytes`);
    else this.#fail(beyond(verb, offset, length, size, errno));
    return true;
  }

  #refusesWrite(verb: string, offset: number, length: number): boolean {
    if (!this.#readOnly) return this.#outside(verb, offset, length, 'ENOSPC');
    this.#refuse('EPERM', `cannot ${verb}: export "${this.#session.name}" is read-only`);
    return true;
  }

  #refuse(errno: Errno, message: string): void {
    this.#fail(new DmError('NBD_REQUEST', errno, message));
  }

  /** The error reply for the current cookie. A slot it may have had stays unused. */
  #fail(error: unknown) {
    if (!(error instanceof DmError)) this.#log(`a request failed: ${error instanceof Error ? error.stack : error}`);
    const { errno, message } = fromSystem(error, `export "${this.#session.name}"`);
    this.#replies.error(toWire(errno), message, this.#structured);
  }
}

const beyond = (verb: string, offset: number, length: number, size: number, errno: Errno) =>
  new DmError('OUT_OF_RANGE', errno, `cannot ${verb} ${length} bytes at ${offset}: the device has ${size}`);
