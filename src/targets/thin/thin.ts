/**
 * `thin <pool dev> <dev id> [<external origin dev>]` (Linux `dm-thin.c`): a device whose blocks come from a pool when they are first
 * written. What was never written reads as the external origin, or as zeroes.
 */
import type { BlockDevice, Extent, Maybe } from '../../device/block-device.ts';
import { DmError, ioError } from '../../errors.ts';
import { every } from '../../lib/parts.ts';
import type { Mapping, Run } from '../../stores/thin/pool-metadata.ts';
import { type Bytes, bytes, SECTOR } from '../../units.ts';
import { deviceWord, openArgument, refuse, tableMode } from '../arguments.ts';
import type { StatusKind, Target, TargetType } from '../target.ts';
import { parseDevice, thinRefused } from './arguments.ts';
import { changedBetween } from './changed.ts';
import { unmap } from './discards.ts';
import type { Pool } from './pool.ts';
import { poolOf } from './pools.ts';
import { provision, type Volume } from './provisioning.ts';
import type { Traffic } from './traffic.ts';

const TYPE = 'thin';
/** One answer of `extents`. */
const EXTENTS_MAX = 1024;

export const thin: TargetType = {
  name: TYPE,
  version: [1, 22, 0],
  async create(line) {
    const { args } = line;
    if (args.length !== 2 && args.length !== 3) throw refuse(TYPE, 'Invalid argument count');
    if (args[2] === args[0]) throw refuse(TYPE, 'Error setting origin device');
    const origin =
      args[2] === undefined ? undefined : await openArgument(line, TYPE, args[2], 'r', 'Error opening origin device');
    const owner = await openArgument(line, TYPE, args[0], tableMode(line), 'Error opening pool device');
    const id = parseDevice(args[1]);
    if (id === undefined) throw refuse(TYPE, 'Invalid device id');
    const pool = poolOf(owner);
    if (!pool)
      throw refuse(TYPE, owner.path === undefined ? "Couldn't find pool object" : "Couldn't get pool mapped device");
    if (pool.mode === 'fail') throw thinRefused('EINVAL', "Couldn't open thin device, Pool is in fail mode");
    if (pool.suspended) throw thinRefused('EINVAL', 'Unable to activate thin device while pool is suspended');
    try {
      await pool.metadata.openThin(id);
    } catch (error) {
      if (error instanceof DmError && error.errno === 'ENODATA')
        throw thinRefused('ENODATA', "Couldn't open thin internal device");
      throw error;
    }
    return new Thin(pool, owner, id, origin, await pool.metadata.highest(id));
  },
};

class Thin implements Target, Volume {
  /** Its blocks lie anywhere. */
  readonly ranges = [];
  readonly pool: Pool;
  readonly #owner: BlockDevice;
  readonly id: number;
  readonly origin: BlockDevice | undefined;
  /** Of the origin, in bytes, since the last resume. */
  originSize = 0;
  readonly #size: number;
  /** Requests wait for this: the pool is suspended. */
  held: Promise<void> | undefined;
  #open: (() => void) | undefined;
  readonly traffic: Traffic;
  /** Absent without an external origin. */
  readonly changed: Target['changed'];
  abandoned = false;
  /** Something that was acknowledged went with a failure of the pool: no flush may succeed. */
  #lost = false;
  /** Largest virtual block that is mapped, or -1. */
  #highest: number;

  constructor(pool: Pool, owner: BlockDevice, id: number, origin: BlockDevice | undefined, highest: number) {
    this.pool = pool;
    this.#owner = owner;
    this.id = id;
    this.origin = origin;
    this.#size = pool.blockBytes;
    this.originSize = origin?.size ?? 0;
    this.#highest = highest;
    this.traffic = pool.trafficOf(id);
    if (origin) this.changed = (at, length) => changedBetween(pool, id, undefined, at, length);
    pool.members.add(this);
  }

  get hints() {
    return { minimumIo: this.#size as Bytes, optimalIo: this.#size as Bytes };
  }

  get canDiscard(): boolean {
    return this.pool.discards;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    if (this.held) return this.held.then(() => this.read(at, into, start, length));
    const virtual = Math.floor(at / this.#size);
    if (at + length <= (virtual + 1) * this.#size) return this.#readBlock(virtual, at, into, start, length);
    return this.#readRuns(at, at + length, into, start);
  }

  /** Of one block. */
  #readBlock(virtual: number, at: number, into: Uint8Array, start: number, count: number): Maybe {
    const before = this.traffic.reading(virtual, virtual + 1);
    const mapping = before ?? this.#lookup(virtual);
    if (mapping instanceof Promise) return this.#after(mapping, () => this.#readBlock(virtual, at, into, start, count));
    if (!mapping) return this.#readOrigin(at, into, start, count);
    return this.#readData(mapping.block * this.#size + (at % this.#size), mapping.shared, into, start, count);
  }

  /** What lies side by side below is read together. */
  #readRuns(at: number, end: number, into: Uint8Array, start: number): Maybe {
    const size = this.#size;
    const waits: Promise<void>[] = [];
    try {
      for (let from = at, to = start; from < end; ) {
        const first = Math.floor(from / size);
        const last = Math.ceil(end / size);
        const run = this.traffic.reading(first, last) ?? this.#nextRun(first, last);
        if (run instanceof Promise) {
          const [place, left] = [to, from];
          waits.push(this.#after(run, () => this.#readRuns(left, end, into, place)));
          break;
        }
        const mapped = run ? Math.max(from, run.begin * size) : end;
        const stop = mapped > from ? mapped : Math.min((run!.begin + run!.count) * size, end);
        const wait =
          mapped > from
            ? this.#readOrigin(from, into, to, stop - from)
            : this.#readData(run!.block * size + from - run!.begin * size, run!.shared, into, to, stop - from);
        if (wait) waits.push(wait);
        to += stop - from;
        from = stop;
      }
    } catch (error) {
      if (waits.length === 0) throw error;
      waits.push(Promise.reject(error));
    }
    return all(waits);
  }

  /** Not before the pool is resumed, either: what waits here is not under way. */
  async #after(before: Promise<unknown>, again: () => Maybe): Promise<void> {
    await before;
    while (this.held) await this.held;
    await again();
  }

  #lookup(virtual: number): Maybe<Mapping | undefined> {
    if (this.pool.mode === 'fail') throw failed();
    return this.pool.metadata.lookup(this.id, virtual);
  }

  #nextRun(first: number, last: number): Maybe<Run | undefined> {
    if (this.pool.mode === 'fail') throw failed();
    return this.pool.metadata.nextRun(this.id, first, last);
  }

  #readData(at: number, shared: boolean, into: Uint8Array, start: number, count: number): Maybe {
    const wait = this.pool.data.read(bytes(at), into, start, count);
    if (!wait) return;
    if (shared) this.pool.sharedReads.add(wait);
    return this.#track(wait);
  }

  /** As far as there is one; zeroes behind it. */
  #readOrigin(at: number, into: Uint8Array, start: number, count: number): Maybe {
    const inside = Math.max(0, Math.min(count, this.originSize - at));
    into.fill(0, start + inside, start + count);
    if (inside > 0) return this.#track(this.origin!.read(bytes(at), into, start, inside));
  }

  #track(wait: Maybe): Maybe {
    if (!wait) return;
    const { io } = this.traffic;
    io.add(wait);
    const ended = () => void io.delete(wait);
    wait.then(ended, ended);
    return wait;
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    return this.#put(at, length, from, start);
  }

  /** The kernel's target has no such request: zeroes are written. */
  writeZeroes(at: Bytes, length: number): Maybe {
    return this.#put(at, length, undefined, 0);
  }

  /** Zeroes if `from` is absent. */
  #put(at: number, length: number, from: Uint8Array | undefined, start: number): Maybe {
    if (this.held) return this.held.then(() => this.#put(at, length, from, start));
    const virtual = Math.floor(at / this.#size);
    const offset = at - virtual * this.#size;
    if (offset + length <= this.#size) return this.#putBlock(virtual, offset, from, start, length);
    return this.#putRuns(at, at + length, from, start);
  }

  /** In one block. */
  #putBlock(virtual: number, offset: number, from: Uint8Array | undefined, start: number, count: number): Maybe {
    const mapping = this.traffic.writing(virtual, virtual + 1) ?? this.#lookup(virtual);
    if (mapping instanceof Promise)
      return this.#after(mapping, () => this.#putBlock(virtual, offset, from, start, count));
    if (mapping && !mapping.shared)
      return this.#track(this.#writeData(mapping.block * this.#size + offset, from, start, count));
    return provision(this, { virtual, blocks: 1, old: mapping, offset, from, start, count });
  }

  /** What lies side by side below is written together, new blocks too. */
  #putRuns(at: number, end: number, from: Uint8Array | undefined, start: number): Maybe {
    const size = this.#size;
    const waits: Promise<void>[] = [];
    try {
      for (let to = at, place = start; to < end; ) {
        const first = Math.floor(to / size);
        const last = Math.ceil(end / size);
        const run = this.traffic.writing(first, last) ?? this.#nextRun(first, last);
        if (run instanceof Promise) {
          const [left, behind] = [place, to];
          waits.push(this.#after(run, () => this.#putRuns(behind, end, from, left)));
          break;
        }
        const offset = to - first * size;
        const mapped = run?.begin === first ? run : undefined;
        let wait: Maybe;
        let count: number;
        if (mapped && !mapped.shared) {
          count = Math.min((first + mapped.count) * size, end) - to;
          wait = this.#track(this.#writeData(mapped.block * size + offset, from, place, count));
        } else {
          // As many as are written whole, or a part of one.
          const alike = (mapped ? first + mapped.count : (run?.begin ?? last)) - first;
          const whole = offset === 0 ? Math.min(alike, Math.floor((end - to) / size)) : 0;
          count = whole > 0 ? whole * size : Math.min(size - offset, end - to);
          const blocks = Math.max(whole, 1);
          wait = provision(this, { virtual: first, blocks, old: mapped, offset, from, start: place, count });
        }
        if (wait) waits.push(wait);
        to += count;
        place += count;
      }
    } catch (error) {
      if (waits.length === 0) throw error;
      waits.push(Promise.reject(error));
    }
    return all(waits);
  }

  #writeData(at: number, from: Uint8Array | undefined, start: number, count: number): Maybe {
    const to = bytes(at);
    return from ? this.pool.data.write(to, from, start, count) : this.pool.data.writeZeroes(to, count, false);
  }

  provisioned(end: number): void {
    this.#highest = Math.max(this.#highest, end - 1);
  }

  /** Everything that was acknowledged is durable. */
  flush(): Maybe {
    this.#checkLost();
    // It may come behind one that fails, and then finds nothing to do.
    if (this.pool.isUncommitted(this.id)) return this.pool.commit().then(() => this.#checkLost());
    return this.pool.data.flush();
  }

  #checkLost(): void {
    if (this.#lost)
      throw ioError('Cannot flush: what was written since the last commit went with a failure of the pool');
  }

  discard(at: Bytes, length: number): Maybe {
    if (this.held) return this.held.then(() => this.discard(at, length));
    if (this.pool.mode === 'fail') throw failed();
    // A discard is a hint: where nothing may be changed it has no effect.
    if (this.pool.isAtLeast('outOfMetadataSpace')) return;
    const begin = Math.ceil(at / this.#size);
    const end = Math.floor((at + length) / this.#size);
    if (begin < end) return this.traffic.discard(begin, end, () => this.#discard(begin, end));
  }

  async #discard(begin: number, end: number): Promise<void> {
    await unmap(this.pool, this.id, begin, end);
    await this.#findHighest();
  }

  async extents(at: Bytes, length: number): Promise<Extent[]> {
    const found: Extent[] = [];
    const add = (to: number, from: number, hole: boolean, zero: boolean) => {
      const last = found.at(-1);
      if (last && last.hole === hole && last.zero === zero) last.length = bytes(last.length + to - from);
      else if (to > from) found.push({ length: bytes(to - from), hole, zero });
    };
    const size = this.#size;
    const end = at + length;
    for (let from: number = at; from < end && found.length < EXTENTS_MAX; ) {
      const run = await this.pool.metadata.nextRun(this.id, Math.floor(from / size), Math.ceil(end / size));
      const mapped = run ? Math.max(from, run.begin * size) : end;
      const origin = Math.min(Math.max(from, this.originSize), mapped);
      const stop = run ? Math.min((run.begin + run.count) * size, end) : end;
      add(origin, from, true, false);
      add(mapped, origin, true, true);
      add(stop, mapped, false, false);
      from = stop;
    }
    return found;
  }

  status(kind: StatusKind): string {
    if (this.pool.mode === 'fail') return 'Fail';
    if (kind === 'table')
      return [deviceWord(this.#owner), this.id, ...(this.origin ? [deviceWord(this.origin)] : [])].join(' ');
    if (kind !== 'info') return '';
    const sectors = this.#size / SECTOR;
    const mapped = this.pool.metadata.mappedBlocks(this.id) * sectors;
    return `${mapped} ${mapped === 0 ? '-' : (this.#highest + 1) * sectors - 1}`;
  }

  async prestatus(): Promise<void> {
    // Where metadata cannot be read the status says so.
    if (this.pool.mode !== 'fail') await this.#findHighest().catch(() => {});
  }

  async #findHighest(): Promise<void> {
    this.#highest = await this.pool.metadata.highest(this.id);
  }

  resume(): void {
    this.originSize = this.origin?.size ?? 0;
  }

  hold(): Promise<void> {
    this.held ??= new Promise((open) => (this.#open = open));
    return Promise.allSettled([...this.traffic.io]).then(() => {});
  }

  lose(): void {
    this.#lost = true;
  }

  release(): void {
    this.#open?.();
    this.held = undefined;
    this.#open = undefined;
  }

  abandon(): void {
    this.abandoned = true;
    this.pool.abandon(this);
  }

  async close(): Promise<void> {
    this.pool.members.delete(this);
    this.pool.metadata.closeThin(this.id);
  }
}

const failed = () => ioError('The thin pool has failed');

/** Settles as the parts of one request do. */
function all(waits: readonly Promise<void>[]): Maybe {
  return waits.length > 1 ? every(waits) : waits[0];
}
