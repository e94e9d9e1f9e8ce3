/**
 * A thread that writes while this one serves requests: to write 64 KiB into fresh pages takes longer than everything
 * else that a request needs. It writes from the caller's memory, which nobody may touch until the write has ended.
 *
 *     this thread                           writer
 *     submit a write, go on            ──>  write
 *     tell of those that have ended    <──  one message for as many as end until it is read
 *
 * Writes end in the order in which they were submitted. There is one thread, as two that write to one file wait for each
 * other. Each thread of JavaScript has a writer of its own, which starts when it is wanted first, and keeps no process alive
 * unless it has something to write. It needs koffi, since only the system takes memory by its address.
 */
import { createRequire } from 'node:module';
import { Worker } from 'node:worker_threads';
import { type Clock, systemClock } from '../lib/clock.ts';
import { type System, system } from '../lib/system.ts';

/** The shortest write that is worth it. */
const SHORT = 65536;
/** Longer ones are cut, so that writes of the other thread to the same file get their turn in between. */
const PIECE = 131072;
/** Writes on their way. */
const MOST = 32;
/** So many writes end before they are told of, if there are more to come. */
const TOLD_TOGETHER = 8;
/** A disk makes the writer wait when nothing has ended for so long; everybody else is not to wait for it too. */
const STUCK_MS = 20;

/** Where things are in `words`, ... */
const WORDS = { submitted: 0, completed: 1, writerSleeps: 2, callerSleeps: 3, failed: 4 };
/** ... and in `jobs`, for each write: file descriptor, address, length, offset in the file. */
const JOB = 4;

interface Shared {
  /** Counts of writes, who sleeps; then for each write whether it failed. */
  words: Int32Array;
  jobs: Float64Array;
}

/** What the other thread begins with. */
interface Start extends Shared {
  /** Path of the module. */
  koffi: string;
  at: typeof WORDS;
  job: number;
  most: number;
  toldTogether: number;
  piece: number;
}

export class Writer {
  readonly #clock: Clock;
  #system: System | undefined;
  #shared: Shared | undefined;
  #worker: Worker | undefined;
  /** It has said that it runs, and has not ended since. */
  #runs = false;
  /** Of each write under way; its memory is held as long as the other thread reads it. */
  readonly #buffers: (Uint8Array | undefined)[] = [];
  readonly #tells: ((written: boolean) => void)[] = [];
  #submitted = 0;
  #told = 0;
  /** When a write last ended, or was submitted to a writer that had none. */
  #progress = 0;
  /** Of the writes under way. */
  #fd = -1;
  /** Somebody asked in this turn of the event loop. */
  #asked = false;

  constructor(clock: Clock = systemClock) {
    this.#clock = clock;
  }

  /** Nothing has come back for a while: who writes to the same file waits as well. */
  get isStuck(): boolean {
    return this.#submitted > this.#told && this.#clock.now() - this.#progress > STUCK_MS;
  }

  /**
   * A write of `length` bytes to `fd` is better made by the thread: `write` is to be called, before anything else is
   * asked.
   */
  wants(fd: number, length: number): boolean {
    if (length < SHORT) return false;
    const underWay = this.#submitted - this.#told;
    if (underWay === 0 && !this.#asked) {
      // Alone, it would have to wait until the thread has woken up.
      this.#asked = true;
      setImmediate(this.#turn);
      return false;
    }
    // Nobody is to wait behind another disk's writes.
    if (underWay > 0 && (underWay === MOST || fd !== this.#fd || this.isStuck)) return false;
    if (!this.#worker) this.#start();
    return this.#runs;
  }

  /** `tell` hears false when the write failed, or is not whole. */
  write(
    fd: number,
    from: Uint8Array,
    start: number,
    length: number,
    at: number,
    tell: (written: boolean) => void,
  ): void {
    const { words, jobs } = this.#shared!;
    const index = this.#submitted % MOST;
    jobs[index * JOB] = fd;
    jobs[index * JOB + 1] = this.#system!.address(from, start, length);
    jobs[index * JOB + 2] = length;
    jobs[index * JOB + 3] = at;
    this.#buffers[index] = from;
    this.#tells[index] = tell;
    if (this.#submitted === this.#told) {
      this.#worker!.ref();
      this.#fd = fd;
      this.#progress = this.#clock.now();
    }
    this.#submitted++;
    Atomics.store(words, WORDS.submitted, this.#submitted | 0);
    if (Atomics.compareExchange(words, WORDS.writerSleeps, 1, 0) === 1) Atomics.notify(words, WORDS.submitted);
  }

  readonly #turn = () => {
    this.#asked = false;
  };

  #start(): void {
    this.#system = system();
    const words = new Int32Array(new SharedArrayBuffer((WORDS.failed + MOST) * Int32Array.BYTES_PER_ELEMENT));
    const jobs = new Float64Array(new SharedArrayBuffer(MOST * JOB * Float64Array.BYTES_PER_ELEMENT));
    this.#shared = { words, jobs };
    const koffi = createRequire(import.meta.url).resolve('koffi');
    const limits = { most: MOST, toldTogether: TOLD_TOGETHER, piece: PIECE };
    const workerData: Start = { words, jobs, koffi, at: WORDS, job: JOB, ...limits };
    // From source text: Node 20 has no workers in TypeScript, and tests run this file as it is.
    this.#worker = new Worker(`(${runWriter})(require)`, { eval: true, execArgv: [], workerData });
    this.#worker.unref();
    this.#worker.on('message', this.#tell);
    // It ends then, and everybody writes without it.
    this.#worker.on('error', () => {});
    this.#worker.on('exit', () => {
      this.#runs = false;
      while (this.#told < this.#submitted) this.#end(false);
    });
  }

  /** The first message says that it runs. */
  readonly #tell = () => {
    this.#runs = true;
    const { words } = this.#shared!;
    // Before the look at what has ended: what ends after it brings another message.
    Atomics.store(words, WORDS.callerSleeps, 1);
    const completed = Atomics.load(words, WORDS.completed);
    this.#progress = this.#clock.now();
    while ((this.#told | 0) !== completed) this.#end(words[WORDS.failed + (this.#told % MOST)] === 0);
    if (this.#told === this.#submitted) this.#worker!.unref();
  };

  #end(written: boolean): void {
    const index = this.#told++ % MOST;
    this.#buffers[index] = undefined;
    this.#tells[index](written);
  }
}

/** All of the other thread. Nothing outside of this function is there, as it is made from its text. */
function runWriter(require: NodeJS.Require): void {
  const { parentPort, workerData } = require('node:worker_threads') as typeof import('node:worker_threads');
  const { words, jobs, koffi, at, job, most, toldTogether, piece } = workerData as Start;
  const pwrite = require(koffi).load(null).func('pwrite', 'int64_t', ['int', 'intptr_t', 'size_t', 'int64_t']);
  let told = 0;
  parentPort!.postMessage(undefined);
  // The counts are those of the caller, cut to 32 bits.
  for (let done = 0; ; ) {
    while (Atomics.load(words, at.submitted) === done) {
      Atomics.store(words, at.writerSleeps, 1);
      Atomics.wait(words, at.submitted, done);
    }
    const index = (done >>> 0) % most;
    const first = index * job;
    const length = jobs[first + 2];
    let written = 0;
    while (written < length) {
      const count = Math.min(piece, length - written);
      if (pwrite(jobs[first], jobs[first + 1] + written, count, jobs[first + 3] + written) !== count) break;
      written += count;
    }
    words[at.failed + index] = written === length ? 0 : 1;
    done = (done + 1) | 0;
    Atomics.store(words, at.completed, done);
    if (((done - told) | 0) < toldTogether && Atomics.load(words, at.submitted) !== done) continue;
    if (Atomics.compareExchange(words, at.callerSleeps, 1, 0) === 1) {
      told = done;
      parentPort!.postMessage(undefined);
    }
  }
}

/** Of this thread of JavaScript. */
export const writer = new Writer();
