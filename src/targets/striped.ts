/**
 * `striped <stripes> <chunk sectors> (<device> <start sector>){stripes}` (Linux `dm-stripe.c`).
 *
 * Chunk c of the target lies on stripe c mod N, in row c div N. What a request takes of one stripe is contiguous there:
 *
 *     target    | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |       N = 3, a request for chunks 1 to 7
 *     stripe 0  | 0 |[3 | 6]|   stripe 1  |[1 | 4 | 7]|   stripe 2  |[2 | 5]|
 */
import type { BlockDevice, Extent, Maybe } from '../device/block-device.ts';
import { DmError } from '../errors.ts';
import { Parts } from '../lib/parts.ts';
import { type Bytes, bytes, SECTOR, sector, toBytes } from '../units.ts';
import { deviceWord, openArgument, parseSector, parseU32, refuse, tableMode } from './arguments.ts';
import type { DeviceRange, StatusKind, TableLine, Target, TargetType } from './target.ts';

/** A device that has failed this often is known to be bad: further errors raise no events. */
const ERROR_EVENTS = 15;
/**
 * Bytes. Requests of several rows of smaller chunks go to each stripe as one request through a buffer of their own,
 * since copying 64 KiB costs less than one more request.
 */
const GATHER_BELOW = 65536;
/** Buffers kept for the next request, and bytes up to which one is worth keeping. */
const SPARE_MAX = 8;
const SPARE_BYTES_MAX = 4 * 1024 * 1024;
/** One answer of `extents`. */
const EXTENTS_MAX = 1024;

export const striped: TargetType = {
  name: 'striped',
  version: [1, 6, 0],
  async create(line) {
    const { args, length } = line;
    if (args.length < 2) throw refuse('striped', 'Not enough arguments');
    const count = parseU32(args[0]);
    if (!count) throw refuse('striped', 'Invalid stripe count');
    const chunk = parseU32(args[1]);
    if (!chunk) throw refuse('striped', 'Invalid chunk_size');
    if (length % count !== 0) throw refuse('striped', 'Target length not divisible by number of stripes');
    if ((length / count) % chunk !== 0) throw refuse('striped', 'Target length not divisible by chunk size');
    if (args.length !== 2 + 2 * count) throw refuse('striped', 'Not enough destinations specified');
    const ranges: DeviceRange[] = [];
    for (let word = 2; word < args.length; word += 2)
      ranges.push(await stripe(line, args[word], args[word + 1], length / count));
    return new Striped(ranges, toBytes(sector(chunk)), line.event);
  },
};

async function stripe(line: TableLine, argument: string, startWord: string, length: number): Promise<DeviceRange> {
  const text = "Couldn't parse stripe destination";
  const start = parseSector(startWord);
  if (start === undefined) throw refuse('striped', text);
  return {
    device: await openArgument(line, 'striped', argument, tableMode(line), text),
    start,
    length: sector(length),
  };
}

class Striped implements Target {
  readonly ranges: readonly DeviceRange[];
  readonly hints: { readonly minimumIo: Bytes; readonly optimalIo: Bytes };
  #devices: BlockDevice[];
  /** Bytes, on each device. */
  #starts: Bytes[];
  #count: number;
  #chunk: number;
  #errors: number[];
  #failed: ((error: unknown) => never)[];
  #event: () => void;
  #spare: Uint8Array[] = [];

  constructor(ranges: readonly DeviceRange[], chunk: Bytes, event: () => void) {
    this.ranges = ranges;
    this.#count = ranges.length;
    this.#chunk = chunk;
    this.hints = { minimumIo: chunk, optimalIo: bytes(chunk * ranges.length) };
    this.#devices = ranges.map(({ device }) => device);
    this.#starts = ranges.map(({ start }) => toBytes(start));
    this.#errors = ranges.map(() => 0);
    this.#failed = this.#devices.map((device) => (error: unknown) => this.#fail(device, error));
    this.#event = event;
  }

  get canDiscard(): boolean {
    return this.#devices.every((device) => device.canDiscard);
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    const chunk = Math.floor(at / this.#chunk);
    if (this.#count === 1 || at + length <= (chunk + 1) * this.#chunk)
      return this.#read(chunk % this.#count, this.#below(chunk % this.#count, at), into, start, length);
    if (this.#gathers(length)) return this.#gatherRead(at, into, start, length);
    const parts = new Parts();
    this.#eachChunk(
      at,
      length,
      (index, below, done, count) => {
        parts.add(this.#read(index, below, into, start + done, count));
      },
      parts,
    );
    return parts.done();
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    const chunk = Math.floor(at / this.#chunk);
    if (this.#count === 1 || at + length <= (chunk + 1) * this.#chunk)
      return this.#write(chunk % this.#count, this.#below(chunk % this.#count, at), from, start, length);
    if (this.#gathers(length)) return this.#gatherWrite(at, from, start, length);
    const parts = new Parts();
    this.#eachChunk(
      at,
      length,
      (index, below, done, count) => {
        parts.add(this.#write(index, below, from, start + done, count));
      },
      parts,
    );
    return parts.done();
  }

  /** A device that carries several stripes is flushed once. */
  flush(): Maybe {
    const parts = new Parts();
    for (const device of new Set(this.#devices))
      this.#attempt(parts, this.#devices.indexOf(device), () => device.flush());
    return parts.done();
  }

  discard(at: Bytes, length: number): Maybe {
    return this.#eachStripe(at, length, (device, below, count) => device.discard(below, count));
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    return this.#eachStripe(at, length, (device, below, count) => device.writeZeroes(below, count, mayUnmap));
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    const lists = this.#devices.map((device, index) => {
      const from = this.#below(index, at);
      const count = this.#below(index, at + length) - from;
      return count > 0 ? device.extents(from, count) : [];
    });
    if (lists.some((list) => list instanceof Promise))
      return Promise.all(lists).then((found) => this.#interleave(at, length, found));
    return this.#interleave(at, length, lists as Extent[][]);
  }

  status(kind: StatusKind): string {
    const names = this.#devices.map(deviceWord);
    const letters = this.#errors.map((errors) => (errors > 0 ? 'D' : 'A'));
    if (kind === 'info') return `${this.#count} ${names.join(' ')} 1 ${letters.join('')}`;
    const chunkSize = this.#chunk / SECTOR;
    if (kind === 'table') {
      const stripes = this.ranges.map(({ start }, index) => `${names[index]} ${start}`);
      return `${this.#count} ${chunkSize} ${stripes.join(' ')}`;
    }
    const stripes = this.ranges.map(
      ({ start }, i) =>
        `,stripe_${i}_device_name=${names[i]},stripe_${i}_physical_start=${start},stripe_${i}_status=${letters[i]}`,
    );
    return `target_name=striped,target_version=1.6.0,stripes=${this.#count},chunk_size=${chunkSize}${stripes.join('')};`;
  }

  async close(): Promise<void> {}

  /**
   * The first byte of a stripe's device that belongs to the target at `at` or behind: exact when the byte at `at` lies
   * on that stripe, else the chunk boundary that a range from or to `at` has there (`stripe_map_range_sector`).
   */
  #below(index: number, at: number): Bytes {
    const chunk = Math.floor(at / this.#chunk);
    const row = Math.floor(chunk / this.#count);
    const own = chunk % this.#count;
    const within = index === own ? at - chunk * this.#chunk : index < own ? this.#chunk : 0;
    return bytes(this.#starts[index] + row * this.#chunk + within);
  }

  #read(index: number, at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    let wait: Maybe;
    try {
      wait = this.#devices[index].read(at, into, start, length);
    } catch (error) {
      this.#fail(this.#devices[index], error);
    }
    if (wait !== undefined) return wait.catch(this.#failed[index]);
  }

  #write(index: number, at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    let wait: Maybe;
    try {
      wait = this.#devices[index].write(at, from, start, length);
    } catch (error) {
      this.#fail(this.#devices[index], error);
    }
    if (wait !== undefined) return wait.catch(this.#failed[index]);
  }

  /** Counts an error of a device for every stripe on it, and passes it on (`stripe_end_io`). */
  #fail(failed: BlockDevice, error: unknown): never {
    if (!(error instanceof DmError && error.errno === 'EOPNOTSUPP')) {
      let event = false;
      for (const [index, device] of this.#devices.entries())
        if (device === failed && ++this.#errors[index] < ERROR_EVENTS) event = true;
      if (event) this.#event();
    }
    throw error;
  }

  /** The request takes more than a row, so that it has several chunks on a stripe. */
  #gathers(length: number): boolean {
    return this.#chunk < GATHER_BELOW && length > this.#count * this.#chunk;
  }

  /** Calls `visit` with each chunk's stripe, its place on the device, and its place in the request. */
  #eachChunk(
    at: number,
    length: number,
    visit: (index: number, below: Bytes, done: number, count: number) => void,
    parts: Parts,
  ): void {
    for (let done = 0; done < length; ) {
      const chunk = Math.floor((at + done) / this.#chunk);
      const count = Math.min(length - done, (chunk + 1) * this.#chunk - at - done);
      const index = chunk % this.#count;
      try {
        visit(index, this.#below(index, at + done), done, count);
      } catch (error) {
        parts.fail(error);
      }
      done += count;
    }
  }

  #eachStripe(at: number, length: number, operation: (device: BlockDevice, at: Bytes, length: number) => Maybe): Maybe {
    const parts = new Parts();
    for (const [index, device] of this.#devices.entries()) {
      const from = this.#below(index, at);
      const count = this.#below(index, at + length) - from;
      if (count > 0) this.#attempt(parts, index, () => operation(device, from, count));
    }
    return parts.done();
  }

  #attempt(parts: Parts, index: number, operation: () => Maybe): void {
    try {
      try {
        parts.add(operation()?.catch(this.#failed[index]));
      } catch (error) {
        this.#fail(this.#devices[index], error);
      }
    } catch (error) {
      parts.fail(error);
    }
  }

  #gatherRead(at: number, into: Uint8Array, start: number, length: number): Maybe {
    const buffer = this.#takeBuffer(length);
    const wait = this.#transfer('read', at, length, buffer);
    if (wait !== undefined)
      return wait
        .then(() => this.#copy(at, length, into, start, buffer, 'scatter'))
        .finally(() => this.#giveBuffer(buffer));
    this.#copy(at, length, into, start, buffer, 'scatter');
    this.#giveBuffer(buffer);
  }

  #gatherWrite(at: number, from: Uint8Array, start: number, length: number): Maybe {
    const buffer = this.#takeBuffer(length);
    this.#copy(at, length, from, start, buffer, 'gather');
    const wait = this.#transfer('write', at, length, buffer);
    if (wait !== undefined) return wait.finally(() => this.#giveBuffer(buffer));
    this.#giveBuffer(buffer);
  }

  /** Each stripe's share, one behind the other in `buffer`. */
  #transfer(operation: 'read' | 'write', at: number, length: number, buffer: Uint8Array): Maybe {
    const parts = new Parts();
    let base = 0;
    for (let index = 0; index < this.#count; index++) {
      const from = this.#below(index, at);
      const count = this.#below(index, at + length) - from;
      if (count === 0) continue;
      try {
        parts.add(
          operation === 'read'
            ? this.#read(index, from, buffer, base, count)
            : this.#write(index, from, buffer, base, count),
        );
      } catch (error) {
        parts.fail(error);
      }
      base += count;
    }
    return parts.done();
  }

  /** Moves the chunks of a request between its own buffer and the stripes' shares. */
  #copy(
    at: number,
    length: number,
    request: Uint8Array,
    start: number,
    shares: Uint8Array,
    direction: 'gather' | 'scatter',
  ): void {
    let base = 0;
    for (let index = 0; index < this.#count; index++) {
      const from = this.#below(index, at);
      const to = this.#below(index, at + length);
      for (let below: number = from; below < to; ) {
        const offset = below - this.#starts[index];
        const row = Math.floor(offset / this.#chunk);
        const count = Math.min(to - below, (row + 1) * this.#chunk - offset);
        const place = start + (row * this.#count + index) * this.#chunk + (offset - row * this.#chunk) - at;
        if (direction === 'scatter') request.set(shares.subarray(base, base + count), place);
        else shares.set(request.subarray(place, place + count), base);
        base += count;
        below += count;
      }
    }
  }

  #takeBuffer(length: number): Uint8Array {
    const spare = this.#spare.pop();
    return spare !== undefined && spare.length >= length ? spare : new Uint8Array(length);
  }

  #giveBuffer(buffer: Uint8Array): void {
    if (this.#spare.length < SPARE_MAX && buffer.length <= SPARE_BYTES_MAX) this.#spare.push(buffer);
  }

  /** The extents of the target from those of the stripes' shares, up to where the first list ends. */
  #interleave(at: number, length: number, lists: readonly (readonly Extent[])[]): Extent[] {
    const found: Extent[] = [];
    const cursors = lists.map((list) => ({ list, next: 1, left: list[0]?.length ?? 0, extent: list[0] }));
    const end = at + length;
    const row = this.#chunk * this.#count;
    while (at < end) {
      const chunk = Math.floor(at / this.#chunk);
      const cursor = cursors[chunk % this.#count];
      if (cursor.left === 0) break;
      const { hole, zero } = cursor.extent;
      let count = Math.min(end, (chunk + 1) * this.#chunk) - at;
      // Whole rows that are alike on all stripes are taken at once: of each stripe they take as many chunks.
      const alike = cursors.every(({ left, extent }) => left > 0 && extent.hole === hole && extent.zero === zero);
      const rows = alike
        ? Math.min(Math.floor((end - at) / row), ...cursors.map(({ left }) => Math.floor(left / this.#chunk)))
        : 0;
      if (rows > 0) {
        count = rows * row;
        for (const each of cursors) advance(each, rows * this.#chunk);
      } else {
        count = Math.min(count, cursor.left);
        advance(cursor, count);
      }
      const last = found.at(-1);
      if (last && last.hole === hole && last.zero === zero) last.length = bytes(last.length + count);
      else if (found.length === EXTENTS_MAX) break;
      else found.push({ length: bytes(count), hole, zero });
      at += count;
    }
    return found;
  }
}

interface Cursor {
  readonly list: readonly Extent[];
  next: number;
  left: number;
  extent: Extent;
}

function advance(cursor: Cursor, count: number): void {
  cursor.left -= count;
  if (cursor.left > 0 || cursor.next === cursor.list.length) return;
  cursor.extent = cursor.list[cursor.next++];
  cursor.left = cursor.extent.length;
}
