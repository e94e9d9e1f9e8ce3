/**
 * A persistent exception store, live (`P` and `PO`, Linux `dm-snap-persistent.c`). What is on the COW device after each
 * step of a commit, and why no power cut between them harms:
 *
 *     1  data chunks written                     no exception names them yet: the next allocation uses them again
 *     2  later areas written: whole, ended       the current area still ends before its last entry: nobody reads them
 *     3  flush                                   data and later areas are durable
 *     4  current area written, where it changed  each 512-byte sector arrives or not; a list cut short at any sector
 *                                                names only data that step 3 made durable
 *     5  flush                                   acknowledged
 *
 * A batch takes every exception that is settled when it starts, over as many areas as they need, for two flushes in
 * all. Allocation order is commit order, so the chunks below `nextFree` are all in use and a loader finds it again.
 *
 * A merge takes exceptions off the end of the list, in `removeLast`: their data is on the origin by then, durably, and
 * nobody has written to those chunks since. So whichever of them a power cut leaves in the list, in whichever areas, each
 * leads to what the origin holds as well.
 *
 * Step 4 cut off may leave entries behind the end of the list (a later sector arrived, an earlier one did not). They
 * name chunks that are allocated anew after a reload, so before the first commit after a load the area is written
 * once without them; else a second power cut could bring them back to life over other data.
 */
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { DmError, FormatError } from '../../errors.ts';
import {
  areaChunk,
  chunksFor,
  diskException,
  headerOf,
  isMetadata,
  type Layout,
  layoutOf,
  nextData,
  setException,
} from '../../formats/exception-store.ts';
import { ChunkMap } from '../../lib/chunk-map.ts';
import { type Bytes, bytes, SECTOR, type Sector, sector, toSectors } from '../../units.ts';
import { readHeader } from './header.ts';
import { readList } from './list.ts';
import type { Commit, ExceptionStore, Run, Usage } from './store.ts';

/** Committed entries at the front of the queue that are not worth moving the rest for. */
const QUEUE_SPENT_MAX = 4096;

/** Bytes of an area that are written at least: less would have to be read first, from most disks. */
const BLOCK = 4096;

interface Waiter {
  upTo: number;
  done(result: Commit): void;
}

export class PersistentStore implements ExceptionStore {
  readonly persistent = true;
  readonly layout: Layout;
  valid = true;
  lastSettled = -1;

  #cow: BlockDevice;
  #completed = new ChunkMap();
  #nextFree = 2;

  /** The area that receives the next exceptions, as it is on disk but for `#staleTail`. */
  #area: Uint8Array;
  #areaIndex = 0;
  #committed = 0;
  /** Areas before that one, nearest first, as far as a merge has read them. */
  #before: Uint8Array[] = [];
  /** Bytes behind the end of the list on disk; see the head of this file. */
  #staleTail = false;

  /** Allocated and not yet durable, in order of allocation; the first `#head` are gone. */
  #queue: Allocation[] = [];
  #head = 0;
  /** Settled ones among them. */
  #settled = 0;
  #waiters: Waiter[] = [];
  /** The next batch waits for the exceptions up to this new chunk to settle. */
  #gate = 0;
  #running: Promise<void> | undefined;
  /**
   * Length of a batch that found no space. Part of it may be on the disk, even the area that leads to the later ones: it
   * is repeated as it was, so that what a reader may already find does not change under it.
   */
  #unfinished = 0;
  #invalidated: Promise<void> | undefined;

  private constructor(cow: BlockDevice, layout: Layout) {
    this.#cow = cow;
    this.layout = layout;
    this.#area = new Uint8Array(layout.chunkBytes);
  }

  /**
   * Opens the store on `cow`, or makes one where the device's first four bytes are zero. `chunkSize` in sectors is for a
   * new store (0: the default); an existing one keeps its own, which must be a multiple of both block sizes. An
   * invalidated store opens, with `valid` false.
   *
   * Throws FormatError ENXIO (no store, and not blank), EINVAL (version, chunk size, impossible entries), and what reads
   * and writes throw. Nothing is written unless the device is blank.
   */
  static async open(cow: BlockDevice, chunkSize: Sector, originBlockSize = SECTOR): Promise<PersistentStore> {
    const found = await readHeader(cow, chunkSize, originBlockSize);
    const store = new PersistentStore(cow, found.layout);
    if (found.state === 'blank') await store.#create();
    else if (found.state === 'invalid') store.valid = false;
    else await store.#load();
    return store;
  }

  get size(): number {
    return this.#completed.size;
  }

  get durableBelow(): number {
    return this.#head < this.#queue.length ? this.#queue[this.#head].newChunk : this.#nextFree;
  }

  /** Bytes of memory that the table of exceptions takes. */
  get memory(): number {
    return this.#completed.memory;
  }

  lookup(oldChunk: number): number {
    return this.#completed.get(oldChunk);
  }

  allocate(oldChunk: number): number {
    const newChunk = this.#nextFree;
    if (toSectors(this.#cow.size) < (newChunk + 1) * this.layout.chunkSize) return -1;
    this.#nextFree = nextData(this.layout, newChunk);
    this.#queue.push({ oldChunk, newChunk, state: 'open' });
    return newChunk;
  }

  settle(newChunk: number, ok: boolean): void {
    const i = this.#find(newChunk);
    const allocation = this.#queue[i];
    if (allocation?.newChunk !== newChunk) throw new RangeError(`chunk ${newChunk} is not under way`);
    if (ok) {
      allocation.state = 'settled';
      this.#settled++;
      this.#completed.add(allocation.oldChunk, newChunk);
      if (newChunk > this.lastSettled) this.lastSettled = newChunk;
    } else if (i === this.#queue.length - 1 && this.#queue.length > this.#head) {
      this.#queue.pop();
      this.#nextFree = newChunk;
    } else allocation.state = 'dropped';
    if (this.#waiters.length > 0 && !this.#running) this.#start();
  }

  /** Where it is in the queue, which is in ascending order. */
  #find(newChunk: number): number {
    let low = this.#head;
    for (let high = this.#queue.length - 1; low < high; ) {
      const middle = (low + high) >>> 1;
      if (this.#queue[middle].newChunk < newChunk) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  commit(newChunk: number): Maybe<Commit> {
    if (!this.valid) return 'invalid';
    if (newChunk < this.durableBelow) return 'durable';
    if (this.#waiters.length === 0) this.#gate = this.#queue[this.#queue.length - 1].newChunk;
    return new Promise((done) => {
      this.#waiters.push({ upTo: newChunk, done });
      if (!this.#running) this.#start();
    });
  }

  async invalidate(): Promise<void> {
    this.valid = false;
    this.#invalidated ??= this.#writeInvalid();
    if (this.#waiters.length > 0 && !this.#running) this.#start();
    await this.#invalidated;
  }

  async ended(): Promise<void> {
    await this.#running;
    await this.#invalidated;
  }

  usage(): Usage {
    const { chunkSize, entries } = this.layout;
    // As if every settled exception were committed, which the kernel does at once.
    const areas = this.#areaIndex + Math.floor((this.#committed + this.#settled) / entries) + 1;
    return {
      allocated: sector(this.#nextFree * chunkSize),
      total: toSectors(this.#cow.size),
      metadata: sector((1 + areas) * chunkSize),
    };
  }

  each(visit: (oldChunk: number, newChunk: number) => void): void {
    this.#completed.each(visit);
  }

  /**
   * The exceptions at the end of the list, the last one first, neighbours joined: `most` of them, or as many as there are.
   * Every exception is durable when this is called, and none is allocated until `resumeAllocating`.
   *
   * Throws what reading an area throws; COW_CHANGED (EIO): the list on disk is not the one that was loaded; COW_ENTRY
   * (EIO): an exception leads to metadata.
   */
  async lastRuns(most: number): Promise<Run[]> {
    this.#forgetGivenUp();
    // The status of a merge that has nothing to do says so.
    if (this.#length === 0) this.#allocateBehind(1);
    await this.#readBefore(most);
    const runs: Run[] = [];
    for (let n = this.#length - 1; n >= 0 && n >= this.#length - most; n--) {
      const { oldChunk, newChunk } = this.#entry(n);
      if (newChunk === 0 || this.#completed.get(oldChunk) !== newChunk)
        throw new FormatError(
          'COW_CHANGED',
          'EIO',
          `Cannot merge the exception store on ${this.#cow.name}: its exception ${n}, ${oldChunk} -> ${newChunk}, is not the one that was loaded`,
          { hint: 'another program has written to it, or it names a chunk twice: `dmkit inspect` says what is there' },
        );
      if (isMetadata(this.layout, newChunk))
        throw new FormatError(
          'COW_ENTRY',
          'EIO',
          `Cannot merge the exception store on ${this.#cow.name}: its exception ${n}, ${oldChunk} -> ${newChunk}, leads to the header or an area`,
          { hint: 'the store is corrupt; `dmkit inspect` says what can be read of it' },
        );
      const run = runs.at(-1);
      if (run && oldChunk === run.oldChunk - 1 && newChunk === run.newChunk - 1) {
        run.oldChunk = oldChunk;
        run.newChunk = newChunk;
        run.count++;
      } else runs.push({ oldChunk, newChunk, count: 1 });
    }
    return runs;
  }

  /**
   * Takes the last `count` exceptions off the list, at most those that `lastRuns` gave, durably. Their data is durable on
   * the origin. When it rejects, with what the device answered, the list in memory is as it was, but nobody knows which
   * of the exceptions the disk still has: call again, before anything else is written to their chunks.
   */
  async removeLast(count: number): Promise<void> {
    const { entries, chunkBytes } = this.layout;
    const length = this.#length - count;
    const index = Math.floor(length / entries);
    const filled = length % entries;
    const area = this.#areaOf(index).slice();
    area.fill(0, filled * diskException.size);
    const empty = new Uint8Array(index < this.#areaIndex ? chunkBytes : 0);
    for (let i = this.#areaIndex; i > index; i--) await this.#cow.write(this.#areaAt(i), empty, 0, chunkBytes);
    await this.#cow.write(this.#areaAt(index), area, 0, chunkBytes);
    await this.#cow.flush();
    for (let n = this.#length - 1; n >= length; n--) this.#completed.delete(this.#entry(n).oldChunk);
    this.#before.splice(0, this.#areaIndex - index);
    this.#area = area;
    this.#areaIndex = index;
    this.#committed = filled;
    this.#staleTail = false;
    // What the kernel prints while it merges, whatever order the entries are in.
    this.#nextFree = chunksFor(this.layout, length);
    this.lastSettled = this.#nextFree - 1;
  }

  /** After a merge that was not finished: new chunks come behind all that are in use, which may lie in any order. */
  resumeAllocating(): void {
    this.#forgetGivenUp();
    this.#before = [];
    let highest = 1;
    this.#completed.each((_, newChunk) => {
      if (newChunk > highest) highest = newChunk;
    });
    this.#allocateBehind(highest);
  }

  /** Nothing else is in the queue. Their numbers are given out again: they must not pass for what is not durable yet. */
  #forgetGivenUp(): void {
    this.#queue = [];
    this.#head = 0;
  }

  /** Exceptions of the list, durable ones. */
  get #length(): number {
    return this.#areaIndex * this.layout.entries + this.#committed;
  }

  async #readBefore(most: number): Promise<void> {
    const { chunkBytes, entries } = this.layout;
    while (this.#committed + this.#before.length * entries < most && this.#before.length < this.#areaIndex) {
      const area = new Uint8Array(chunkBytes);
      await this.#cow.read(this.#areaAt(this.#areaIndex - this.#before.length - 1), area, 0, chunkBytes);
      this.#before.push(area);
    }
  }

  /** Exception `n` of the list, from 0. */
  #entry(n: number): { oldChunk: number; newChunk: number } {
    const { entries } = this.layout;
    const area = this.#areaOf(Math.floor(n / entries));
    return diskException.get(new DataView(area.buffer), (n % entries) * diskException.size);
  }

  #areaOf(index: number): Uint8Array {
    return index === this.#areaIndex ? this.#area : this.#before[this.#areaIndex - index - 1];
  }

  /**
   * The header goes first: with its first sector wiped, the store is blank to every reader, whatever is behind it, and
   * whoever opens it next makes it anew. Only then is the list emptied, and the header written last.
   */
  async reset(): Promise<void> {
    await this.ended();
    await this.#cow.write(bytes(0), new Uint8Array(SECTOR), 0, SECTOR);
    await this.#cow.flush();
    await this.#create();
    this.valid = true;
    this.#invalidated = undefined;
    this.#completed = new ChunkMap();
    this.#queue = [];
    this.#head = 0;
    this.#settled = 0;
    this.#unfinished = 0;
    this.#nextFree = 2;
    this.lastSettled = -1;
    this.#area = new Uint8Array(this.layout.chunkBytes);
    this.#areaIndex = 0;
    this.#committed = 0;
    this.#before = [];
    this.#staleTail = false;
  }

  /** The list is empty and durable before a header says that there is one. The kernel writes the two in no order. */
  async #create(): Promise<void> {
    const { chunkBytes } = this.layout;
    const size = this.#cow.size;
    if (size < 2 * chunkBytes)
      throw new DmError(
        'COW_TOO_SMALL',
        'EIO',
        `Cannot make an exception store on ${this.#cow.name}: it has ${size} bytes, a header and an area take ${2 * chunkBytes}`,
        {
          hint: 'take a larger COW device or a smaller chunk size',
        },
      );
    await this.#cow.write(chunkBytes, new Uint8Array(chunkBytes), 0, chunkBytes);
    await this.#cow.flush();
    await this.#cow.write(bytes(0), headerOf(this.layout, true), 0, chunkBytes);
    await this.#cow.flush();
  }

  /** Takes over what is on disk; of two entries for one old chunk the first counts, as in the kernel. */
  async #load(): Promise<void> {
    const { index, area, count } = await readList(this.#cow, this.layout, (oldChunk, newChunk) => {
      this.#completed.add(oldChunk, newChunk);
      if (this.#nextFree <= newChunk) this.#nextFree = newChunk + 1;
    });
    const end = count * diskException.size;
    this.#areaIndex = index;
    this.#committed = count;
    this.#staleTail = area.subarray(end).some((byte) => byte !== 0);
    this.#area.set(area.subarray(0, end));
    this.#allocateBehind(this.#nextFree - 1);
  }

  #allocateBehind(highest: number): void {
    this.#nextFree = nextData(this.layout, highest);
    this.lastSettled = this.#nextFree - 1;
  }

  #areaAt(index: number): Bytes {
    return bytes(areaChunk(this.layout, index) * this.layout.chunkBytes);
  }

  /**
   * Runs batches while somebody waits. A batch starts once everything allocated when it was asked for has settled, so
   * that exceptions whose copies run side by side share it; later allocations do not hold it up. Put off by a
   * microtask: all requests of one turn of the event loop share it too.
   */
  #start(): void {
    this.#running = Promise.resolve().then(() => this.#batches());
  }

  async #batches(): Promise<void> {
    while (this.#waiters.length > 0) {
      const ready = this.#settledPrefix();
      // The gate itself may be gone: a chunk whose data could not be written was given up.
      const open = this.#queue.at(this.#head + ready);
      if (this.valid && open && open.newChunk <= this.#gate) break;
      this.#release(this.valid ? await this.#write(this.#unfinished || ready) : 'invalid');
      this.#gate = this.#queue.at(-1)?.newChunk ?? 0;
    }
    this.#running = undefined;
  }

  #settledPrefix(): number {
    let end = this.#head;
    while (end < this.#queue.length && this.#queue[end].state !== 'open') end++;
    return end - this.#head;
  }

  #release(result: Commit): void {
    const waiting = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiting) {
      if (result === 'durable' && waiter.upTo >= this.durableBelow) this.#waiters.push(waiter);
      else waiter.done(result);
    }
  }

  /** Commits the first `count` allocations of the queue; dropped ones take no entry. */
  async #write(count: number): Promise<Commit> {
    try {
      if (this.#staleTail) {
        await this.#cow.write(this.#areaAt(this.#areaIndex), this.#area, 0, this.#area.length);
        await this.#cow.flush();
        this.#staleTail = false;
      }
      this.#unfinished = count;
      await this.#writeAreas(count);
      this.#unfinished = 0;
      return this.valid ? 'durable' : 'invalid';
    } catch (error) {
      if (error instanceof DmError && error.errno === 'ENOSPC') return 'full';
      await this.invalidate();
      return 'invalid';
    }
  }

  async #writeAreas(count: number): Promise<void> {
    const { entries, chunkBytes } = this.layout;
    const first = this.#area.slice();
    let area = first;
    let index = this.#areaIndex;
    let filled = this.#committed;
    let written = 0;
    const end = this.#head + count;
    const writeLater = () => (area === first ? undefined : this.#cow.write(this.#areaAt(index), area, 0, chunkBytes));
    for (let i = this.#head; i < end; i++) {
      const { oldChunk, newChunk, state } = this.#queue[i];
      if (state === 'dropped') continue;
      written++;
      setException(new DataView(area.buffer), filled++, oldChunk, newChunk);
      if (filled < entries) continue;
      await writeLater();
      area = new Uint8Array(chunkBytes);
      index++;
      filled = 0;
    }
    await writeLater();
    await this.#cow.flush();
    // No more than has changed: a flush of few exceptions is to be short.
    const block = Math.min(BLOCK, chunkBytes);
    const from = Math.floor((this.#committed * diskException.size) / block) * block;
    const to = area === first ? Math.ceil((filled * diskException.size) / block) * block : chunkBytes;
    if (to > from) await this.#cow.write(bytes(this.#areaAt(this.#areaIndex) + from), first, from, to - from);
    await this.#cow.flush();
    this.#area = area;
    this.#areaIndex = index;
    this.#committed = filled;
    this.#settled -= written;
    this.#head = end;
    if (this.#head > QUEUE_SPENT_MAX || this.#head === this.#queue.length) {
      this.#queue.splice(0, this.#head);
      this.#head = 0;
    }
  }

  /** Durable when it settles: an origin write that could not be copied out must not reach the disk before. */
  async #writeInvalid(): Promise<void> {
    try {
      await this.#cow.write(bytes(0), headerOf(this.layout, false), 0, this.layout.chunkBytes);
      await this.#cow.flush();
    } catch {
      // The store is invalid in memory all the same; a COW device that fails even this is beyond marking.
    }
  }
}

interface Allocation {
  oldChunk: number;
  newChunk: number;
  state: 'open' | 'settled' | 'dropped';
}

/** Bytes of a COW device that never overflows for an origin of `size` bytes: every chunk has its exception. */
export function fullCowSize(size: Bytes, chunkSize: Sector): Bytes {
  const layout = layoutOf(chunkSize);
  return bytes(chunksFor(layout, Math.ceil(size / layout.chunkBytes)) * layout.chunkBytes);
}
