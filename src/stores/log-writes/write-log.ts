/**
 * The log of a log-writes target as it grows (Linux `dm-log-writes.c`).
 *
 *     a write or discard completes     it is kept, with its data, in the order of completion
 *     a flush is issued                `completed` says how many have completed: it covers these
 *     it completes                     these are logged, then the flush
 *     a mark                           is logged at once, in front of what is still kept
 *     the end                          all that is kept is logged, then the mark `dm-log-writes-end`
 *
 * Two flushes that overlap cannot bring writes out of order: the one that ends first logs all that it covers.
 *
 * Memory is bounded. Of what is kept the older half is logged when it exceeds KEPT_MAX, as a disk whose write cache is
 * full writes back what has been in it longest; it keeps its place in the order. When the log device is slower than
 * the device, and data waits for it, requests wait too.
 *
 * A log device that fails or is full switches logging off, for good, and nothing else.
 */
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { END_MARK, LOG_FLAG, logEntry, markBytesMax, superOf } from '../../formats/log-writes.ts';
import { bytes, SECTOR } from '../../units.ts';

/** Bytes of completed writes that no flush has covered. */
const KEPT_MAX = 64 * 1024 * 1024;
/** Bytes of these, and of what waits for the log device. */
const HELD_MAX = 2 * KEPT_MAX;
/** Bytes that an entry is counted with beside its data. */
const ENTRY_COST = 256;
/** Bytes of zeroes in one entry, as the kernel cuts them. */
const ZEROES_PIECE = 1024 * 1024;
/** Bytes: entries go to the log device together. */
const GATHER = 1024 * 1024;

interface Entry {
  readonly flags: number;
  /** Bytes on the device. */
  readonly at: number;
  readonly length: number;
  /** Of a write, or the text of a mark. A write without any is one of zeroes. */
  readonly data: Uint8Array | undefined;
}

/** An entry that has its place; one of zeroes stands for several. */
interface Placed {
  readonly entry: Entry;
  readonly pieces: number;
}

const costOf = ({ data }: Entry) => ENTRY_COST + (data?.length ?? 0);
const isZeroes = ({ flags, length, data }: Entry) => flags === 0 && length > 0 && !data;

export interface WriteLogLimits {
  readonly keptMax?: number;
  readonly heldMax?: number;
}

export class WriteLog {
  readonly #device: BlockDevice;
  readonly #blockSize: number;
  readonly #keptMax: number;
  readonly #heldMax: number;
  #enabled = true;
  #entries = 0;
  /** Bytes: where the next entry goes. */
  #next: number;
  /** Completed and not logged, oldest first. */
  #kept: Entry[] = [];
  #keptBytes = 0;
  /** How many were taken from the front of `#kept` so far. */
  #taken = 0;
  #heldBytes = 0;
  #queue: Placed[] = [];
  /** Entries that were sent to the log device, and where the next one goes there. */
  #written = 0;
  #writtenEnd: number;
  /** Entries that have arrived, with the super block that counts them if it was due. */
  #arrived = 0;
  #superDue = false;
  #gather: Uint8Array | undefined;
  #gathered = 0;
  #working = false;
  #waiters: { until: () => boolean; resolve: () => void }[] = [];

  /** `blockSize` in bytes: the logical block of the device that is written to. */
  constructor(device: BlockDevice, blockSize: number, { keptMax = KEPT_MAX, heldMax = HELD_MAX }: WriteLogLimits = {}) {
    this.#device = device;
    this.#blockSize = blockSize;
    this.#next = blockSize;
    this.#writtenEnd = blockSize;
    this.#keptMax = keptMax;
    this.#heldMax = heldMax;
  }

  get enabled(): boolean {
    return this.#enabled;
  }

  get entries(): number {
    return this.#entries;
  }

  /** The highest that was given to an entry, as the kernel counts: also to the one that did not fit. */
  get lastSector(): number {
    return this.#next / SECTOR - 1;
  }

  /** Bytes in memory. */
  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** A number for `flushed`. */
  get completed(): number {
    return this.#taken + this.#kept.length;
  }

  /** A write has completed. The data is copied. Something to wait for: the log device is behind. */
  wrote(at: number, from: Uint8Array, start: number, length: number): Maybe {
    if (!this.#enabled) return;
    const data = Buffer.allocUnsafe(length);
    data.set(from.subarray(start, start + length));
    return this.#keep({ flags: 0, at, length, data });
  }

  /** As many writes of zeroes. */
  zeroed(at: number, length: number): Maybe {
    if (this.#enabled) return this.#keep({ flags: 0, at, length, data: undefined });
  }

  discarded(at: number, length: number): Maybe {
    if (this.#enabled) return this.#keep({ flags: LOG_FLAG.DISCARD, at, length, data: undefined });
  }

  /** A flush has completed; `completed` is of the moment at which it was issued. */
  flushed(completed: number): Maybe {
    if (!this.#enabled) return;
    this.#take(completed - this.#taken);
    this.#log({ flags: LOG_FLAG.FLUSH, at: 0, length: 0, data: undefined });
    return this.#work();
  }

  /** Resolves when the mark is in the log, or logging is off. A text that is too long is cut. */
  async mark(text: string): Promise<void> {
    if (!this.#enabled) return;
    this.#log({
      flags: LOG_FLAG.MARK,
      at: 0,
      length: 0,
      data: Buffer.from(text).subarray(0, markBytesMax(this.#blockSize)),
    });
    const number = this.#entries;
    this.#work();
    await this.#until(() => this.#arrived >= number || !this.#working);
  }

  /** Nothing may complete any more. */
  async end(): Promise<void> {
    this.#take(this.#kept.length);
    await this.mark(END_MARK);
    // Without a mark where the log has just become full.
    this.#work();
    await this.#until(() => !this.#working);
  }

  #keep(entry: Entry): Maybe {
    this.#kept.push(entry);
    this.#keptBytes += costOf(entry);
    this.#heldBytes += costOf(entry);
    if (this.#keptBytes <= this.#keptMax) return;
    this.#take(Math.ceil(this.#kept.length / 2));
    return this.#work();
  }

  /** Logs the oldest `count` of what is kept. */
  #take(count: number): void {
    if (count <= 0) return;
    const taken = this.#kept.splice(0, count);
    this.#taken += count;
    for (const entry of taken) {
      this.#keptBytes -= costOf(entry);
      this.#heldBytes -= costOf(entry);
    }
    for (const entry of taken) this.#log(entry);
  }

  /** Gives an entry its place, which decides whether it fits. */
  #log(entry: Entry): void {
    if (!this.#enabled) return;
    const piece = isZeroes(entry) ? ZEROES_PIECE : Math.max(entry.length, 1);
    let pieces = 0;
    let done = 0;
    do {
      const length = Math.min(piece, entry.length - done);
      this.#next += this.#blockSize + ((entry.flags & LOG_FLAG.DISCARD) === 0 ? length : 0);
      if (this.#next >= this.#device.size) {
        this.#full();
        break;
      }
      this.#entries++;
      pieces++;
      done += length;
    } while (done < entry.length);
    if (pieces === 0) return;
    this.#heldBytes += costOf(entry);
    this.#queue.push({ entry, pieces });
  }

  /** What has a place is still written, and counted. */
  #full(): void {
    this.#enabled = false;
    this.#superDue = true;
    this.#forgetKept();
  }

  #failed(): void {
    this.#enabled = false;
    this.#superDue = false;
    this.#forgetKept();
    this.#queue = [];
    this.#heldBytes = 0;
  }

  #forgetKept(): void {
    this.#taken += this.#kept.length;
    this.#heldBytes -= this.#keptBytes;
    this.#keptBytes = 0;
    this.#kept = [];
  }

  /** Starts to write what is queued; it is written when this returns if the log device answers at once. */
  #work(): Maybe {
    if (!this.#working) {
      this.#working = true;
      void this.#writeAll();
    }
    if (this.#heldBytes > this.#heldMax) return this.#until(() => this.#heldBytes <= this.#heldMax);
  }

  /** Never rejects. */
  async #writeAll(): Promise<void> {
    try {
      while (this.#queue.length > 0 || this.#superDue) {
        const batch = this.#queue;
        this.#queue = [];
        for (const placed of batch) {
          const wait = this.#write(placed);
          if (wait) await wait;
        }
        const wait = this.#writeGathered();
        if (wait) await wait;
        for (const { entry } of batch) this.#heldBytes -= costOf(entry);
        if (this.#superDue) {
          this.#superDue = false;
          const head = superOf({ blockSize: this.#blockSize, entries: this.#written });
          const wait = this.#device.write(bytes(0), head, 0, head.length);
          if (wait) await wait;
        }
        this.#arrived = this.#written;
        this.#wake();
      }
    } catch {
      // Of whatever kind: I/O on the device goes on without a log.
      this.#failed();
    }
    this.#working = false;
    this.#gathered = 0;
    this.#wake();
  }

  #write({ entry, pieces }: Placed): Maybe {
    const { flags, at, length, data } = entry;
    // The kernel does the same after a mark and after a write with FUA, which here arrives as a write and a flush.
    if ((flags & (LOG_FLAG.MARK | LOG_FLAG.FLUSH)) !== 0) this.#superDue = true;
    if (isZeroes(entry)) return this.#writeZeroes(at, length, pieces);
    const isMark = flags === LOG_FLAG.MARK;
    const payload = isMark ? undefined : data;
    const size = this.#blockSize + (payload?.length ?? 0);
    if (size > GATHER) return this.#writeLarge(entry);
    const wait = this.#makeRoom(size);
    if (wait) return wait.then(() => this.#lay(flags, at, length, isMark ? data : undefined, payload));
    this.#lay(flags, at, length, isMark ? data : undefined, payload);
  }

  async #writeLarge({ flags, at, length, data }: Entry): Promise<void> {
    await this.#makeRoom(this.#blockSize);
    this.#lay(flags, at, length, undefined, undefined);
    await this.#writeGathered();
    await this.#device.write(bytes(this.#writtenEnd), data!, 0, length);
    this.#writtenEnd += length;
  }

  async #writeZeroes(at: number, length: number, pieces: number): Promise<void> {
    for (let index = 0; index < pieces; index++) {
      const done = index * ZEROES_PIECE;
      const piece = Math.min(ZEROES_PIECE, length - done);
      await this.#makeRoom(this.#blockSize);
      this.#lay(0, at + done, piece, undefined, undefined);
      await this.#writeGathered();
      await this.#device.writeZeroes(bytes(this.#writtenEnd), piece, true);
      this.#writtenEnd += piece;
    }
  }

  #makeRoom(size: number): Maybe {
    this.#gather ??= Buffer.allocUnsafeSlow(GATHER);
    if (this.#gathered + size > GATHER) return this.#writeGathered();
  }

  /** Puts an entry's block, and its data, behind what is gathered. There is room. */
  #lay(flags: number, at: number, length: number, text: Uint8Array | undefined, data: Uint8Array | undefined): void {
    const block = this.#blockSize;
    const into = this.#gather!;
    const start = this.#gathered;
    into.fill(0, start, start + block);
    logEntry.set(new DataView(into.buffer, into.byteOffset + start, logEntry.size), 0, {
      sector: at / block,
      nrSectors: length / block,
      flags,
      dataLen: text?.length ?? 0,
    });
    if (text) into.set(text, start + logEntry.size);
    if (data) into.set(data, start + block);
    this.#gathered += block + (data?.length ?? 0);
    this.#written++;
  }

  #writeGathered(): Maybe {
    const length = this.#gathered;
    if (length === 0) return;
    const at = bytes(this.#writtenEnd);
    this.#gathered = 0;
    this.#writtenEnd += length;
    return this.#device.write(at, this.#gather!, 0, length);
  }

  async #until(reached: () => boolean): Promise<void> {
    if (!reached()) await new Promise<void>((resolve) => this.#waiters.push({ until: reached, resolve }));
  }

  #wake(): void {
    const waiters = this.#waiters;
    this.#waiters = waiters.filter(({ until }) => !until());
    for (const { until, resolve } of waiters) if (until()) resolve();
  }
}
