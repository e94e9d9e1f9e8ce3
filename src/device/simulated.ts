/**
 * A disk that loses power, for tests. It keeps what the platter holds and, apart from it, every write since the last
 * flush; a crash keeps any of the versions a 512-byte sector has had since then, sector by sector, as its seed chooses.
 * So unflushed writes are lost, reordered and torn between sectors, but never within one.
 *
 * Operations may complete out of order: each waits its turn in the power supply's queue, from which the seed picks.
 *
 * A sector is kept as the number of its content, and contents are never changed: what a crash leaves costs four bytes a
 * sector, so that a test can look at a crash after every operation.
 */
import { DmError, type Errno } from '../errors.ts';
import { type Prng, prng } from '../lib/prng.ts';
import { type Bytes, bytes, SECTOR } from '../units.ts';
import type { BlockDevice, Extent, Maybe } from './block-device.ts';

export interface Operation {
  /** From 0, counted over all disks of the power supply; a read and a failed operation have the number of the next one. */
  readonly number: number;
  readonly disk: string;
  readonly kind: 'read' | 'write' | 'flush' | 'discard' | 'zero';
  /** Bytes. */
  readonly at: number;
  readonly length: number;
  /** What an injected error answered. */
  readonly errno?: Errno;
}

export interface PowerOptions {
  seed?: number;
  /** The power fails at this operation (reads are not counted): it is cut off somewhere in its middle. */
  cutAt?: number;
  /** Chance that an operation completes later instead of at once. */
  slow?: number;
  /** Records every operation in `history`. */
  record?: boolean;
  /**
   * Called when a write may be on the platter, or a flush is about to have its effect, and nobody has heard of it:
   * `SimulatedDisk.afterCrash` then says what a power cut in the middle of the operation leaves.
   */
  observe?: (operation: Operation) => void;
}

/** What several disks share: the seed, the order in which operations complete, and the moment of the crash. */
export class PowerSupply {
  readonly random: Prng;
  readonly history: Operation[] = [];
  /** Writes, flushes and discards so far. */
  count = 0;
  on = true;
  slow: number;
  cutAt: number;
  observe: PowerOptions['observe'];
  #record: boolean;
  #waiting: (() => void)[] = [];

  constructor({ seed = 1, cutAt = Number.POSITIVE_INFINITY, slow = 0, record = false, observe }: PowerOptions = {}) {
    this.random = prng(seed);
    this.cutAt = cutAt;
    this.slow = slow;
    this.observe = observe;
    this.#record = record;
  }

  /** Numbers an operation. Returns false if the power fails during it. */
  begin(disk: string, kind: Operation['kind'], at: number, length: number, errno?: Errno): boolean {
    if (this.#record) this.history.push({ number: this.count, disk, kind, at, length, errno });
    if (this.observe) this.observe({ number: this.count, disk, kind, at, length, errno });
    if (kind === 'read' || errno) return true;
    if (this.count++ < this.cutAt) return true;
    this.on = false;
    return false;
  }

  isSlow(): boolean {
    return this.slow > 0 && this.random.chance(this.slow);
  }

  /** Resolves when the seed lets one of the waiting operations complete and it is this one. */
  turn(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#waiting.push(resolve) === 1) setImmediate(() => this.#release());
    });
  }

  #release(): void {
    const index = this.random.below(this.#waiting.length);
    const [resolve] = this.#waiting.splice(index, 1);
    resolve();
    if (this.#waiting.length > 0) setImmediate(() => this.#release());
  }
}

const PAGE = 256;

/** Contents of sectors, by number, each with the operation that wrote it. Number 0 is zeroes. */
class Contents {
  readonly #pages = [Buffer.alloc(PAGE * SECTOR)];
  readonly #writers: number[] = [-1];

  get length(): number {
    return this.#writers.length;
  }

  add(from: Uint8Array, start: number, writer: number): number {
    const number = this.#writers.push(writer) - 1;
    const page = (this.#pages[Math.floor(number / PAGE)] ??= Buffer.allocUnsafeSlow(PAGE * SECTOR));
    page.set(from.subarray(start, start + SECTOR), (number % PAGE) * SECTOR);
    return number;
  }

  /** Copies `count` contents that follow one another. */
  copy(number: number, into: Uint8Array, at: number, count: number): void {
    while (count > 0) {
      const first = number % PAGE;
      const some = Math.min(count, PAGE - first);
      this.#pages[Math.floor(number / PAGE)].copy(into, at, first * SECTOR, (first + some) * SECTOR);
      number += some;
      at += some * SECTOR;
      count -= some;
    }
  }

  writer(number: number): number {
    return this.#writers[number];
  }

  /** Forgets what was added since there were `length`. */
  truncate(length: number): void {
    this.#writers.length = length;
  }
}

/** What a disk holds: after a crash, or at a moment. */
export class Platter {
  readonly contents: Contents;
  /** The content of each sector. */
  readonly sectors: Int32Array;

  constructor(contents: Contents, sectors: Int32Array) {
    this.contents = contents;
    this.sectors = sectors;
  }

  static of(image: Uint8Array): Platter {
    const contents = new Contents();
    const sectors = new Int32Array(image.length / SECTOR);
    for (let s = 0; s < sectors.length; s++) sectors[s] = contents.add(image, s * SECTOR, -1);
    return new Platter(contents, sectors);
  }

  read(sector: number, count: number, into: Uint8Array, at: number): void {
    for (let done = 0; done < count; ) {
      const number = this.sectors[sector + done];
      let run = 1;
      while (done + run < count && this.sectors[sector + done + run] === number + run) run++;
      this.contents.copy(number, into, at + done * SECTOR, run);
      done += run;
    }
  }

  bytes(): Uint8Array {
    const image = new Uint8Array(this.sectors.length * SECTOR);
    this.read(0, this.sectors.length, image, 0);
    return image;
  }

  copy(): Platter {
    return new Platter(this.contents, this.sectors.slice());
  }
}

/**
 * How a crash came out for a sector that no flush had covered: `versions` and `kept` are numbers of operations, -1:
 * before all.
 */
export interface Outcome {
  readonly sector: number;
  readonly versions: readonly number[];
  readonly kept: number;
}

export interface SimulatedOptions {
  name?: string;
  power?: PowerSupply;
  blockSize?: number;
  canDiscard?: boolean;
  /** What the platter holds at first; copied. Zeroes if absent. A platter shares its contents with this disk. */
  contents?: Uint8Array | Platter;
  /** Returns the errno an operation fails with, or undefined. A failed write changes nothing, unless it `tears`. */
  fault?: (kind: Operation['kind'], at: number, length: number) => Errno | undefined;
  /** A write that fails has changed some of its sectors, as the seed chooses. */
  tears?: boolean;
}

export class SimulatedDisk implements BlockDevice {
  readonly name: string;
  readonly blockSize: number;
  readOnly = false;
  canDiscard: boolean;
  fault: SimulatedOptions['fault'];
  readonly power: PowerSupply;
  readonly #tears: boolean;
  readonly #contents: Contents;
  /** What readers see: the platter under the cache. */
  readonly #seen: Platter;
  /** Sectors written since the last flush: the contents they had since, the platter's first. */
  readonly #cache = new Map<number, number[]>();

  constructor(size: number, options: SimulatedOptions = {}) {
    const { contents } = options;
    this.name = options.name ?? 'disk';
    this.power = options.power ?? new PowerSupply();
    this.blockSize = options.blockSize ?? SECTOR;
    this.canDiscard = options.canDiscard ?? true;
    this.fault = options.fault;
    this.#tears = options.tears ?? false;
    const platter = contents instanceof Uint8Array ? Platter.of(contents) : contents;
    const sectors = new Int32Array(size / SECTOR);
    if (platter) sectors.set(platter.sectors);
    this.#contents = platter?.contents ?? new Contents();
    this.#seen = new Platter(this.#contents, sectors);
  }

  get size(): Bytes {
    return bytes(this.#seen.sectors.length * SECTOR);
  }

  /** What a reader sees now, without counting as an operation. */
  snapshot(): Uint8Array {
    return this.#seen.bytes();
  }

  /** The same of a few sectors. */
  peek(sector: number, count: number, into: Uint8Array): void {
    this.#seen.read(sector, count, into, 0);
  }

  /** What the platter holds after the power failed; a seed of its own makes several outcomes of one crash. */
  crash(seed: number): Uint8Array {
    return this.afterCrash(seed).bytes();
  }

  /** The same as a platter, for another disk. `outcomes` receives what became of every sector that was not flushed. */
  afterCrash(seed: number, outcomes?: Outcome[]): Platter {
    const random = prng(seed);
    const keep = tendency(random);
    const platter = this.#seen.copy();
    for (const [sector, versions] of this.#cache) {
      const number = versions[keep(versions.length)];
      platter.sectors[sector] = number;
      outcomes?.push({
        sector,
        versions: versions.map((version) => this.#contents.writer(version)),
        kept: this.#contents.writer(number),
      });
    }
    return platter;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    return this.#perform('read', at, length, () => this.#seen.read(at / SECTOR, length / SECTOR, into, start));
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    return this.#perform('write', at, length, (some) => this.#put(at, from, start, length, some));
  }

  flush(): Maybe {
    // Covers what had completed when the flush began; a write that completes meanwhile stays in the cache.
    const mark = this.#contents.length;
    return this.#perform('flush', 0, 0, () => {
      for (const [sector, versions] of this.#cache) {
        let covered = versions.length - 1;
        while (covered > 0 && versions[covered] >= mark) covered--;
        if (covered === versions.length - 1) this.#cache.delete(sector);
        else if (covered > 0) versions.splice(0, covered);
      }
    });
  }

  discard(at: Bytes, length: number): Maybe {
    if (!this.canDiscard) throw new DmError('NOT_SUPPORTED', 'EOPNOTSUPP', `${this.name} does not discard`);
    return this.#perform('discard', at, length, (some) => this.#put(at, new Uint8Array(length), 0, length, some));
  }

  writeZeroes(at: Bytes, length: number, _mayUnmap: boolean): Maybe {
    return this.#perform('zero', at, length, (some) => this.#put(at, new Uint8Array(length), 0, length, some));
  }

  extents(_at: Bytes, length: number): Extent[] {
    return [{ length: bytes(length), hole: false, zero: false }];
  }

  async close(): Promise<void> {}

  #put(at: number, from: Uint8Array, start: number, length: number, some: boolean): void {
    for (let done = 0; done < length; done += SECTOR) {
      if (some && this.power.random.chance(0.5)) continue;
      const sector = (at + done) / SECTOR;
      const number = this.#contents.add(from, start + done, this.power.count);
      const versions = this.#cache.get(sector);
      if (versions) versions.push(number);
      else this.#cache.set(sector, [this.#seen.sectors[sector], number]);
      this.#seen.sectors[sector] = number;
    }
  }

  #perform(kind: Operation['kind'], at: number, length: number, apply: (some: boolean) => void): Maybe {
    if (at % SECTOR !== 0 || length % SECTOR !== 0)
      throw new RangeError(`${kind} of ${length} bytes at ${at} is not aligned`);
    if (at < 0 || at + length > this.size)
      throw new DmError('OUT_OF_RANGE', 'EIO', `${kind} at ${at} is beyond ${this.name}`);
    if (!this.power.isSlow()) return this.#now(kind, at, length, apply);
    return this.power.turn().then(() => this.#now(kind, at, length, apply));
  }

  #now(kind: Operation['kind'], at: number, length: number, apply: (some: boolean) => void): void {
    if (!this.power.on) throw new DmError('IO', 'EIO', 'the power is off');
    const errno = this.fault?.(kind, at, length);
    if (errno) {
      if (this.#tears && kind !== 'read' && kind !== 'flush') apply(true);
      this.power.begin(this.name, kind, at, length, errno);
      throw new DmError('IO', errno, `${kind} of ${length} bytes at ${at} failed on ${this.name}`);
    }
    // A flush that is cut off has covered nothing, or everything: nothing leaves more to go wrong.
    if (kind !== 'flush') apply(false);
    if (!this.power.begin(this.name, kind, at, length)) throw new DmError('IO', 'EIO', 'the power failed');
    if (kind === 'flush') apply(false);
  }
}

/**
 * Which of a sector's versions a crash keeps. Every one is possible at every sector; but a process that was killed
 * leaves the newest everywhere, and a cache that lost all but a few sectors is a case of its own.
 */
function tendency(random: Prng): (versions: number) => number {
  const newest = random.pick([1, 0.9, 0, 0, 0, 0]);
  const oldest = newest > 0 ? 0 : random.pick([1, 0.9, 0, 0, 0, 0]);
  return (versions) => {
    if (newest > 0 && random.chance(newest)) return versions - 1;
    if (oldest > 0 && random.chance(oldest)) return 0;
    return random.below(versions);
  };
}
