/**
 * What the requests of one connection do to its device, and how they are answered. A request that the device answers at
 * once costs no promise, closure or buffer: a read goes straight into the reply buffer, behind the place of its header.
 *
 * A request's reply has its place (a *slot*) before the device is called, and the cookie is copied there. When the device
 * returns a promise, the slot waits, and later replies go out before it.
 */
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import type { ByteAccess } from '../../device/byte-access.ts';
import { DmError, type Errno, fromSystem } from '../../errors.ts';
import { CHUNK, CHUNK_DONE, CMD, CMD_FLAG, STRUCTURED_REPLY_MAGIC } from '../../formats/nbd/constants.ts';
import { toWire } from '../../formats/nbd/errors.ts';
import { CHUNK_HEADER_SIZE, SIMPLE_REPLY_SIZE } from '../../formats/nbd/transmission.ts';
import type { Bytes } from '../../units.ts';
import { blockStatus } from './block-status.ts';
import type { Session } from './handshake.ts';
import { Hold } from './hold.ts';
import type { Limits } from './limits.ts';
import type { Share } from './memory.ts';
import type { Source } from './received.ts';
import { type Replies, SHORT_REPLY_MAX } from './replies.ts';
import type { ReplyBuffer, ReplyBuffers } from './reply-buffers.ts';

/** Of a descriptor of a block status, as an object and in the reply. */
const EXTENT_BYTES = 64;

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

const isAligned = (offset: number, length: number) => offset % 512 === 0 && length % 512 === 0;

const nextTurn = () => new Promise<void>((resolve) => setImmediate(resolve));

export class Commands {
  /** Of the request being carried out; its cookie is in `replies`. */
  flags = 0;
  /** Where its payload lies, if that came whole. */
  source: Source;
  requestsInFlight = 0;
  bytesInFlight = 0;
  readonly #session: Session;
  readonly #device: BlockDevice;
  /** The same device for requests of any alignment; writes of all connections go through the same one. */
  readonly #access: ByteAccess;
  readonly #replies: Replies;
  readonly #buffers: ReplyBuffers;
  readonly #share: Share;
  readonly #limits: Limits;
  readonly #structured: boolean;
  readonly #readOnly: boolean;
  readonly #log: (line: string) => void;
  readonly #onCompleted: () => void;
  #closed = false;

  /** `onCompleted` is called when a request that was in flight no longer is. */
  constructor(
    session: Session,
    access: ByteAccess,
    source: Source,
    replies: Replies,
    buffers: ReplyBuffers,
    share: Share,
    limits: Limits,
    log: (line: string) => void,
    onCompleted: () => void,
  ) {
    this.#session = session;
    this.#device = session.open.device;
    this.#access = access;
    this.source = source;
    this.#replies = replies;
    this.#buffers = buffers;
    this.#share = share;
    this.#limits = limits;
    this.#structured = session.structured;
    this.#readOnly = session.open.readOnly;
    this.#log = log;
    this.#onCompleted = onCompleted;
  }

  /** Nobody waits for answers any more. */
  close(): void {
    this.#closed = true;
  }

  /** Bytes that the request will hold beside what is held already; without a payload that does not lie in the chunk. */
  cost(type: number, offset: number, length: number): number {
    switch (type) {
      case CMD.READ:
        if (length > this.#limits.payloadBytes) break;
        return (
          this.#replies.cost(Math.max(CHUNK_HEADER_SIZE + 8 + length, SHORT_REPLY_MAX)) +
          (isAligned(offset, length) ? 0 : length)
        );
      case CMD.WRITE:
        return this.#replies.cost(SHORT_REPLY_MAX) + this.source.cost;
      case CMD.BLOCK_STATUS:
        return this.#replies.cost(SHORT_REPLY_MAX) + this.#statusBytes;
    }
    return this.#replies.cost(SHORT_REPLY_MAX);
  }

  /** Carries out a request that has no payload. */
  run(type: number, offset: number, length: number) {
    if ((this.flags & ~(ALLOWED_FLAGS[type] ?? 0xffff)) !== 0) {
      return this.#refuse('EINVAL', `command ${type} does not take the flags 0x${this.flags.toString(16)}`);
    }
    switch (type) {
      case CMD.READ:
        return this.#read(offset, length);
      case CMD.FLUSH:
        if (offset !== 0 || length !== 0) return this.#refuse('EINVAL', 'a flush takes no offset and no length');
        return this.#flush();
      case CMD.TRIM:
      case CMD.WRITE_ZEROES:
        return this.#zeroOrTrim(type, offset, length);
      case CMD.CACHE:
        if (this.#outside('cache', offset, length, 'EINVAL')) return;
        return this.#answer(this.#replies.reserve(SIMPLE_REPLY_SIZE), 0, this.#cache(offset as Bytes, length));
      case CMD.BLOCK_STATUS:
        return this.#blockStatus(offset, length);
      default:
        return this.#refuse('EINVAL', `command ${type} is not known to this server`);
    }
  }

  /** False when the write is refused, and answered; its payload is then to be skipped. */
  mayWrite(offset: number, length: number): boolean {
    if (length > this.#limits.payloadBytes) {
      this.#refuse('EINVAL', `cannot write ${length} bytes at once: ${this.#limits.payloadBytes} is the most`);
      return false;
    }
    if ((this.flags & ~ALLOWED_FLAGS[CMD.WRITE]) !== 0) {
      this.#refuse('EINVAL', `a write does not take the flags 0x${this.flags.toString(16)}`);
      return false;
    }
    return !this.#refusesWrite('write', offset, length);
  }

  /** `mayWrite` allowed it. `payload` is given back when the device is done with it. */
  write(offset: number, from: Buffer, start: number, length: number, payload: ReplyBuffer | undefined) {
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
    if (wait) return this.#answer(slot, length, wait, payload ?? this.source.hold());
    payload?.release();
    this.#answer(slot, length, wait);
  }

  #read(offset: number, length: number) {
    if (this.#outside('read', offset, length, 'EINVAL')) return;
    if (length > this.#limits.payloadBytes) {
      return this.#refuse('EINVAL', `cannot read ${length} bytes at once: ${this.#limits.payloadBytes} is the most`);
    }
    if ((this.flags & CMD_FLAG.DF) !== 0 && !this.#structured) {
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
    if (wait) {
      // The device reads the whole sectors elsewhere.
      const held = isAligned(offset, length) ? undefined : new Hold(this.#share, length);
      this.#later(slot, header + length, length, wait, false, held);
    } else this.#replies.push(this.#replies.buffer, slot, slot + header + length);
  }

  #zeroOrTrim(type: number, offset: number, length: number) {
    const zero = type === CMD.WRITE_ZEROES;
    if (this.#refusesWrite(zero ? 'write zeroes' : 'trim', offset, length)) return;
    const mayUnmap = (this.flags & CMD_FLAG.NO_HOLE) === 0;
    // Fast is what unmaps; all else may write every block.
    if ((this.flags & CMD_FLAG.FAST_ZERO) !== 0 && !(mayUnmap && this.#device.canDiscard)) {
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

  #flush() {
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

  /** Success without data, after `wait`, and after a flush with FUA. `held` is given back then. */
  #answer(slot: number, length: number, wait: Maybe, held?: Hold) {
    const fua = (this.flags & CMD_FLAG.FUA) !== 0;
    if (!wait && fua) {
      try {
        wait = this.#device.flush();
      } catch (error) {
        return this.#fail(error);
      }
      if (wait) return this.#later(slot, SIMPLE_REPLY_SIZE, length, wait, false);
    }
    if (wait) this.#later(slot, SIMPLE_REPLY_SIZE, length, wait, fua, held);
    else this.#replies.push(this.#replies.buffer, slot, slot + SIMPLE_REPLY_SIZE);
  }

  /** Keeps the slot until the device is done. */
  #later(slot: number, size: number, length: number, wait: Promise<void>, thenFlush: boolean, held?: Hold): void {
    const { buffer } = this.#replies;
    const cookieHigh = this.#replies.cookieHigh;
    const cookieLow = this.#replies.cookieLow;
    buffer.retain();
    this.requestsInFlight++;
    this.bytesInFlight += length;
    const settled = thenFlush ? wait.then(() => this.#device.flush()) : wait;
    settled.then(
      () => {
        this.#replies.push(buffer, slot, slot + size);
        this.#completed(buffer, length, held);
      },
      (error) => {
        this.#replies.cookieHigh = cookieHigh;
        this.#replies.cookieLow = cookieLow;
        this.#fail(error);
        this.#completed(buffer, length, held);
      },
    );
  }

  #completed(buffer: ReplyBuffer, length: number, held: Hold | undefined): void {
    this.requestsInFlight--;
    this.bytesInFlight -= length;
    buffer.release();
    held?.release();
    this.#replies.planFlush();
    this.#onCompleted();
  }

  #blockStatus(offset: number, length: number) {
    if (this.#outside('ask for the status of', offset, length, 'EINVAL')) return;
    if (this.#session.contexts.length === 0) return this.#refuse('EINVAL', 'no meta context was negotiated');
    const cookieHigh = this.#replies.cookieHigh;
    const cookieLow = this.#replies.cookieLow;
    const one = (this.flags & CMD_FLAG.REQ_ONE) !== 0;
    const hold = new Hold(this.#share, this.#statusBytes);
    this.requestsInFlight++;
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
        this.requestsInFlight--;
        hold.release();
        this.#replies.planFlush();
        this.#onCompleted();
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
    const { scratch } = this.#buffers;
    // In pieces, so that others run in between.
    for (let done = 0; done < length && !this.#closed; done += scratch.length) {
      await this.#access.read((offset + done) as Bytes, scratch, 0, Math.min(scratch.length, length - done));
      await nextTurn();
    }
  }

  get #statusBytes(): number {
    return this.#session.contexts.length * this.#limits.extents * EXTENT_BYTES;
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
