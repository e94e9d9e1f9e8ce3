/**
 * The transmission phase of one connection (doc/proto.md, "Transmission"): requests are cut from the stream here and
 * carried out by `Commands`. This is the hot path: a request that its device answers at once costs no promise, closure or
 * buffer.
 *
 *     received -> one loop over the chunk: requests are parsed where they lie
 *              -> device.read straight into the reply buffer, behind the place of its header
 *              -> at the end of the chunk, one write of all replies
 *
 * - By descriptor, chunks lie in buffers that are used again (`received.ts`), and replies are sent without a stream. Over
 *   TLS, and without system calls, Node's stream does both.
 * - A write's payload goes to the device from the chunk if it lies there whole; otherwise it is gathered once, and what
 *   is long of it is received in its place.
 * - The loop stops between two requests, and the socket is paused, while too much is in flight, the client does not take
 *   its replies, or there is no memory for the next request. It goes on where it stopped.
 *
 * The client is not trusted: what it may break is its own connection.
 */
import type { Duplex } from 'node:stream';
import type { ByteAccess } from '../../device/byte-access.ts';
import { CMD, REQUEST_MAGIC } from '../../formats/nbd/constants.ts';
import { REQUEST_SIZE, requestHeader } from '../../formats/nbd/transmission.ts';
import { system } from '../../lib/system.ts';
import { attach } from './adopt.ts';
import { Commands } from './commands.ts';
import type { Session } from './handshake.ts';
import type { Limits } from './limits.ts';
import type { Memory, Share } from './memory.ts';
import { BufferSource, ChunkSource } from './received.ts';
import { Replies } from './replies.ts';
import { bufferBytes, type ReplyBuffer, type ReplyBuffers } from './reply-buffers.ts';

const AT = requestHeader.at;
const EMPTY = Buffer.alloc(0);
/** So that others get their turn. */
const ROUNDS_MAX = 8;

export class Transmission {
  readonly #socket: Duplex;
  readonly #system = system();
  readonly #buffers: ReplyBuffers;
  readonly #replies: Replies;
  readonly #commands: Commands;
  readonly #share: Share;
  readonly #limits: Limits;
  readonly #log: (line: string) => void;

  /** Chunks come from a stream, or before the first byte from a descriptor. */
  readonly #chunks: ChunkSource;
  /** By descriptor. */
  readonly #received: BufferSource | undefined;
  /** Received and not yet parsed: `#chunk` from `#at` to `#end`. */
  #chunk: Buffer = EMPTY;
  #at = 0;
  #end = 0;
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
  /** Payloads gathered so far. */
  #gathered = 0;

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

  /** Over a stream, or over a connected socket's descriptor: then it is this that closes it. */
  constructor(
    line: Duplex | number,
    session: Session,
    access: ByteAccess,
    buffers: ReplyBuffers,
    memory: Memory,
    limits: Limits,
    log: (line: string) => void,
  ) {
    this.#buffers = buffers;
    this.#limits = limits;
    this.#log = log;
    // TLS keeps what the client has yet to take once more, encrypted.
    this.#share = memory.join(this.#holder(), session.secure ? 2 : 1, session.open.device);
    this.#chunks = new ChunkSource(this.#share);
    let fd = -1;
    if (typeof line === 'number') {
      fd = line;
      const received = new BufferSource(buffers, this.#share);
      this.#received = received;
      try {
        this.#socket = attach(fd, {
          place: () => {
            received.choose(this.#payload, this.#payloadLength);
            return received.place;
          },
          received: (count) => this.#onReceived(received, fd, count),
        });
      } catch (error) {
        received.close();
        this.#share.leave();
        throw error;
      }
      this.#socket.on('error', () => {});
    } else {
      this.#socket = line;
    }
    this.#replies = new Replies(this.#socket, fd, buffers, this.#share, () => this.#wake());
    this.#commands = new Commands(
      session,
      access,
      this.#chunks,
      this.#replies,
      buffers,
      this.#share,
      limits,
      log,
      () => {
        if (this.#stopped) this.#settle();
      },
    );
    this.done = new Promise((resolve) => (this.#resolve = resolve));
  }

  /** Begins with the bytes that came behind the handshake. */
  start(rest: Buffer) {
    const socket = this.#socket;
    socket.on('close', () => this.#onClose());
    if (socket.destroyed) return this.#onClose();
    if (!this.#received) socket.on('data', (chunk: Buffer) => this.#onData(chunk));
    socket.on('end', () => this.#onEnd());
    if (rest.length > 0) this.#onData(rest);
    if (!this.#paused && !this.#stopped) socket.resume();
  }

  /** Disconnects. */
  cut(): void {
    this.#socket.destroy();
  }

  /** Takes no further request; ends the connection when those in flight are answered. */
  drain(): void {
    this.#lingers = true;
    this.#stop();
  }

  #holder() {
    return {
      wake: () => this.#wake(),
      progress: () => (this.#payload || this.#replies.unsent > 0 ? this.#gathered + this.#replies.taken : undefined),
      cutOff: () => {
        const what = this.#payload ? 'did not finish a payload' : 'did not take its replies';
        this.#violation(`${what} for ${this.#limits.stallMs} ms while others waited for memory`);
      },
    };
  }

  #onData(chunk: Buffer) {
    if (this.#stopped) return;
    this.#chunk = chunk;
    this.#at = 0;
    this.#end = chunk.length;
    this.#chunks.next(chunk.length);
    this.#parse();
  }

  #onReceived(received: BufferSource, fd: number, count: number) {
    this.#accept(received, count);
    // The rest of a long payload is there soon: asking for it costs less than waiting for an event each time.
    for (let round = 0; round < ROUNDS_MAX; round++) {
      // Destroyed, the socket has given its descriptor back.
      if (this.#stopped || this.#paused || this.#socket.destroyed) return;
      if (!received.choose(this.#payload, this.#payloadLength)) return;
      const more = this.#system!.receive(fd, received.into, received.start, received.room);
      if (more <= 0) return;
      this.#accept(received, more);
    }
  }

  #accept(received: BufferSource, count: number): void {
    const toParse = received.received(count);
    if (toParse) {
      this.#chunk = received.data;
      this.#at = received.at;
      this.#end = received.end;
      this.#commands.source = received;
    }
    if (this.#stopped) this.#parsed();
    else this.#parse();
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
    this.#share.leaveLine();
    this.#payload?.release();
    this.#payload = undefined;
    this.#received?.close();
    this.#replies.close();
    this.#commands.close();
    this.#settle();
  }

  #stop(): void {
    this.#stopped = true;
    this.#parsed();
    this.#payload?.release();
    this.#payload = undefined;
    this.#share.leaveLine();
    this.#settle();
  }

  /** Ends the socket, then the phase, once nothing is in flight. */
  #settle() {
    if (!this.#stopped || this.#commands.requestsInFlight > 0) return;
    if (this.#closed) {
      this.#replies.release();
      this.#share.leave();
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
    this.#share.leaveLine();
    this.#parsed();
    this.#socket.destroy();
  }

  #mustWait(): boolean {
    return (
      this.#commands.requestsInFlight >= this.#limits.requestsInFlight ||
      this.#commands.bytesInFlight >= this.#limits.bytesInFlight ||
      this.#replies.unsent >= this.#limits.replyBytes
    );
  }

  #parse(): void {
    this.#parsing = true;
    while (!this.#stopped) {
      const left = this.#end - this.#at;
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
      if (left === 0 && this.#headLength < REQUEST_SIZE) break;
      if (this.#mustWait()) {
        // What is ready must be on its way, or nobody would wake this connection.
        this.#replies.flush();
        if (this.#mustWait()) {
          this.#pause();
          break;
        }
      }
      if (this.#headLength > 0 || left < REQUEST_SIZE) {
        const count = this.#chunk.copy(this.#head, this.#headLength, this.#at, this.#end);
        this.#headLength += count;
        this.#at += count;
        if (this.#headLength < REQUEST_SIZE) break;
        this.#headLength = 0;
        if (!this.#request(this.#head, 0)) {
          this.#headLength = REQUEST_SIZE;
          this.#pause();
          break;
        }
      } else {
        this.#at += REQUEST_SIZE;
        if (!this.#request(this.#chunk, this.#at - REQUEST_SIZE)) {
          this.#at -= REQUEST_SIZE;
          this.#pause();
          break;
        }
      }
    }
    this.#parsing = false;
    if (this.#at >= this.#end) this.#parsed();
    this.#replies.flush();
    this.#settle();
  }

  /** Nothing is left of what was received. */
  #parsed(): void {
    this.#chunk = EMPTY;
    this.#at = 0;
    this.#end = 0;
    this.#received?.parsed();
  }

  #pause(): void {
    this.#paused = true;
    this.#socket.pause();
  }

  /** Goes on where `#parse` stopped. */
  #wake(): void {
    if (!this.#paused || this.#parsing || this.#stopped) return;
    if (this.#mustWait()) {
      // Others need not stand behind one that could not go on if it were its turn.
      this.#share.leaveLine();
      return;
    }
    this.#paused = false;
    this.#parse();
    if (!this.#paused && !this.#stopped) this.#socket.resume();
  }
  /** False when there is no memory for the request: it is to be tried again. */
  #request(head: Buffer, base: number): boolean {
    if (head.readUInt32BE(base + AT.magic) !== REQUEST_MAGIC) {
      this.#violation('sent a request without its magic');
      return true;
    }
    const type = head.readUInt16BE(base + AT.type);
    const offset = head.readUInt32BE(base + AT.offset) * 0x1_0000_0000 + head.readUInt32BE(base + AT.offset + 4);
    const length = head.readUInt32BE(base + AT.length);
    const gathers = type === CMD.WRITE && length <= this.#limits.payloadBytes && !this.#isHere(length);
    const cost = gathers
      ? this.#commands.cost(type, offset, 0) + bufferBytes(length)
      : this.#commands.cost(type, offset, length);
    if (!this.#share.admits(cost)) return false;
    this.#commands.flags = head.readUInt16BE(base + AT.flags);
    this.#replies.cookieHigh = head.readUInt32BE(base + AT.cookieHigh);
    this.#replies.cookieLow = head.readUInt32BE(base + AT.cookieLow);
    if (type === CMD.DISC) this.#stop();
    else if (type === CMD.WRITE) this.#write(offset, length);
    else this.#commands.run(type, offset, length);
    return true;
  }

  /** The payload lies whole in the chunk. */
  #isHere(length: number): boolean {
    return this.#end - this.#at >= length;
  }

  #write(offset: number, length: number): void {
    if (!this.#commands.mayWrite(offset, length)) {
      // Whatever is wrong with a write, its payload follows.
      this.#skip = length;
    } else if (this.#isHere(length)) {
      const start = this.#at;
      this.#at += length;
      this.#commands.write(offset, this.#chunk, start, length, undefined);
    } else {
      this.#payload = this.#buffers.take(length, this.#share);
      this.#payloadLength = length;
      this.#payloadFlags = this.#commands.flags;
      this.#payloadOffset = offset;
      this.#payloadCookieHigh = this.#replies.cookieHigh;
      this.#payloadCookieLow = this.#replies.cookieLow;
    }
  }

  /** Copies what is there of a payload; true when it was the rest and the write has begun. */
  #gather(): boolean {
    const payload = this.#payload!;
    const count = Math.min(this.#payloadLength - payload.used, this.#end - this.#at);
    this.#chunk.copy(payload.data, payload.used, this.#at, this.#at + count);
    payload.used += count;
    this.#at += count;
    if (payload.used < this.#payloadLength) return false;
    this.#payload = undefined;
    this.#gathered++;
    this.#commands.flags = this.#payloadFlags;
    this.#replies.cookieHigh = this.#payloadCookieHigh;
    this.#replies.cookieLow = this.#payloadCookieLow;
    this.#commands.write(this.#payloadOffset, payload.data, 0, this.#payloadLength, payload);
    return true;
  }
}
