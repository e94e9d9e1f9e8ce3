/**
 * A disk that loses power, for tests. It keeps what the platter holds and, apart from it, every write since the last
 * flush; a crash keeps any of the versions a 512-byte sector has had since then, sector by sector, as its seed chooses.
 * So unflushed writes are lost, reordered and torn between sectors, but never within one.
 *
 * Operations may complete out of order: each waits its turn in the power supply's queue, from which the seed picks.
 */
import { DmError, type Errno } from '../errors.ts';
import { type Prng, prng } from '../lib/prng.ts';
import { type Bytes, bytes, SECTOR } from '../units.ts';
import type { BlockDevice, Extent, Maybe } from './block-device.ts';

export interface Operation {
  /** From 0, counted over all disks of the power supply. */
  readonly number: number;
  readonly disk: string;
  readonly kind: 'read' | 'write' | 'flush' | 'discard' | 'zero';
  readonly at: number;
  readonly length: number;
}

export interface PowerOptions {
  seed?: number;
  /** The power fails at this operation (reads are not counted): it is cut off somewhere in its middle. */
  cutAt?: number;
  /** Chance that an operation completes later instead of at once. */
  slow?: number;
  /** Records every operation in `history`. */
  record?: boolean;
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
  #record: boolean;
  #waiting: (() => void)[] = [];

  constructor({ seed = 1, cutAt = Number.POSITIVE_INFINITY, slow = 0, record = false }: PowerOptions = {}) {
    this.random = prng(seed);
    this.cutAt = cutAt;
    this.slow = slow;
    this.#record = record;
  }

  /** Numbers an operation. Returns false if the power fails during it. */
  begin(disk: string, kind: Operation['kind'], at: number, length: number): boolean {
    if (this.#record) this.history.push({ number: this.count, disk, kind, at, length });
    if (kind === 'read') return true;
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

export interface SimulatedOptions {
  name?: string;
  power?: PowerSupply;
  blockSize?: number;
  canDiscard?: boolean;
  /** What the platter holds at first; copied. Zeroes if absent. */
  contents?: Uint8Array;
  /** Returns the errno an operation fails with, or undefined. A failed write changes nothing. */
  fault?: (kind: Operation['kind'], at: number, length: number) => Errno | undefined;
}

export class SimulatedDisk implements BlockDevice {
  readonly name: string;
  readonly blockSize: number;
  readOnly = false;
  canDiscard: boolean;
  fault: SimulatedOptions['fault'];
  readonly power: PowerSupply;
  /** What readers see: the platter under the cache. */
  #seen: Uint8Array;
  /** Sectors written since the last flush: the versions they had since, the platter's first. */
  #cache = new Map<number, Uint8Array[]>();

  constructor(size: number, options: SimulatedOptions = {}) {
    this.name = options.name ?? 'disk';
    this.power = options.power ?? new PowerSupply();
    this.blockSize = options.blockSize ?? SECTOR;
    this.canDiscard = options.canDiscard ?? true;
    this.fault = options.fault;
    this.#seen = new Uint8Array(size);
    if (options.contents) this.#seen.set(options.contents);
  }

  get size(): Bytes {
    return bytes(this.#seen.length);
  }

  /** What a reader sees now, without counting as an operation. */
  snapshot(): Uint8Array {
    return this.#seen.slice();
  }

  /** What the platter holds after the power failed; a seed of its own makes several outcomes of one crash. */
  crash(seed: number): Uint8Array {
    const random = prng(seed);
    const image = this.#seen.slice();
    for (const [sector, versions] of this.#cache) image.set(random.pick(versions), sector * SECTOR);
    return image;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    return this.#perform('read', at, length, () => into.set(this.#seen.subarray(at, at + length), start));
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    return this.#perform('write', at, length, () => this.#put(at, from, start, length));
  }

  flush(): Maybe {
    // Covers what had completed when the flush began; a write that completes meanwhile stays in the cache.
    const covered = [...this.#cache].map(([sector, versions]) => [sector, versions[versions.length - 1]] as const);
    return this.#perform('flush', 0, 0, () => {
      for (const [sector, version] of covered) {
        const versions = this.#cache.get(sector);
        const index = versions?.indexOf(version) ?? -1;
        if (index < 0) continue;
        versions!.splice(0, index);
        if (versions!.length === 1) this.#cache.delete(sector);
      }
    });
  }

  discard(at: Bytes, length: number): Maybe {
    if (!this.canDiscard) throw new DmError('NOT_SUPPORTED', 'EOPNOTSUPP', `${this.name} does not discard`);
    return this.#perform('discard', at, length, () => this.#put(at, new Uint8Array(length), 0, length));
  }

  writeZeroes(at: Bytes, length: number, _mayUnmap: boolean): Maybe {
    return this.#perform('zero', at, length, () => this.#put(at, new Uint8Array(length), 0, length));
  }

  extents(_at: Bytes, length: number): Extent[] {
    return [{ length: bytes(length), hole: false, zero: false }];
  }

  async close(): Promise<void> {}

  #put(at: number, from: Uint8Array, start: number, length: number): void {
    for (let done = 0; done < length; done += SECTOR) {
      const sector = (at + done) / SECTOR;
      let versions = this.#cache.get(sector);
      if (!versions) this.#cache.set(sector, (versions = [this.#seen.slice(at + done, at + done + SECTOR)]));
      const version = from.slice(start + done, start + done + SECTOR);
      versions.push(version);
      this.#seen.set(version, at + done);
    }
  }

  #perform(kind: Operation['kind'], at: number, length: number, apply: () => void): Maybe {
    if (at % SECTOR !== 0 || length % SECTOR !== 0)
      throw new RangeError(`${kind} of ${length} bytes at ${at} is not aligned`);
    if (at < 0 || at + length > this.size)
      throw new DmError('OUT_OF_RANGE', 'EIO', `${kind} at ${at} is beyond ${this.name}`);
    if (!this.power.isSlow()) return this.#now(kind, at, length, apply);
    return this.power.turn().then(() => this.#now(kind, at, length, apply));
  }

  #now(kind: Operation['kind'], at: number, length: number, apply: () => void): void {
    if (!this.power.on) throw new DmError('IO', 'EIO', 'the power is off');
    const errno = this.fault?.(kind, at, length);
    if (errno) throw new DmError('IO', errno, `${kind} of ${length} bytes at ${at} failed on ${this.name}`);
    const whole = this.power.begin(this.name, kind, at, length);
    if (!whole && kind === 'flush') throw new DmError('IO', 'EIO', 'the power failed');
    apply();
    if (!whole) throw new DmError('IO', 'EIO', 'the power failed');
  }
}
