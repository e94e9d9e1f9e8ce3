/**
 * Writes to an origin that are acknowledged before their copies exist, in bounded memory. What a write promises is kept
 * since it is kept to nobody before a flush: whatever is here is read from here, and goes to the origin, in batches, once
 * every snapshot has its copies durably.
 *
 *     active      takes what is written
 *     draining    1  copies        of all chunks, for all snapshots: one commit for each
 *                 2  origin        written
 *                 3  forgotten     readers and writers find it on the origin from here on
 *
 * The two change places when enough is gathered, a second after the first write, and when somebody asks for what is here
 * to be on the origin: a flush, a suspend, a new snapshot. A write over what is here always comes behind it: into
 * `active`, or when a drain has ended.
 *
 * What cannot be written to the origin stays, and is read from here; who waited for it hears why. From then on nothing is
 * acknowledged from memory until a drain succeeds, which each flush tries, and a second that passes.
 */
import { setImmediate } from 'node:timers/promises';
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { every } from '../../lib/parts.ts';
import { bytes } from '../../units.ts';
import type { Range } from './copy-batch.ts';
import { DirtyPages, type DirtyRun, PAGE } from './dirty-pages.ts';

/** Larger writes are not worth a copy in memory: they wait for their copies. */
const WRITE_MAX = 256 * 1024;
/** Bytes written to the origin in one go, and before others get their turn. */
const RUN = 1024 * 1024;
const TURN = 256 * 1024;

/**
 * Copies out, durably, what writes to the ranges would destroy, and never rejects. `progress` hears of the part that is
 * copied.
 */
type Secure = (ranges: readonly Range[], progress: (part: number) => void) => Promise<void>;

interface Failed {
  readonly runs: DirtyRun[];
  /** The first one. */
  readonly error: unknown;
}

export class OriginBuffer {
  /** Pages of 4 KiB, in each half. Tests make them few; with 0 nothing is acknowledged from memory. */
  static pages = 1024;
  /** Pages that are worth a drain. */
  static enough = 256;
  /** Time that a write may be here without a flush. */
  static delayMs = 1000;

  readonly #origin: BlockDevice;
  readonly #secure: Secure;
  /**
   * Pages that `active` may have now. It fills no faster than `draining` is copied, so that writers wait often and
   * shortly.
   */
  #limit = OriginBuffer.pages;
  #active = new DirtyPages(OriginBuffer.pages);
  #draining = new DirtyPages(OriginBuffer.pages);
  #running: Promise<void> | undefined;
  /** The drain after that one. */
  #next: Promise<void> | undefined;
  /** The last drain left something here. */
  #failed = false;
  /** Those who keep the buffer empty. */
  #closers = 0;
  #waiting: (() => void)[] = [];
  #timer: NodeJS.Timeout | undefined;

  constructor(origin: BlockDevice, secure: Secure) {
    this.#origin = origin;
    this.#secure = secure;
  }

  /** Nothing is here: neither reads nor writes need to ask further. */
  get empty(): boolean {
    return this.#active.count === 0 && this.#draining.count === 0;
  }

  /** Bytes held. */
  get memory(): number {
    return this.#active.memory + this.#draining.memory;
  }

  /** Something is here that comes before a write of these bytes. */
  overlaps(at: number, length: number): boolean {
    return this.#active.overlaps(at, length) || this.#draining.overlaps(at, length);
  }

  /** Takes a write, if there is room. False: it has to go another way. */
  put(at: number, from: Uint8Array, start: number, length: number): boolean {
    if (!this.#open || length > WRITE_MAX || !this.#active.fits(at, length, this.#limit)) return false;
    this.#active.put(at, from, start, length);
    if (this.#active.count >= OriginBuffer.enough) this.#begin();
    else this.#later();
    return true;
  }

  /** What a write of `length` bytes that `put` refused may wait for, before it asks again; nothing if that is no use. */
  room(length: number): Promise<void> | undefined {
    if (!this.#open || length > WRITE_MAX || this.#active.count === 0) return undefined;
    this.#begin();
    return new Promise((go) => this.#waiting.push(go));
  }

  /** Reads the origin, and over it what is here. */
  read(at: number, into: Uint8Array, start: number, length: number): Maybe {
    if (this.#active.covers(at, length) || this.#draining.covers(at, length))
      return this.#overlay(at, into, start, length);
    const wait = this.#origin.read(bytes(at), into, start, length);
    if (!this.overlaps(at, length)) return wait;
    if (!wait) return this.#overlay(at, into, start, length);
    // As it is now: before the origin has been read, it may have gone there, and others may have come.
    const here = this.#copy(at, length);
    return wait.then(() => here.overlay(at, into, start, length));
  }

  #copy(at: number, length: number): DirtyPages {
    const runs = [...this.#draining.runs(RUN, at, length), ...this.#active.runs(RUN, at, length)];
    return gathered(runs, Math.min(this.#draining.count + this.#active.count, Math.ceil(length / PAGE) + 1));
  }

  #overlay(at: number, into: Uint8Array, start: number, length: number): void {
    this.#draining.overlay(at, into, start, length);
    this.#active.overlay(at, into, start, length);
  }

  /** What is here now is on the origin when this resolves. Rejects with what the origin answered. */
  drained(): Promise<void> {
    if (!this.#running) return this.empty ? Promise.resolve() : this.#start();
    if (this.#active.count === 0) return this.#running;
    // Exactly one more: in the moment before this goes on another may have begun, which has all that is here now; what came
    // after it is no matter of those who wait for this one.
    const after = () => this.#running ?? (this.empty ? undefined : this.#start());
    this.#next ??= this.#running.then(after, after);
    return this.#next;
  }

  /**
   * Nothing is here when this resolves, and nothing comes until `reopen`. Rejects, open again, with what the origin
   * answered.
   */
  async close(): Promise<void> {
    this.#closers++;
    try {
      await this.#emptied();
    } catch (error) {
      this.reopen();
      throw error;
    }
  }

  reopen(): void {
    this.#closers--;
    this.#release();
  }

  /** Nobody will read or flush any more what could not be written. */
  async abandon(): Promise<void> {
    this.#closers++;
    // What failed before has been told of, and is not tried again: by now another table may write to that disk.
    if (!this.#failed) await this.#emptied().catch(() => {});
    while (this.#running) await this.#running.catch(() => {});
    this.#halves();
    this.#failed = false;
    this.#cancel();
    this.reopen();
  }

  async #emptied(): Promise<void> {
    while (!this.empty) await this.drained();
  }

  get #open(): boolean {
    return this.#closers === 0 && !this.#failed;
  }

  #start(): Promise<void> {
    this.#cancel();
    this.#running = this.#drain().finally(() => {
      this.#running = undefined;
      this.#next = undefined;
      this.#release();
      if (this.#active.count >= OriginBuffer.enough && !this.#failed) this.#begin();
      else this.#later();
    });
    return this.#running;
  }

  /** A drain that nobody waits for; what fails is told to the next who does. Where there is nothing, its memory goes. */
  readonly #begin = (): void => {
    this.#cancel();
    if (this.empty) this.#halves();
    else if (!this.#running) this.#start().catch(() => {});
  };

  #halves(): void {
    this.#active = new DirtyPages(OriginBuffer.pages);
    this.#draining = new DirtyPages(OriginBuffer.pages);
  }

  #cancel(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #later(): void {
    if (this.#timer || this.#running) return;
    this.#timer = setTimeout(this.#begin, OriginBuffer.delayMs);
    this.#timer.unref();
  }

  async #drain(): Promise<void> {
    const again = this.#failed;
    if (!again) [this.#active, this.#draining] = [this.#draining, this.#active];
    const pages = this.#draining;
    const runs = pages.runs(RUN);
    this.#allow(0);
    let failed: Failed | undefined;
    try {
      await this.#secure(runs, this.#allow);
      this.#allow(1);
      failed = await this.#writeOrigin(runs);
    } catch (error) {
      // Nothing may be left that a later drain would take for newer than what comes now.
      failed = { runs, error };
    }
    pages.clear();
    this.#failed = failed !== undefined;
    // What was left is larger than a half may be.
    if (again) this.#draining = new DirtyPages(OriginBuffer.pages);
    if (failed) throw this.#keep(failed);
  }

  readonly #allow = (part: number): void => {
    const { pages, enough } = OriginBuffer;
    this.#limit = Math.min(pages, Math.floor(enough + part * (pages - enough)));
    this.#release();
  };

  /** All that is here now goes together the next time, so that the newest of each sector is what is written. */
  #keep({ runs, error }: Failed): unknown {
    this.#draining = gathered([...runs, ...this.#active.runs(RUN)], 2 * OriginBuffer.pages);
    this.#active.clear();
    return error;
  }

  /** Writes all that it can. */
  async #writeOrigin(runs: readonly DirtyRun[]): Promise<Failed | undefined> {
    let failed: Failed | undefined;
    let waits: Promise<void>[] = [];
    let turn = 0;
    for (const run of runs) {
      const keep = (error: unknown) => {
        failed ??= { runs: [], error };
        failed.runs.push(run);
      };
      try {
        const wait = this.#origin.write(bytes(run.at), run.data, run.from, run.length);
        if (wait) waits.push(wait.catch(keep));
      } catch (error) {
        keep(error);
      }
      turn += run.length;
      if (turn < TURN) continue;
      turn = 0;
      await every(waits);
      waits = [];
      await setImmediate();
    }
    await every(waits);
    return failed;
  }

  #release(): void {
    for (const go of this.#waiting.splice(0)) go();
  }
}

/** The same bytes in memory of their own, of up to `most` pages; later runs lie over earlier ones. */
function gathered(runs: readonly DirtyRun[], most: number): DirtyPages {
  const pages = new DirtyPages(most);
  for (const { at, length, from, data } of runs) pages.put(at, data, from, length);
  return pages;
}
