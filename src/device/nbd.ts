/**
 * A disk that an NBD server exports.
 *
 * When the connection drops, it is made again, with growing pauses, and what was in flight is sent again: the caller
 * only sees it take longer. After `giveUpMs` without an answer, requests fail with EIO, at once, until the server is back.
 *
 * What this promises, and what it cannot:
 *
 * - Sending a request twice does no harm by itself: reads, writes of whole stretches, zeroes, discards and flushes give the
 *   same result however often they run, and requests in flight together have no order that could be broken.
 * - A write that the server acknowledged but had not flushed may be gone: perhaps it was the server that died, and its
 *   cache with it. There is no telling. So if any such write existed when the connection dropped, every flush fails from
 *   then on (NBD_WRITES_LOST), until the device is opened anew: who relied on the flush learns of it. Without any, all is
 *   as before. Writes in flight do not count, they are sent again and the next flush covers them; nor do discards,
 *   which promise nothing. A server that offers no flush is taken at its word: it has no cache to lose.
 * - A server may still work on a write of the lost connection while the new one is open. If that write was sent again,
 *   and then overwritten, the first copy may come last. NBD has no means against it (the kernel's client has the same
 *   gap); a server that processes what it received before it notices the end of a connection closes it.
 * - An export that came back smaller, read-only, or with other blocks is not the disk that was opened: all fails with
 *   NBD_EXPORT_CHANGED. One that grew is larger from then on.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { DmError, errnoText } from '../errors.ts';
import { CMD, CMD_FLAG, FLAG, STATE } from '../formats/nbd/constants.ts';
import { isNbdUri, type NbdAddress, parseNbdUri, printNbdUri } from '../formats/nbd/uri.ts';
import { type Bytes, bytes } from '../units.ts';
import type { BlockDevice, Extent, Maybe } from './block-device.ts';
import { ByteAccess } from './byte-access.ts';
import { NbdConnection, NbdRequest } from './nbd-connection.ts';
import { connectNbd, type NbdLink } from './nbd-handshake.ts';
import type { Backend, Mode } from './open.ts';

/** Of requests without payload, which no block size limits: below 2^32, a multiple of every block size. */
const SPAN_MAX = 1 << 30;
const PAUSE_FIRST_MS = 50;
const PAUSE_MAX_MS = 5000;
/** Zeroes to a server that cannot write them by itself. */
const ZEROES = Buffer.alloc(1 << 20);

export interface NbdOptions {
  /** How long requests wait for a server that is gone. */
  giveUpMs?: number;
}

const VERBS: Record<number, string> = {
  [CMD.READ]: 'read',
  [CMD.WRITE]: 'write',
  [CMD.TRIM]: 'discard',
  [CMD.WRITE_ZEROES]: 'zero',
  [CMD.BLOCK_STATUS]: 'ask for the extents of',
};

export class NbdDevice implements BlockDevice {
  readonly name: string;
  readonly blockSize: number;
  readOnly: boolean;
  readonly canDiscard: boolean;
  #size: Bytes;
  readonly #address: NbdAddress;
  readonly #giveUpMs: number;
  /** Transmission flags, the same over every connection. */
  readonly #flags: number;
  readonly #minimum: number;
  #maximum: number;
  /** Only for a server whose blocks are larger than sectors. */
  readonly #blocks: ByteAccess | undefined;

  #connection: NbdConnection | undefined;
  /** Requests for the next connection. */
  #waiting: NbdRequest[] = [];
  /** Writes acknowledged, and how many of them are flushed. */
  #written = 0;
  #flushed = 0;
  #lost = false;
  /** When the server was last known to answer, while it is gone. */
  #goneSince: number | undefined;
  #pauseMs = PAUSE_FIRST_MS;
  /** Why requests fail at once: for now, or for good. */
  #down: DmError | undefined;
  #changed: DmError | undefined;
  readonly #closing = new AbortController();

  /** Rejects with a DmError when there is no such server or export, at the latest after ten seconds. */
  static async open(uri: string, mode: Mode = 'rw', options: NbdOptions = {}): Promise<NbdDevice> {
    const address = parseNbdUri(uri);
    return new NbdDevice(address, mode, await connectNbd(address), options);
  }

  private constructor(address: NbdAddress, mode: Mode, link: NbdLink, { giveUpMs = 30_000 }: NbdOptions) {
    const { size, flags, minimum, maximum } = link.geometry;
    this.#address = address;
    this.#giveUpMs = giveUpMs;
    this.#flags = flags;
    this.#minimum = minimum;
    this.#maximum = maximum;
    this.#size = bytes(size);
    this.name = printNbdUri(address);
    this.blockSize = minimum > 512 ? 4096 : 512;
    this.readOnly = mode === 'r' || this.#has(FLAG.READ_ONLY);
    this.canDiscard = this.#has(FLAG.SEND_TRIM);
    this.#blocks = minimum > 512 ? new ByteAccess(this.#wire(), minimum) : undefined;
    this.#use(link);
  }

  get size(): Bytes {
    return this.#size;
  }

  /** What the server allows; the mode is only this side's. */
  async allowWrites(): Promise<void> {
    this.readOnly = this.#has(FLAG.READ_ONLY);
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    this.#check(at, length);
    if (this.#blocks) return this.#blocks.read(at, into, start, length);
    return this.#transfer(CMD.READ, at, into, start, length);
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    this.#checkWrite(at, length);
    if (this.#blocks) return this.#blocks.write(at, from, start, length);
    return this.#transfer(CMD.WRITE, at, from, start, length);
  }

  flush(): Maybe {
    if (!this.#has(FLAG.SEND_FLUSH)) return;
    return this.#send(CMD.FLUSH, 0, 0, 0);
  }

  discard(at: Bytes, length: number): Maybe {
    this.#checkWrite(at, length);
    if (!this.canDiscard) {
      throw new DmError('CANNOT_DISCARD', 'EOPNOTSUPP', `Cannot discard on ${this.name}: the server does not offer it`);
    }
    if (this.#blocks) return this.#blocks.discard(at, length);
    return this.#span(CMD.TRIM, 0, at, length);
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    this.#checkWrite(at, length);
    if (this.#blocks) return this.#blocks.writeZeroes(at, length, mayUnmap);
    return this.#zero(at, length, mayUnmap);
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    this.#check(at, length);
    const allocation = this.#connection?.geometry.allocation;
    if (allocation === undefined) return [{ length: bytes(length), hole: false, zero: false }];
    const first = Math.floor(at / this.#minimum) * this.#minimum;
    const end = Math.min(Math.ceil((at + length) / this.#minimum) * this.#minimum, this.#size, first + SPAN_MAX);
    return new Promise((resolve, reject) => {
      const done = () => resolve(sectorExtents(request.descriptors, at - first, Math.min(length, end - at)));
      const request = new NbdRequest(CMD.BLOCK_STATUS, 0, first, end - first, undefined, 0, done, reject);
      this.#submit(request);
    });
  }

  async close(): Promise<void> {
    this.#closing.abort();
    await this.#connection?.disconnect();
  }

  #has(flag: number): boolean {
    return (this.#flags & flag) !== 0;
  }

  #check(at: number, length: number): void {
    if (at < 0 || at + length > this.#size) {
      const state = `${length} bytes at ${at} lie beyond the ${this.#size} of ${this.name}`;
      throw new DmError('OUT_OF_RANGE', 'EIO', state);
    }
  }

  #checkWrite(at: number, length: number): void {
    this.#check(at, length);
    if (this.readOnly) throw new DmError('READ_ONLY', 'EPERM', `Cannot write to ${this.name}: it is read-only`);
  }

  /** The server's own operations, for whole blocks of it. */
  #wire() {
    const device = this;
    return {
      get size() {
        return device.#size;
      },
      read: (at: Bytes, into: Uint8Array, start: number, length: number) =>
        this.#transfer(CMD.READ, at, into, start, length),
      write: (at: Bytes, from: Uint8Array, start: number, length: number) =>
        this.#transfer(CMD.WRITE, at, from, start, length),
      writeZeroes: (at: Bytes, length: number, mayUnmap: boolean) => this.#zero(at, length, mayUnmap),
      discard: (at: Bytes, length: number) => this.#span(CMD.TRIM, 0, at, length),
    };
  }

  #transfer(type: number, at: number, data: Uint8Array, start: number, length: number): Maybe {
    if (length <= this.#maximum) return this.#send(type, 0, at, length, data, start);
    return this.#pieces(length, this.#maximum, (from, count) =>
      this.#send(type, 0, at + from, count, data, start + from),
    );
  }

  /** A command without payload. */
  #span(type: number, flags: number, at: number, length: number): Maybe {
    if (length <= SPAN_MAX) return this.#send(type, flags, at, length);
    return this.#pieces(length, SPAN_MAX, (from, count) => this.#send(type, flags, at + from, count));
  }

  #zero(at: number, length: number, mayUnmap: boolean): Maybe {
    if (this.#has(FLAG.SEND_WRITE_ZEROES)) {
      return this.#span(CMD.WRITE_ZEROES, mayUnmap ? 0 : CMD_FLAG.NO_HOLE, at, length);
    }
    const most = Math.min(this.#maximum, ZEROES.length);
    return this.#pieces(length, most, (from, count) => this.#send(CMD.WRITE, 0, at + from, count, ZEROES, 0));
  }

  /** A few pieces under way at a time, and none left under way when this settles. */
  async #pieces(length: number, most: number, send: (from: number, count: number) => Promise<void>): Promise<void> {
    const atOnce = 4;
    for (let from = 0; from < length; ) {
      const sent: Promise<void>[] = [];
      for (; from < length && sent.length < atOnce; from += most) sent.push(send(from, Math.min(most, length - from)));
      for (const result of await Promise.allSettled(sent)) if (result.status === 'rejected') throw result.reason;
    }
  }

  #send(type: number, flags: number, at: number, length: number, data?: Uint8Array, start = 0): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#submit(new NbdRequest(type, flags, at, length, data, start, resolve, reject));
    });
  }

  #submit(request: NbdRequest): void {
    request.covers = this.#written;
    const refused =
      this.#changed ?? this.#down ?? (this.#lost && request.type === CMD.FLUSH ? this.#lostError() : undefined);
    if (refused) request.reject(refused);
    else if (this.#connection) this.#connection.send(request);
    else this.#waiting.push(request);
  }

  #use(link: NbdLink): void {
    const connection = new NbdConnection(link, {
      answered: (request) => this.#answered(connection, request),
      closed: (pending, reason) => this.#onClosed(connection, pending, reason),
    });
    this.#connection = connection;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const request of waiting) connection.send(request);
  }

  #answered(connection: NbdConnection, request: NbdRequest) {
    if (request.errno === 'ESHUTDOWN') {
      // The server is going: whoever comes in its place may do the request.
      this.#waiting.push(request);
      return connection.abandon(new DmError('NBD_CONNECT', 'ESHUTDOWN', 'the server shuts down'));
    }
    this.#goneSince = undefined;
    this.#pauseMs = PAUSE_FIRST_MS;
    if (request.errno) return request.reject(this.#failure(request));
    if (request.type === CMD.WRITE || request.type === CMD.WRITE_ZEROES) this.#written++;
    else if (request.type === CMD.FLUSH) this.#flushed = Math.max(this.#flushed, request.covers);
    request.resolve();
  }

  #failure({ type, at, length, errno, message }: NbdRequest): DmError {
    const what = type === CMD.FLUSH ? 'flush' : `${VERBS[type]} ${length} bytes at ${at} of`;
    return new DmError('NBD_REMOTE', errno!, `Cannot ${what} ${this.name}: ${message || errnoText(errno!)}`);
  }

  #lostError(): DmError {
    return new DmError(
      'NBD_WRITES_LOST',
      'EIO',
      `Cannot flush ${this.name}: the connection was lost before ${this.#written - this.#flushed} acknowledged writes were flushed, and the server may have lost them`,
      { hint: 'check what was written last, then open the device again (remove and create what uses it)' },
    );
  }

  #onClosed(connection: NbdConnection, pending: NbdRequest[], reason: Error | undefined): void {
    if (connection !== this.#connection) return;
    this.#connection = undefined;
    this.#goneSince ??= Date.now();
    if (this.#has(FLAG.SEND_FLUSH) && this.#written > this.#flushed) this.#lost = true;
    for (const request of pending) {
      request.restart();
      this.#waiting.push(request);
    }
    for (const request of this.#waiting) request.restart();
    if (this.#lost) this.#rejectWaiting((request) => (request.type === CMD.FLUSH ? this.#lostError() : undefined));
    if (this.#closing.signal.aborted) this.#rejectWaiting(() => this.#closedError());
    else void this.#reconnect(reason);
  }

  #rejectWaiting(why: (request: NbdRequest) => DmError | undefined): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const request of waiting) {
      const error = why(request);
      if (error) request.reject(error);
      else this.#waiting.push(request);
    }
  }

  /** Never rejects. Ends when there is a connection, the export is another, or the device is closed. */
  async #reconnect(reason: Error | undefined): Promise<void> {
    const { signal } = this.#closing;
    let last = reason;
    while (!signal.aborted) {
      const left = this.#goneSince! + this.#giveUpMs - Date.now();
      if (left <= 0 && !this.#down) {
        const why = last ? `: ${last.message}` : '';
        this.#down = new DmError('NBD_GONE', 'EIO', `${this.name} did not answer for ${this.#giveUpMs} ms${why}`, {
          hint: 'start the server again; the device works again as soon as it answers',
          cause: last,
        });
        this.#rejectWaiting(() => this.#down);
      }
      // Requests wait for this timer; when none does, it keeps no process alive.
      const wait = left > 0 ? Math.min(this.#pauseMs, left) : this.#pauseMs;
      await pause(wait, undefined, { signal, ref: left > 0 }).catch(() => {});
      this.#pauseMs = Math.min(2 * this.#pauseMs, PAUSE_MAX_MS);
      if (signal.aborted) break;
      try {
        const link = await connectNbd(this.#address);
        if (signal.aborted) {
          link.socket.destroy();
          break;
        }
        this.#changed = this.#difference(link);
        if (this.#changed) {
          link.socket.destroy();
          this.#rejectWaiting(() => this.#changed);
          return;
        }
        this.#down = undefined;
        this.#size = bytes(link.geometry.size);
        this.#maximum = link.geometry.maximum;
        return this.#use(link);
      } catch (error) {
        last = error as Error;
      }
    }
    this.#rejectWaiting(() => this.#closedError());
  }

  #closedError(): DmError {
    return new DmError('NBD_GONE', 'EIO', `${this.name} was closed`);
  }

  #difference({ geometry: { size, flags, minimum } }: NbdLink): DmError | undefined {
    let what: string | undefined;
    if (size < this.#size) what = `has ${size} bytes now, and had ${this.#size}`;
    else if (flags !== this.#flags) what = `offers other operations than before (flags 0x${flags.toString(16)})`;
    else if (minimum !== this.#minimum) what = `has blocks of ${minimum} bytes now, and had ${this.#minimum}`;
    if (what === undefined) return undefined;
    return new DmError('NBD_EXPORT_CHANGED', 'EIO', `Cannot go on with ${this.name}: it ${what}`, {
      hint: 'bring the former export back, then open the device again (remove and create what uses it)',
    });
  }
}

/**
 * Descriptors of `base:allocation` for a range that begins `skip` bytes before the `length` bytes asked for, as extents of
 * whole sectors: a sector that two descriptors share is data. The server's lengths may be anything.
 */
export function sectorExtents(descriptors: readonly number[], skip: number, length: number): Extent[] {
  const extents: Extent[] = [];
  const add = (size: number, hole: boolean, zero: boolean) => {
    const last = extents.at(-1);
    if (last?.hole === hole && last.zero === zero) last.length = bytes(last.length + size);
    else if (size > 0) extents.push({ length: bytes(size), hole, zero });
  };
  let covered = 0;
  let end = -skip;
  for (let i = 0; i < descriptors.length && covered < length; i += 2) {
    end = Math.min(end + descriptors[i], length);
    const whole = Math.floor(end / 512) * 512;
    if (whole > covered) {
      add(whole - covered, (descriptors[i + 1] & STATE.HOLE) !== 0, (descriptors[i + 1] & STATE.ZERO) !== 0);
      covered = whole;
    }
    if (end > covered) {
      add(512, false, false);
      covered += 512;
    }
  }
  if (extents.length === 0) add(length, false, false);
  return extents;
}

/**
 * `nbd://`, `nbd+unix://` and their forms with TLS. An export is known by its URI: two names of one server are two
 * disks.
 */
export const nbdBackend: Backend = {
  matches: isNbdUri,
  async identify(argument) {
    const address = parseNbdUri(argument);
    if (address.kind === 'unix' && !address.socket.startsWith('/')) {
      throw new DmError('NBD_URI', 'EINVAL', `Cannot use "${argument}": the socket's path is not absolute`, {
        hint: 'write nbd+unix:///EXPORT?socket=/PATH',
      });
    }
    if (address.tls?.certificates?.startsWith('/') === false) {
      throw new DmError('NBD_URI', 'EINVAL', `Cannot use "${argument}": the path of tls-certificates is not absolute`, {
        hint: 'write nbds://HOST[:PORT]/EXPORT?tls-certificates=/DIRECTORY',
      });
    }
    return printNbdUri(address);
  },
  open: (argument, mode) => NbdDevice.open(argument, mode),
};
