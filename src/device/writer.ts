/**
 * A thread that writes while this one serves requests: to write a chunk of 64 KiB into fresh pages takes longer than everything
 * else that a request needs. It writes from memory that both threads see, slots that whoever has such a write to make
 * borrows here first.
 *
 *     this thread                          writer
 *     borrow a slot, fill it
 *     submit the write, go on         ──>  write
 *     tell of those that have ended   <──  one message for as many as end until it is read
 *
 * Writes end in the order in which they were submitted. There is one thread, as two that write to one file wait for each
 * other. Each thread of JavaScript has a writer of its own, which starts when it is wanted first, and keeps no process alive
 * unless it has something to write.
 */
import { Worker } from 'node:worker_threads';
import { type Clock, systemClock } from '../lib/clock.ts';

/** The longest write. */
const SLOT = 65536;
const SLOTS = 32;
/** So many writes end before they are told of, if there are more to come. */
const TOLD_TOGETHER = 8;
/** A disk makes the writer wait when nothing has ended for so long; everybody else is not to wait for it too. */
const STUCK_MS = 20;

/** In `words`: writes submitted, writes completed, whether writer and caller sleep; then for each write whether it failed. */
const SUBMITTED = 0;
const COMPLETED = 1;
const WRITER_SLEEPS = 2;
const CALLER_SLEEPS = 3;
const FAILED = 4;
/** In `jobs`, for each write: where it begins in `memory`, file descriptor, offset in the file, length. */
const JOB = 4;

interface Shared {
  words: Int32Array;
  jobs: Float64Array;
  memory: Uint8Array;
}

export class Writer {
  readonly #clock: Clock;
  #shared: Shared | undefined;
  #worker: Worker | undefined;
  /** It has said that it runs, and has not ended since. */
  #runs = false;
  readonly #free: Uint8Array[] = [];
  readonly #ended: ((written: boolean) => void)[] = [];
  #submitted = 0;
  #told = 0;
  /** When a write last ended, or was submitted to a writer that had none. */
  #progress = 0;
  /** Somebody asked for a slot in this turn of the event loop. */
  #asked = false;

  constructor(clock: Clock = systemClock) {
    this.#clock = clock;
  }

  /** Memory for one write of `length` bytes, to be given back after it; nothing when it is made as soon without a thread. */
  borrow(length: number): Uint8Array | undefined {
    if (length > SLOT) return undefined;
    if (this.#submitted === this.#told) {
      // Alone, it would have to wait until the thread has woken up.
      if (!this.#asked) {
        this.#asked = true;
        setImmediate(this.#turn);
        return undefined;
      }
    } else if (this.#clock.now() - this.#progress > STUCK_MS) return undefined;
    if (!this.#worker) this.#start();
    return this.#runs ? this.#free.pop() : undefined;
  }

  giveBack(slot: Uint8Array): void {
    this.#free.push(slot);
  }

  /** `buffer` is a slot of this writer. */
  lent(buffer: Uint8Array): boolean {
    return this.#shared !== undefined && buffer.buffer === this.#shared.memory.buffer;
  }

  /** Writes from a slot. `ended` hears false when the write failed, or is not whole. */
  write(
    fd: number,
    at: number,
    slot: Uint8Array,
    start: number,
    length: number,
    ended: (written: boolean) => void,
  ): void {
    if (!this.#runs) {
      ended(false);
      return;
    }
    const { words, jobs } = this.#shared!;
    const index = this.#submitted % SLOTS;
    jobs[index * JOB] = slot.byteOffset + start;
    jobs[index * JOB + 1] = fd;
    jobs[index * JOB + 2] = at;
    jobs[index * JOB + 3] = length;
    this.#ended[index] = ended;
    if (this.#submitted === this.#told) {
      this.#worker!.ref();
      this.#progress = this.#clock.now();
    }
    this.#submitted++;
    Atomics.store(words, SUBMITTED, this.#submitted | 0);
    if (Atomics.compareExchange(words, WRITER_SLEEPS, 1, 0) === 1) Atomics.notify(words, SUBMITTED);
  }

  readonly #turn = () => {
    this.#asked = false;
  };

  #start(): void {
    const words = new Int32Array(new SharedArrayBuffer((FAILED + SLOTS) * Int32Array.BYTES_PER_ELEMENT));
    const jobs = new Float64Array(new SharedArrayBuffer(SLOTS * JOB * Float64Array.BYTES_PER_ELEMENT));
    const memory = new Uint8Array(new SharedArrayBuffer(SLOTS * SLOT));
    for (let at = 0; at < memory.length; at += SLOT) this.#free.push(memory.subarray(at, at + SLOT));
    this.#shared = { words, jobs, memory };
    const workerData = { ...this.#shared, slots: SLOTS, toldTogether: TOLD_TOGETHER };
    // From source text: Node 20 has no workers in TypeScript, and tests run this file as it is.
    this.#worker = new Worker(`(${runWriter})(require)`, { eval: true, execArgv: [], workerData });
    this.#worker.unref();
    this.#worker.on('message', this.#tell);
    // It ends then, and everybody writes without it.
    this.#worker.on('error', () => {});
    this.#worker.on('exit', () => {
      this.#runs = false;
      for (; this.#told < this.#submitted; this.#told++) this.#ended[this.#told % SLOTS](false);
    });
  }

  /** The first message says that it runs. */
  readonly #tell = () => {
    this.#runs = true;
    const { words } = this.#shared!;
    // Before the look at what has ended: what ends after it brings another message.
    Atomics.store(words, CALLER_SLEEPS, 1);
    const completed = Atomics.load(words, COMPLETED);
    this.#progress = this.#clock.now();
    for (; (this.#told | 0) !== completed; this.#told++) {
      const index = this.#told % SLOTS;
      this.#ended[index](words[FAILED + index] === 0);
    }
    if (this.#told === this.#submitted) this.#worker!.unref();
  };
}

/** All of the other thread. Nothing outside of this function is there, as it is made from its text. */
function runWriter(require: NodeJS.Require): void {
  const { parentPort, workerData } = require('node:worker_threads') as typeof import('node:worker_threads');
  const { writeSync } = require('node:fs') as typeof import('node:fs');
  const { words, jobs, memory, slots, toldTogether } = workerData as Shared & { slots: number; toldTogether: number };
  const [submitted, completed, writerSleeps, callerSleeps, failed] = [0, 1, 2, 3, 4];
  let told = 0;
  parentPort!.postMessage(undefined);
  // The counts are those of the caller, cut to 32 bits.
  for (let done = 0; ; ) {
    while (Atomics.load(words, submitted) === done) {
      Atomics.store(words, writerSleeps, 1);
      Atomics.wait(words, submitted, done);
    }
    const index = (done >>> 0) % slots;
    const job = index * 4;
    const length = jobs[job + 3];
    let written = 0;
    try {
      written = writeSync(jobs[job + 1], memory, jobs[job], length, jobs[job + 2]);
    } catch {}
    words[failed + index] = written === length ? 0 : 1;
    done = (done + 1) | 0;
    Atomics.store(words, completed, done);
    if (((done - told) | 0) < toldTogether && Atomics.load(words, submitted) !== done) continue;
    if (Atomics.compareExchange(words, callerSleeps, 1, 0) === 1) {
      told = done;
      parentPort!.postMessage(undefined);
    }
  }
}

/** Of this thread of JavaScript. */
export const writer = new Writer();
