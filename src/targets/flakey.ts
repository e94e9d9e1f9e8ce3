import type { BlockDevice, Extent, Maybe } from '../device/block-device.ts';
import { ioError } from '../errors.ts';
import { type Clock, systemClock } from '../lib/clock.ts';
import { type Bytes, bytes, type Sector, toBytes } from '../units.ts';
import { deviceWord, openArgument, parseSector, parseU32, refuse, tableMode } from './arguments.ts';
import type { DeviceRange, StatusKind, Target, TargetType } from './target.ts';

/**
 * `flakey <device> <start> <up s> <down s> [<#words> <feature>…]`: a device that works for some seconds and then does
 * not, in turn (Linux `dm-flakey.c`).
 */
export const flakeyType = (clock: Clock): TargetType => ({
  name: 'flakey',
  version: [1, 5, 0],
  async create(line) {
    const born = clock.now();
    const { args } = line;
    if (args.length < 4) throw refuse('flakey', 'Invalid argument count');
    const start = parseSector(args[1]);
    if (start === undefined) throw refuse('flakey', 'Invalid device sector');
    const intervals = parseIntervals(args[2], args[3]);
    const features = parseFeatures(args.slice(4));
    const device = await openArgument(line, 'flakey', args[0], tableMode(line));
    return new Flakey({ device, start, length: line.length }, intervals, features, () => clock.now() - born);
  },
});

export const flakey = flakeyType(systemClock);

/** Seconds. */
interface Intervals {
  readonly up: number;
  readonly down: number;
}

interface Corruption {
  /** Of each request's data, from 1. */
  readonly byte: number;
  readonly direction: 'r' | 'w';
  readonly value: number;
  /** Kernel bits of a request that must all be set. */
  readonly flags: number;
}

interface Features {
  writes?: 'drop_writes' | 'error_writes';
  corrupt?: Corruption;
}

function parseIntervals(upWord: string, downWord: string): Intervals {
  const up = parseU32(upWord);
  if (up === undefined) throw refuse('flakey', 'Invalid up interval');
  const down = parseU32(downWord);
  if (down === undefined) throw refuse('flakey', 'Invalid down interval');
  // In 32 bits, as the kernel adds.
  const sum = (up + down) >>> 0;
  if (sum === 0) throw refuse('flakey', 'Total (up + down) interval is zero');
  if (sum < up) throw refuse('flakey', 'Interval overflow');
  return { up, down };
}

const FEATURE_WORDS_MAX = 6;

/** The count, then the features; what stands behind them is ignored. */
function parseFeatures([countWord, ...words]: readonly string[]): Features {
  const features: Features = {};
  if (countWord === undefined) return features;
  const count = parseU32(countWord);
  if (count === undefined || count > FEATURE_WORDS_MAX || count > words.length)
    throw refuse('flakey', 'Invalid number of feature args');
  let next = 0;
  // A feature whose parameters reach beyond the count goes past it, and then words are missing.
  while (next !== count) {
    const word = words[next++]?.toLowerCase();
    if (word === undefined) throw refuse('flakey', 'Insufficient feature arguments');
    if (word === 'drop_writes' || word === 'error_writes') {
      if (features.writes === word) throw refuse('flakey', `Feature ${word} duplicated`);
      if (features.writes) throw refuse('flakey', `Feature ${word} conflicts with feature ${features.writes}`);
      features.writes = word;
    } else if (word === 'corrupt_bio_byte') {
      if (next === count) throw refuse('flakey', 'Feature corrupt_bio_byte requires parameters');
      features.corrupt = parseCorruption(words.slice(next, next + 4));
      next += 4;
    } else throw refuse('flakey', 'Unrecognised flakey feature requested');
  }
  if (features.writes && features.corrupt?.direction === 'w')
    throw refuse('flakey', `${features.writes} is incompatible with corrupt_bio_byte with the WRITE flag set`);
  return features;
}

function parseCorruption([byteWord, directionWord, valueWord, flagsWord]: readonly string[]): Corruption {
  const byte = parseU32(byteWord);
  if (!byte) throw refuse('flakey', 'Invalid corrupt bio byte');
  const direction = directionWord?.toLowerCase();
  if (direction !== 'r' && direction !== 'w') throw refuse('flakey', 'Invalid corrupt bio direction (r or w)');
  const value = parseU32(valueWord);
  if (value === undefined || value > 255)
    throw refuse('flakey', 'Invalid corrupt value to write into bio byte (0-255)');
  const flags = parseU32(flagsWord);
  if (flags === undefined) throw refuse('flakey', 'Invalid corrupt bio flags mask');
  return { byte, direction, value, flags };
}

/** The kernel's bits of a request. A request here has no others than its operation (`REQ_OP_READ`, `REQ_OP_WRITE`). */
const REQUEST = { r: 0, w: 1 } as const;

class Flakey implements Target {
  readonly ranges: readonly DeviceRange[];
  readonly #device: BlockDevice;
  readonly #start: Sector;
  readonly #shift: Bytes;
  readonly #intervals: Intervals;
  readonly #features: Features;
  /** Milliseconds since the table was loaded. */
  readonly #age: () => number;
  /** What reads and writes get in their data while the device is down. */
  readonly #corrupt: { readonly r?: Corruption; readonly w?: Corruption };
  #suspending = false;

  constructor(range: DeviceRange, intervals: Intervals, features: Features, age: () => number) {
    this.ranges = [range];
    this.#device = range.device;
    this.#start = range.start;
    this.#shift = toBytes(range.start);
    this.#intervals = intervals;
    this.#features = features;
    this.#age = age;
    const { corrupt } = features;
    const matches = corrupt && (REQUEST[corrupt.direction] & corrupt.flags) >>> 0 === corrupt.flags;
    this.#corrupt = matches ? { [corrupt.direction]: corrupt } : {};
  }

  get canDiscard(): boolean {
    return this.#device.canDiscard;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    const isDown = this.#isDown();
    if (isDown) this.#checkRead();
    const wait = this.#device.read(this.#below(at), into, start, length);
    const { r } = this.#corrupt;
    if (!isDown || !r || r.byte > length) return wait;
    const place = start + r.byte - 1;
    if (wait) return wait.then(() => void (into[place] = r.value));
    into[place] = r.value;
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    if (this.#isDown()) {
      if (!this.#passesChange()) return;
      const { w } = this.#corrupt;
      if (w && w.byte <= length) {
        // The caller's buffer stays as it is.
        const copy = Uint8Array.prototype.slice.call(from, start, start + length);
        copy[w.byte - 1] = w.value;
        return this.#device.write(this.#below(at), copy, 0, length);
      }
    }
    return this.#device.write(this.#below(at), from, start, length);
  }

  flush(): Maybe {
    // A suspend's own flush is none that somebody has asked for: a device that is down can be suspended.
    if (this.#isDown() && (this.#suspending || !this.#passesChange())) return;
    return this.#device.flush();
  }

  discard(at: Bytes, length: number): Maybe {
    if (this.#isDown() && !this.#passesChange()) return;
    return this.#device.discard(this.#below(at), length);
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    if (this.#isDown() && !this.#passesChange()) return;
    return this.#device.writeZeroes(this.#below(at), length, mayUnmap);
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    if (this.#isDown()) {
      this.#checkRead();
      // Nothing reads as zeroes for sure.
      if (this.#corrupt.r) return [{ length: bytes(length), hole: false, zero: false }];
    }
    return this.#device.extents(this.#below(at), length);
  }

  /** Ends in a blank, as the kernel's does. */
  status(kind: StatusKind): string {
    if (kind !== 'table') return '';
    const { writes, corrupt } = this.#features;
    const words: (string | number)[] = [];
    if (writes) words.push(writes);
    if (corrupt) words.push('corrupt_bio_byte', corrupt.byte, corrupt.direction, corrupt.value, corrupt.flags);
    const { up, down } = this.#intervals;
    return `${[deviceWord(this.#device), this.#start, up, down, words.length, ...words].join(' ')} `;
  }

  presuspend(): void {
    this.#suspending = true;
  }

  presuspendUndo(): void {
    this.#suspending = false;
  }

  resume(): void {
    this.#suspending = false;
  }

  async close(): Promise<void> {}

  #below(at: Bytes): Bytes {
    return bytes(at + this.#shift);
  }

  #isDown(): boolean {
    const { up, down } = this.#intervals;
    return (this.#age() / 1000) % (up + down) >= up;
  }

  /** While down. */
  #checkRead(): void {
    const { writes, corrupt } = this.#features;
    if (!writes && !corrupt) throw this.#failure('read');
  }

  /** While down: whether what would change the device may reach it. False: it succeeds all the same. */
  #passesChange(): boolean {
    const { writes, corrupt } = this.#features;
    if (writes === 'drop_writes') return false;
    if (writes === 'error_writes' || !corrupt) throw this.#failure('write to');
    return true;
  }

  #failure(verb: string) {
    return ioError(`Cannot ${verb} ${this.#device.name}: the flakey target over it is down`);
  }
}
