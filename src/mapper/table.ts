/**
 * A table: targets end to end from sector 0, the devices below them, and the way of a request to its target
 * (Linux `dm-table.c`).
 */
import type { BlockDevice, ChangedExtent, Extent, Maybe, Mode } from '../device/block-device.ts';
import { DmError, TableError } from '../errors.ts';
import { systemClock } from '../lib/clock.ts';
import { Parts } from '../lib/parts.ts';
import { splitWords } from '../targets/arguments.ts';
import type { StatusKind, Target, TargetType } from '../targets/target.ts';
import { type Bytes, bytes, SECTOR, type Sector, sector } from '../units.ts';
import type { TargetSpec, TargetText } from './control.ts';
import type { Lease } from './devices.ts';

const TARGETS_MAX = 1_048_576;
const TEXT_BYTES_MAX = 2 ** 30;
const TYPE_BYTES_MAX = 15;
/** The kernel ends at 2^54 - 1 sectors, which a double rounds to this. */
const SECTORS_MAX = 2 ** 54;
/** Bytes: requests stop where sectors cease to have exact addresses. */
const ADDRESS_MAX = 2 ** 62 - SECTOR;
/** One answer of `extents` or `changed`. */
const EXTENTS_MAX = 1024;
/** How long a status waits for what it is to count: a disk that hangs below costs it some numbers, not the answer. */
const STATUS_PATIENCE_MS = 500;

export interface Limits {
  /** Bytes; the largest of the devices below. */
  blockSize: number;
  /** Bytes; the largest of the devices and targets below. */
  minimumIo: number;
  /** Bytes; the least common multiple; 0: nobody has an opinion. */
  optimalIo: number;
}

/** What a table needs of the mapper while it is built. */
export interface TableSource {
  readonly types: ReadonlyMap<string, TargetType>;
  readonly readOnly: boolean;
  readonly owner: BlockDevice;
  event(): void;
  enlarge(device: BlockDevice): boolean;
  /** The same key for every argument that leads to the same device. */
  resolve(argument: string): Promise<unknown>;
  claim(key: unknown, mode: Mode): Promise<Lease>;
}

interface Slot {
  readonly start: Sector;
  readonly length: Sector;
  readonly type: TargetType;
  readonly target: Target;
}

export class Table {
  readonly readOnly: boolean;
  readonly #slots: Slot[] = [];
  /** In order of first opening. */
  readonly #devices = new Map<unknown, Promise<Lease>>();
  #opened: Lease[] = [];
  #size = bytes(0);
  /** Ends of the targets in bytes, ascending. */
  #ends = new Float64Array(0);
  #single: Target | undefined;
  #users = 0;
  #unused: (() => void) | undefined;

  private constructor(readOnly: boolean) {
    this.readOnly = readOnly;
  }

  /** Throws TableError or the error of an open; then everything that was opened is closed again. */
  static async build(specs: readonly TargetSpec[], source: TableSource): Promise<Table> {
    const table = new Table(source.readOnly);
    try {
      await table.#build(specs, source);
    } catch (error) {
      await table.close();
      throw error;
    }
    return table;
  }

  get size(): Bytes {
    return this.#size;
  }

  /** What the first target that has something to tell says. */
  get note(): string | undefined {
    for (const { target } of this.#slots) if (target.note !== undefined) return target.note;
    return undefined;
  }

  /** One of its targets will never work again. */
  get spent(): boolean {
    return this.#slots.some(({ target }) => target.spent);
  }

  get targetCount(): number {
    return this.#slots.length;
  }

  get targets(): readonly Slot[] {
    return this.#slots;
  }

  /** In order of first opening. */
  get devices(): readonly Lease[] {
    return this.#opened;
  }

  /** Only a table of the same type, or of one that may replace anything, may take the place of this one. */
  get immutableType(): TargetType | undefined {
    return this.#slots.find(({ type }) => type.immutable)?.type;
  }

  /** Throws EINVAL. */
  checkReplaces(immutable: TargetType | undefined): void {
    if (!immutable || this.#slots.some(({ type }) => type === immutable || type.wildcard)) return;
    throw invalid(`can't replace immutable target type ${immutable.name}`);
  }

  get canDiscard(): boolean {
    return this.#slots.every(({ target }) => target.canDiscard);
  }

  async #build(specs: readonly TargetSpec[], source: TableSource): Promise<void> {
    checkAmount(specs);
    let end = 0;
    for (const spec of specs) {
      const type = checkSpec(spec, end, source, this.#slots);
      const target = await type.create({
        start: sector(spec.start),
        length: sector(spec.length),
        args: splitWords(spec.args),
        readOnly: this.readOnly,
        owner: source.owner,
        open: (argument, mode) => this.#open(argument, mode, source),
        event: source.event,
        enlarge: source.enlarge,
      });
      this.#slots.push({ start: sector(spec.start), length: sector(spec.length), type, target });
      end = spec.start + spec.length;
    }
    this.#size = bytes(Math.min(end * SECTOR, ADDRESS_MAX));
    this.#ends = Float64Array.from(this.#slots, ({ start, length }) => (start + length) * SECTOR);
    this.#single = this.#slots.length === 1 ? this.#slots[0].target : undefined;
  }

  async #open(argument: string, mode: Mode, source: TableSource): Promise<BlockDevice> {
    const key = await source.resolve(argument);
    let claim = this.#devices.get(key);
    if (!claim) {
      claim = source.claim(key, mode).then((device) => {
        this.#opened.push(device);
        return device;
      });
      this.#devices.set(key, claim);
    }
    try {
      const device = await claim;
      if (mode === 'rw' && device.mode === 'r') await device.upgrade();
      return device.device;
    } catch (error) {
      this.#devices.delete(key);
      throw error;
    }
  }

  /**
   * Stacks the limits of what lies below, and checks that every area lies inside its device. A table that names no
   * device keeps the `previous` limits. Throws TableError (EINVAL).
   */
  limits(previous: Limits): Limits {
    const all: Limits = { blockSize: SECTOR, minimumIo: SECTOR, optimalIo: 0 };
    let areas = 0;
    const blockSizes = this.#slots.map(({ target }) => {
      const own: Limits = { blockSize: SECTOR, minimumIo: SECTOR, optimalIo: 0 };
      for (const range of target.ranges) {
        areas++;
        checkArea(range.device, range.start, range.length);
        const below = range.device as BlockDevice & { readonly hints?: Target['hints'] };
        stack(own, below.blockSize, below.hints?.minimumIo ?? below.blockSize, below.hints?.optimalIo ?? 0);
      }
      if (target.hints) {
        own.minimumIo = Math.max(own.minimumIo, target.hints.minimumIo);
        own.optimalIo = target.hints.optimalIo;
      }
      stack(all, own.blockSize, own.minimumIo, own.optimalIo);
      return own.blockSize;
    });
    if (areas === 0 && !this.#slots.some(({ target }) => target.hints)) return previous;
    this.#checkBoundaries(all.blockSize, blockSizes);
    return all;
  }

  /**
   * Where a target ends within a logical block of the device, the next ones must fill that block with smaller blocks of
   * their own, or a request of one block could not be cut (Linux `validate_hardware_logical_block_alignment`).
   */
  #checkBoundaries(blockSize: number, blockSizes: readonly number[]): void {
    const block = blockSize / SECTOR;
    let missing = 0;
    for (const [index, { start, length }] of this.#slots.entries()) {
      const crossing = missing < length && missing % (blockSizes[index] / SECTOR) !== 0;
      if (crossing) throw misaligned(start, length, blockSize);
      const filled = (start + length) % block;
      missing = filled === 0 ? 0 : block - filled;
    }
    if (missing > 0) {
      const { start, length } = this.#slots.at(-1)!;
      throw misaligned(start, length, blockSize);
    }
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    if (this.#single !== undefined) return this.#single.read(at, into, start, length);
    const index = this.find(at);
    if (at + length > this.#ends[index]) return this.#split('read', index, at, into, start, length);
    return this.#slots[index].target.read(this.#within(index, at), into, start, length);
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    if (this.#single !== undefined) return this.#single.write(at, from, start, length);
    const index = this.find(at);
    if (at + length > this.#ends[index]) return this.#split('write', index, at, from, start, length);
    return this.#slots[index].target.write(this.#within(index, at), from, start, length);
  }

  flush(): Maybe {
    if (this.#single !== undefined) return this.#single.flush();
    const parts = new Parts();
    for (const { target } of this.#slots) parts.try(() => target.flush());
    return parts.done();
  }

  /** Cut at the targets' ends only. The caller has asked `canDiscard`. */
  discard(at: Bytes, length: number): Maybe {
    if (this.#single !== undefined) return this.#single.discard(at, length);
    return this.#eachPart(at, length, (target, from, count) => target.discard(from, count));
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    if (this.#single !== undefined) return this.#single.writeZeroes(at, length, mayUnmap);
    return this.#eachPart(at, length, (target, from, count) => target.writeZeroes(from, count, mayUnmap));
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    if (this.#single !== undefined) return this.#single.extents(at, length);
    return this.#collect(
      at,
      length,
      (target, from, count) => target.extents(from, count),
      (a, b) => a.hole === b.hole && a.zero === b.zero,
    );
  }

  /** A target without an origin has nothing that could differ from one. */
  changed(at: Bytes, length: number): Maybe<ChangedExtent[]> {
    return this.#collect(
      at,
      length,
      (target, from, count) => target.changed?.(from, count) ?? [{ length: bytes(count), changed: false }],
      (a, b) => a.changed === b.changed,
    );
  }

  get hasOrigin(): boolean {
    return this.#slots.some(({ target }) => target.changed !== undefined);
  }

  /** The index of the target that holds the byte `at`, which lies inside the table. */
  find(at: number): number {
    const ends = this.#ends;
    let low = 0;
    let high = ends.length - 1;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (at < ends[middle]) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  async prestatus(): Promise<void> {
    if (!this.#slots.some(({ target }) => target.prestatus)) return;
    let cancel = () => {};
    const late = new Promise<void>((resolve) => (cancel = systemClock.after(STATUS_PATIENCE_MS, resolve)));
    await Promise.race([late, this.#prestatus()]);
    cancel();
  }

  async #prestatus(): Promise<void> {
    for (const { target } of this.#slots) await target.prestatus?.();
  }

  text(kind: StatusKind): TargetText[] {
    return this.#slots.map(({ start, length, type, target }) => ({
      start,
      length,
      type: type.name,
      text: target.status(kind),
    }));
  }

  presuspend(): void {
    for (const { target } of this.#slots) target.presuspend?.();
  }

  presuspendUndo(): void {
    for (const { target } of this.#slots) target.presuspendUndo?.();
  }

  async drained(): Promise<void> {
    for (const { target } of this.#slots) await target.drained?.();
  }

  abandon(): void {
    for (const { target } of this.#slots) target.abandon?.();
  }

  /** Every target gets its call, whatever becomes of the others; then the first failure is thrown. */
  async postsuspend(): Promise<void> {
    const failures: unknown[] = [];
    for (const { target } of this.#slots) await target.postsuspend?.().catch((error) => failures.push(error));
    if (failures.length > 0) throw failures[0];
  }

  async preresume(): Promise<void> {
    for (const { target } of this.#slots) await target.preresume?.();
  }

  resume(): void {
    for (const { target } of this.#slots) target.resume?.();
  }

  /** Keeps the table from being closed while `work` runs outside the device's lock (a message). */
  async using<T>(work: () => Promise<T>): Promise<T> {
    this.#users++;
    try {
      return await work();
    } finally {
      if (--this.#users === 0) this.#unused?.();
    }
  }

  /** Closes the targets in order, then gives the devices back. */
  async close(): Promise<void> {
    if (this.#users > 0) await new Promise<void>((resolve) => (this.#unused = resolve));
    const failures: unknown[] = [];
    for (const { target } of this.#slots) await target.close().catch((error) => failures.push(error));
    const opened = this.#opened;
    this.#opened = [];
    for (const device of opened) await device.release().catch((error) => failures.push(error));
    if (failures.length > 0) throw failures[0];
  }

  #within(index: number, at: number): Bytes {
    return bytes(index === 0 ? at : at - this.#ends[index - 1]);
  }

  #split(
    operation: 'read' | 'write',
    index: number,
    at: number,
    buffer: Uint8Array,
    start: number,
    length: number,
  ): Maybe {
    const parts = new Parts();
    for (let done = 0; done < length; index++) {
      const count = Math.min(length - done, this.#ends[index] - at - done);
      const target = this.#slots[index].target;
      try {
        parts.add(target[operation](this.#within(index, at + done), buffer, start + done, count));
      } catch (error) {
        parts.fail(error);
      }
      done += count;
    }
    return parts.done();
  }

  #eachPart(at: number, length: number, operation: (target: Target, at: Bytes, length: number) => Maybe): Maybe {
    const parts = new Parts();
    let index = this.find(at);
    for (let done = 0; done < length; index++) {
      const count = Math.min(length - done, this.#ends[index] - at - done);
      const { target } = this.#slots[index];
      const from = this.#within(index, at + done);
      parts.try(() => operation(target, from, count));
      done += count;
    }
    return parts.done();
  }

  async #collect<T extends { length: Bytes }>(
    at: number,
    length: number,
    ask: (target: Target, at: Bytes, length: number) => Maybe<T[]>,
    alike: (a: T, b: T) => boolean,
  ): Promise<T[]> {
    const found: T[] = [];
    const end = at + length;
    while (at < end && found.length < EXTENTS_MAX) {
      const index = this.find(at);
      const count = Math.min(end, this.#ends[index]) - at;
      for (const extent of await ask(this.#slots[index].target, this.#within(index, at), count)) {
        at += extent.length;
        const last = found.at(-1);
        if (last && alike(last, extent)) last.length = bytes(last.length + extent.length);
        else found.push({ ...extent });
      }
    }
    return found;
  }
}

const invalid = (text: string) => new TableError('TABLE_INVALID', 'EINVAL', text);

const misaligned = (start: number, length: number, blockSize: number) =>
  invalid(`target at start=${start}, len=${length} not aligned to the logical block size of ${blockSize} bytes`);

function checkAmount(specs: readonly TargetSpec[]): void {
  if (specs.length === 0) throw invalid('populate_table: no targets specified');
  const text = specs.reduce((sum, { args }) => sum + Buffer.byteLength(args), 0);
  if (specs.length > TARGETS_MAX || text > TEXT_BYTES_MAX)
    throw new TableError(
      'TABLE_TOO_LARGE',
      'EOVERFLOW',
      `table of ${specs.length} targets and ${text} bytes of arguments, at most ${TARGETS_MAX} and ${TEXT_BYTES_MAX}`,
    );
}

/** The checks of one line before its constructor, in the kernel's order. `end`: sector where the line before ended. */
function checkSpec(
  { start, length, type: name }: TargetSpec,
  end: number,
  { types, readOnly }: TableSource,
  before: readonly Slot[],
): TargetType {
  const alone = before.find(({ type }) => type.singleton)?.type;
  if (alone) throw invalid(`target type ${alone.name} must appear alone in table`);
  if (Buffer.byteLength(name) > TYPE_BYTES_MAX) throw invalid(`Target type name ${name} is too long.`);
  if (length === 0) throw invalid(`${name}: zero-length target`);
  const sane = start >= 0 && length > 0 && Number.isInteger(start) && Number.isInteger(length);
  if (!sane || start + length > SECTORS_MAX) throw invalid(`${name}: too large device`);
  const type = types.get(name);
  if (!type) {
    const known = [...types.keys()].join(' ');
    throw new TableError('TABLE_INVALID', 'EINVAL', `${name}: unknown target type`, { hint: `known are: ${known}` });
  }
  if (type.singleton && before.length > 0) throw invalid('singleton target type must appear alone in table');
  if (type.writes && readOnly) throw invalid('target type may not be included in a read-only table');
  if (before.some(({ type: other }) => other !== type && (other.immutable || type.immutable)))
    throw invalid('immutable target type cannot be mixed with other target types');
  if (start !== end) throw invalid(`${name}: Gap in table`);
  return type;
}

/** Linux `device_area_is_invalid`. A device of size 0 has none yet, and passes. */
function checkArea(device: BlockDevice, start: number, length: number): void {
  const size = device.size / SECTOR;
  if (size > 0 && (start >= size || start + length > size))
    throw new TableError(
      'TABLE_AREA',
      'EINVAL',
      `${device.name} too small for target: start=${start}, len=${length}, dev_size=${Math.floor(size)}`,
    );
  const block = device.blockSize / SECTOR;
  for (const [what, value] of [
    ['start', start],
    ['len', length],
  ] as const)
    if (value % block !== 0)
      throw new TableError(
        'TABLE_AREA',
        'EINVAL',
        `${what}=${value} not aligned to h/w logical block size ${device.blockSize} of ${device.name}`,
      );
}

function stack(limits: Limits, blockSize: number, minimumIo: number, optimalIo: number): void {
  limits.blockSize = Math.max(limits.blockSize, blockSize);
  limits.minimumIo = Math.max(limits.minimumIo, minimumIo);
  limits.optimalIo = leastCommonMultiple(limits.optimalIo, optimalIo);
}

function leastCommonMultiple(a: number, b: number): number {
  if (a === 0 || b === 0) return a || b;
  let [x, y] = [a, b];
  while (y > 0) [x, y] = [y, x % y];
  return (a / x) * b;
}

export const outOfRange = (name: string, at: number, length: number, size: number) =>
  new DmError('OUT_OF_RANGE', 'EIO', `${length} bytes at ${at} lie beyond the ${size} of ${name}`);
