/**
 * Requests in flight on one connection to an NBD server (doc/proto.md, "Transmission"). What the server sends is not
 * believed: a length, an offset or a cookie that does not fit ends the connection.
 */
import type { Socket } from 'node:net';
import { type Errno, FormatError } from '../errors.ts';
import {
  CHUNK,
  CHUNK_DONE,
  CMD,
  isChunkError,
  REQUEST_MAGIC,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from '../formats/nbd/constants.ts';
import { fromWire } from '../formats/nbd/errors.ts';
import { printable, viewOf } from '../formats/nbd/handshake.ts';
import {
  blockDescriptor,
  CHUNK_HEADER_SIZE,
  chunkHeader,
  errorChunk,
  offsetHole,
  REQUEST_SIZE,
  requestHeader,
  SIMPLE_REPLY_SIZE,
  simpleReply,
} from '../formats/nbd/transmission.ts';
import type { NbdGeometry, NbdLink } from './nbd-handshake.ts';

/** Descriptors kept of one block status; a server may send millions. */
const DESCRIPTORS_MAX = 4096;
/** Bytes of an error's text that are kept. */
const MESSAGE_MAX = 1024;

export class NbdRequest {
  readonly type: number;
  readonly flags: number;
  readonly at: number;
  readonly length: number;
  /** Payload of a write, or where a read goes. */
  readonly data: Uint8Array | undefined;
  readonly start: number;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
  /** Bytes of a read that have come. */
  received = 0;
  errno: Errno | undefined;
  message = '';
  /** Of a block status: length and flags in turn. */
  readonly descriptors: number[] = [];
  /** Of a flush: the writes that it covers. */
  covers = 0;

  constructor(
    type: number,
    flags: number,
    at: number,
    length: number,
    data: Uint8Array | undefined,
    start: number,
    resolve: () => void,
    reject: (error: Error) => void,
  ) {
    this.type = type;
    this.flags = flags;
    this.at = at;
    this.length = length;
    this.data = data;
    this.start = start;
    this.resolve = resolve;
    this.reject = reject;
  }

  /** Forgets what a lost connection had answered. */
  restart(): void {
    this.received = 0;
    this.errno = undefined;
    this.message = '';
    this.descriptors.length = 0;
  }
}

export interface NbdConnectionEvents {
  /** The request is answered: `errno` tells how. */
  answered(request: NbdRequest): void;
  /** Called once; `pending` were not answered. */
  closed(pending: NbdRequest[], reason: Error | undefined): void;
}

/** What the next bytes are. */
type Expect = 'reply' | 'chunk' | 'data offset' | 'hole' | 'context' | 'descriptor' | 'error' | 'message';

export class NbdConnection {
  readonly geometry: NbdGeometry;
  readonly #socket: Socket;
  readonly #events: NbdConnectionEvents;
  /** By cookie. */
  readonly #pending: (NbdRequest | undefined)[] = [];
  readonly #freeCookies: number[] = [];
  #corked = false;
  #reason: Error | undefined;

  /** The piece being gathered: `#have` of `#want` bytes. */
  readonly #piece = Buffer.alloc(MESSAGE_MAX);
  readonly #view = viewOf(this.#piece);
  #expect: Expect = 'reply';
  #want = SIMPLE_REPLY_SIZE;
  #have = 0;
  /** Bytes that go straight to the request's buffer at `#dataAt`. */
  #dataLeft = 0;
  #dataAt = 0;
  /** Bytes that nobody wants. */
  #skipLeft = 0;
  /** The request that the current message is about, and what is left of its chunk. */
  #request: NbdRequest | undefined;
  #cookie = 0;
  #chunkLeft = 0;
  #last = true;

  constructor({ socket, geometry, rest }: NbdLink, events: NbdConnectionEvents) {
    this.geometry = geometry;
    this.#socket = socket;
    this.#events = events;
    socket.on('error', (error) => (this.#reason ??= error));
    socket.on('end', () => socket.destroy());
    let closed = false;
    const onClose = () => {
      if (closed) return;
      closed = true;
      const pending = this.#pending.filter((request) => request !== undefined);
      this.#pending.length = 0;
      events.closed(pending, this.#reason);
    };
    socket.on('close', onClose);
    // It may have ended between the handshake and now.
    if (socket.destroyed) setImmediate(onClose);
    socket.on('data', (data: Buffer) => this.#onData(data));
    if (rest.length > 0) this.#onData(rest);
    socket.resume();
  }

  send(request: NbdRequest): void {
    const cookie = this.#freeCookies.pop() ?? this.#pending.length;
    this.#pending[cookie] = request;
    const head = Buffer.allocUnsafe(REQUEST_SIZE);
    requestHeader.set(viewOf(head), 0, {
      magic: REQUEST_MAGIC,
      flags: request.flags,
      type: request.type,
      cookieHigh: 0,
      cookieLow: cookie,
      offset: request.at,
      length: request.length,
    });
    // What is asked for within one turn leaves in one write.
    if (!this.#corked) {
      this.#corked = true;
      this.#socket.cork();
      process.nextTick(this.#uncork);
    }
    this.#socket.write(head);
    if (request.type === CMD.WRITE) {
      this.#socket.write(request.data!.subarray(request.start, request.start + request.length));
    }
  }

  /** Ends the connection as one that cannot be relied on; its requests come back through `closed`. */
  abandon(reason: Error): void {
    this.#reason ??= reason;
    this.#socket.destroy();
  }

  /** Says good-bye. Nothing may be in flight. */
  async disconnect(): Promise<void> {
    if (this.#socket.destroyed) return;
    const head = Buffer.alloc(REQUEST_SIZE);
    head.writeUInt32BE(REQUEST_MAGIC, requestHeader.at.magic);
    head.writeUInt16BE(CMD.DISC, requestHeader.at.type);
    await new Promise<void>((resolve) => {
      this.#socket.once('close', resolve);
      this.#socket.end(head, () => this.#socket.destroy());
    });
  }

  readonly #uncork = () => {
    this.#corked = false;
    this.#socket.uncork();
  };

  #violation(state: string): void {
    this.abandon(new FormatError('NBD_PROTOCOL', 'EIO', `the server ${state}`));
  }

  #onData(data: Buffer): void {
    for (let at = 0; at < data.length && !this.#socket.destroyed; ) {
      const left = data.length - at;
      if (this.#dataLeft > 0) {
        const count = Math.min(this.#dataLeft, left);
        data.copy(this.#request!.data!, this.#dataAt, at, at + count);
        this.#dataAt += count;
        this.#dataLeft -= count;
        at += count;
        if (this.#dataLeft === 0) this.#endChunk();
      } else if (this.#skipLeft > 0) {
        const count = Math.min(this.#skipLeft, left);
        this.#skipLeft -= count;
        at += count;
        if (this.#skipLeft === 0) this.#endChunk();
      } else {
        const count = Math.min(this.#want - this.#have, left);
        data.copy(this.#piece, this.#have, at, at + count);
        this.#have += count;
        at += count;
        if (this.#have === this.#want) this.#onPiece();
      }
    }
  }

  #next(expect: Expect, want: number): void {
    this.#expect = expect;
    this.#want = want;
    this.#have = 0;
  }

  /** The rest of the chunk is of no use. */
  #skip(): void {
    this.#skipLeft = this.#chunkLeft;
    this.#chunkLeft = 0;
    if (this.#skipLeft === 0) this.#endChunk();
  }

  #onPiece() {
    const view = this.#view;
    const request = this.#request!;
    switch (this.#expect) {
      case 'reply': {
        const magic = view.getUint32(0);
        if (magic === SIMPLE_REPLY_MAGIC) return this.#simpleReply();
        if (magic !== STRUCTURED_REPLY_MAGIC) return this.#violation('sent a reply without its magic');
        if (!this.geometry.structured) return this.#violation('sent a structured reply that was not negotiated');
        // A chunk's header is longer: gather the rest behind what is there.
        this.#expect = 'chunk';
        this.#want = CHUNK_HEADER_SIZE;
        return;
      }
      case 'chunk':
        return this.#chunk();
      case 'data offset': {
        const offset = view.getUint32(0) * 2 ** 32 + view.getUint32(4);
        const length = this.#chunkLeft - 8;
        if (!this.#inside(offset, length)) return this.#violation('sent data that was not asked for');
        this.#chunkLeft = 0;
        request.received += length;
        this.#dataAt = request.start + offset - request.at;
        this.#dataLeft = length;
        if (length === 0) this.#endChunk();
        return;
      }
      case 'hole': {
        const { offset, length } = offsetHole.get(view, 0);
        if (!this.#inside(offset, length)) return this.#violation('sent a hole that was not asked for');
        const start = request.start + offset - request.at;
        request.data!.fill(0, start, start + length);
        request.received += length;
        return this.#endChunk();
      }
      case 'context':
        this.#chunkLeft -= 4;
        if (view.getUint32(0) !== this.geometry.allocation) return this.#skip();
        return this.#nextDescriptor();
      case 'descriptor':
        this.#chunkLeft -= blockDescriptor.size;
        if (request.descriptors.length < 2 * DESCRIPTORS_MAX) {
          const { length, flags } = blockDescriptor.get(view, 0);
          request.descriptors.push(length, flags);
        }
        return this.#nextDescriptor();
      case 'error': {
        const { error, messageLength } = errorChunk.get(view, 0);
        this.#chunkLeft -= errorChunk.size;
        if (messageLength > this.#chunkLeft) return this.#violation('sent an error longer than its chunk');
        request.errno ??= fromWire(error);
        const kept = Math.min(messageLength, MESSAGE_MAX);
        if (kept === 0) return this.#skip();
        return this.#next('message', kept);
      }
      case 'message':
        this.#chunkLeft -= this.#want;
        request.message ||= printable(this.#piece.subarray(0, this.#want));
        return this.#skip();
    }
  }

  #simpleReply() {
    const { error, cookieHigh, cookieLow } = simpleReply.get(this.#view, 0);
    if (!this.#find(cookieHigh, cookieLow)) return;
    const request = this.#request!;
    this.#last = true;
    if (error !== 0) request.errno = fromWire(error);
    else if (request.type === CMD.READ) {
      if (this.geometry.structured) return this.#violation('answered a read with a simple reply');
      request.received = request.length;
      this.#dataAt = request.start;
      this.#dataLeft = request.length;
      return;
    } else if (request.type === CMD.BLOCK_STATUS) {
      return this.#violation('answered a block status with a simple reply');
    }
    this.#endChunk();
  }

  #chunk() {
    const { flags, type, cookieHigh, cookieLow, length } = chunkHeader.get(this.#view, 0);
    if (!this.#find(cookieHigh, cookieLow)) return;
    const request = this.#request!;
    this.#last = (flags & CHUNK_DONE) !== 0;
    this.#chunkLeft = length;
    const wrong = () => this.#violation(`sent a chunk of type ${type} and ${length} bytes for command ${request.type}`);
    if (isChunkError(type)) {
      if (length < errorChunk.size) return wrong();
      return this.#next('error', errorChunk.size);
    }
    switch (type) {
      case CHUNK.NONE:
        if (length !== 0 || !this.#last) return wrong();
        return this.#endChunk();
      case CHUNK.OFFSET_DATA:
        if (request.type !== CMD.READ || length < 8) return wrong();
        return this.#next('data offset', 8);
      case CHUNK.OFFSET_HOLE:
        if (request.type !== CMD.READ || length !== offsetHole.size) return wrong();
        return this.#next('hole', offsetHole.size);
      case CHUNK.BLOCK_STATUS:
        if (request.type !== CMD.BLOCK_STATUS || length < 12 || length % 8 !== 4) return wrong();
        return this.#next('context', 4);
      default:
        return wrong();
    }
  }

  #nextDescriptor() {
    if (this.#chunkLeft === 0) this.#endChunk();
    else this.#next('descriptor', blockDescriptor.size);
  }

  #find(cookieHigh: number, cookieLow: number): boolean {
    this.#cookie = cookieLow;
    this.#request = cookieHigh === 0 ? this.#pending[cookieLow] : undefined;
    if (this.#request) return true;
    this.#violation('answered a request that was not sent');
    return false;
  }

  /** The stretch lies in what was asked for, and no more comes than that in total. */
  #inside(offset: number, length: number): boolean {
    const { at, length: asked, received } = this.#request!;
    return offset >= at && offset + length <= at + asked && received + length <= asked;
  }

  #endChunk() {
    const request = this.#request!;
    this.#request = undefined;
    this.#next('reply', SIMPLE_REPLY_SIZE);
    if (!this.#last) return;
    if (!request.errno) {
      if (request.type === CMD.READ && request.received < request.length)
        return this.#violation('left out data of a read');
      if (request.type === CMD.BLOCK_STATUS && request.descriptors.length === 0) {
        return this.#violation('answered a block status without one');
      }
    }
    this.#pending[this.#cookie] = undefined;
    this.#freeCookies.push(this.#cookie);
    this.#events.answered(request);
  }
}
