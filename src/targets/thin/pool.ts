/**
 * A pool at work: its metadata, its data device, and the thin devices over it (Linux `dm-thin.c`).
 *
 * Modes, from best to worst; each real change raises an event:
 *
 *     write ──no free data block──> out of data space ──space──> write
 *           ──metadata used up────> out of metadata space ──larger metadata device, resume──> write
 *           ──metadata failed─────> read only, needs check ──repaired, reloaded──> write
 *                                   └──its metadata cannot be read again──> fail, until it is made anew
 *
 * All changes of metadata are made one at a time; lookups any time, between two of them. What is written to a new block is
 * on its way to the data device before it is mapped, and the data device is flushed before metadata is committed: a mapping that is
 * durable leads to what was written.
 */
import { setImmediate as turn } from 'node:timers/promises';
import type { BlockDevice, Maybe } from '../../device/block-device.ts';
import { DmError, ioError } from '../../errors.ts';
import { BLOCK_BYTES } from '../../formats/pdata/block.ts';
import { type Clock, systemClock } from '../../lib/clock.ts';
import { Turns } from '../../lib/turns.ts';
import { METADATA_BLOCKS_MAX } from '../../stores/pdata/metadata-space-map.ts';
import type { BlockRun, PoolMetadata } from '../../stores/thin/pool-metadata.ts';
import { type Bytes, bytes, SECTOR, type Sector } from '../../units.ts';
import type { Features } from './arguments.ts';
import { Filler } from './fill.ts';
import { Traffic } from './traffic.ts';

export type Mode = 'write' | 'outOfDataSpace' | 'outOfMetadataSpace' | 'readOnly' | 'fail';

const ORDER: readonly Mode[] = ['write', 'outOfDataSpace', 'outOfMetadataSpace', 'readOnly', 'fail'];

/** What nobody has flushed is committed after so long. */
const COMMIT_MS = 1000;

/** The table that rules a pool. */
export interface Control {
  readonly features: Features;
  readonly lowWater: number;
  /** The mode that the next resume asks for. */
  mode: Mode;
  event(): void;
}

/** A request that waits for space. */
interface Waiting {
  readonly member: Member;
  go(): void;
  fail(error: Error): void;
}

/** Reads under way. */
class Reads {
  readonly #waits = new Set<Promise<unknown>>();

  add(wait: Promise<unknown>): void {
    this.#waits.add(wait);
    const ended = () => void this.#waits.delete(wait);
    wait.then(ended, ended);
  }

  /** Waits for those that are under way now. */
  ended(): Maybe {
    if (this.#waits.size > 0) return Promise.allSettled([...this.#waits]).then(() => {});
  }
}

/** A thin device, as its pool sees it. */
export interface Member {
  /** No further request begins until `release`; resolves when none is under way. */
  hold(): Promise<void>;
  release(): void;
  readonly id: number;
  readonly traffic: Traffic;
  /** It is going. */
  readonly abandoned: boolean;
  /** What was acknowledged since the last commit is lost. */
  lose(): void;
}

export class Pool {
  /** Milliseconds that requests wait for space; 0: for ever. */
  static noSpaceTimeout = 60_000;
  static clock: Clock = systemClock;

  readonly owner: BlockDevice;
  readonly metadataDevice: BlockDevice;
  readonly data: BlockDevice;
  readonly blockBytes: number;
  readonly filler: Filler;
  readonly metadata: PoolMetadata;
  readonly members = new Set<Member>();
  mode: Mode = 'write';
  /** As asked for, and as it is since the last resume. */
  #control: Control | undefined;
  #errorIfNoSpace = false;
  /** Tables that refer to it. */
  tables = 0;
  /** Its table is suspended, or has not been resumed yet. */
  #suspended = true;
  #lowWaterTold = false;
  /** The last change found little metadata left. */
  #metadataLow = false;
  readonly #turns = new Turns();
  /** Devices that have changed since the last commit ended. */
  readonly #uncommitted = new Set<number>();
  /** The commit that has not begun yet. */
  #next: Promise<void> | undefined;
  #cancelCommit: (() => void) | undefined;
  #cancelNoSpace: (() => void) | undefined;
  /** Requests that wait for space. */
  #waiting: Waiting[] = [];
  /** Of blocks that are shared: until they have ended, nobody else may get these. */
  readonly sharedReads = new Reads();

  constructor(
    owner: BlockDevice,
    devices: { metadata: BlockDevice; data: BlockDevice },
    metadata: PoolMetadata,
    blockSize: Sector,
  ) {
    this.owner = owner;
    this.metadataDevice = devices.metadata;
    this.data = devices.data;
    this.blockBytes = blockSize * SECTOR;
    this.filler = new Filler(this.data, this.blockBytes);
    this.metadata = metadata;
  }

  /** No table refers to it any more. */
  async close(): Promise<void> {
    this.#cancelCommit?.();
    this.#cancelNoSpace?.();
    if (!this.isAtLeast('outOfMetadataSpace')) await this.locked(() => this.metadata.commit());
  }

  get suspended(): boolean {
    return this.#suspended;
  }

  get errorIfNoSpace(): boolean {
    return this.#errorIfNoSpace;
  }

  isAtLeast(mode: Mode): boolean {
    return ORDER.indexOf(this.mode) >= ORDER.indexOf(mode);
  }

  /** Throws EIO where metadata may not be changed. */
  checkChangeable(): void {
    if (this.isAtLeast('outOfMetadataSpace')) throw readOnly();
  }

  /** What the table asks for; undefined before its first resume. */
  get features(): Features | undefined {
    return this.#control?.features;
  }

  /** Before its table is resumed: the devices may have grown. Throws EINVAL where they have shrunk. */
  async prepare(control: Control, length: Bytes): Promise<void> {
    const mode = control.mode;
    this.#control = control;
    this.#errorIfNoSpace = control.features.errorIfNoSpace;
    this.#setMode(mode);
    if (this.mode === 'fail') return;
    await this.locked(async () => {
      const data = await this.#resizeData(Math.floor(length / this.blockBytes));
      const metadata = await this.#resizeMetadata();
      if (data || metadata) await this.commitLocked();
    });
  }

  async #resizeData(blocks: number): Promise<boolean> {
    const known = this.metadata.dataBlocks;
    if (blocks < known) throw resizeFault(`pool target (${blocks} blocks) too small: expected ${known}`);
    if (blocks === known || this.metadata.needsCheck || this.isAtLeast('outOfMetadataSpace')) return false;
    await this.guarded('dm_pool_resize_data_dev', () => this.metadata.resizeData(blocks));
    return true;
  }

  async #resizeMetadata(): Promise<boolean> {
    const blocks = Math.min(METADATA_BLOCKS_MAX, Math.floor(this.metadataDevice.size / BLOCK_BYTES));
    const known = this.metadata.metadataBlocks;
    if (blocks < known) throw resizeFault(`metadata device (${blocks} blocks) too small: expected ${known}`);
    if (blocks === known || this.metadata.needsCheck) return false;
    if (this.mode === 'outOfMetadataSpace') this.#setMode('write');
    await this.guarded('dm_pool_resize_metadata_dev', () => this.metadata.resizeMetadata(blocks));
    return true;
  }

  /** Its table is live again. */
  resume(): void {
    this.#suspended = false;
    this.#lowWaterTold = false;
    for (const member of this.members) member.release();
    this.#wake();
  }

  /** Its table is about to be suspended: all its thin devices hold their requests. */
  async hold(): Promise<void> {
    this.#suspended = true;
    this.#cancelNoSpace?.();
    this.#cancelNoSpace = undefined;
    await Promise.all([...this.members].map((member) => member.hold()));
  }

  /** No request is under way. */
  async postsuspend(): Promise<void> {
    this.#cancelCommit?.();
    this.#cancelCommit = undefined;
    await this.commit();
  }

  /** Runs `work` when no other change of metadata is under way. */
  locked<T>(work: () => Maybe<T>): Maybe<T> {
    return this.#turns.run(work);
  }

  /** A message: a change that is durable when it resolves. EOPNOTSUPP where metadata may not be changed. */
  async change(work: () => Maybe): Promise<void> {
    await this.locked(async () => {
      try {
        await work();
      } catch (error) {
        // It failed half-way; everything else that fails has left no trace.
        if (error instanceof DmError && error.code === 'THIN_FAILED') await this.#failed();
        throw error;
      }
      await this.commitLocked();
    });
  }

  /** Everything that was acknowledged is durable. Who asks before it begins shares it. */
  commit(): Promise<void> {
    // In a turn of its own, so that all who are about to ask come first.
    this.#next ??= turn().then(() =>
      this.locked(() => {
        this.#next = undefined;
        return this.commitLocked();
      }),
    );
    return this.#next;
  }

  /** As part of what runs under the lock. */
  async commitLocked(): Promise<void> {
    // There is nothing to commit, but a flush may have waited for this.
    if (this.isAtLeast('outOfMetadataSpace')) return void (await this.data.flush());
    this.#cancelCommit?.();
    this.#cancelCommit = undefined;
    await this.guarded('dm_pool_commit_metadata', () => this.metadata.commit());
    // Nothing changes while it runs.
    this.#uncommitted.clear();
    if (this.metadata.freeMetadataBlocks === 0) this.#setMode('outOfMetadataSpace');
    if (this.mode === 'outOfDataSpace' && this.metadata.freeDataBlocks > 0) this.#setMode('write');
  }

  /** Something that was acknowledged to device `id` is not durable. */
  isUncommitted(id: number): boolean {
    return this.#uncommitted.has(id);
  }

  /** Of device `id`. A commit is due in a second, unless somebody flushes before. */
  changed(id: number): void {
    this.#uncommitted.add(id);
    this.#cancelCommit ??= Pool.clock.after(COMMIT_MS, () => {
      this.#cancelCommit = undefined;
      // What goes wrong shows in the mode.
      void this.commit().catch(() => {});
    });
  }

  /** The kernel's threshold: 1024 blocks, or a quarter of all. */
  get metadataLowWater(): number {
    return Math.min(1024, Math.floor(this.metadata.metadataBlocks / 4));
  }

  /** What finds no space has left no trace. What fails otherwise ends all changes, until the metadata is checked. */
  guarded<T>(operation: string, work: () => Maybe<T>): Maybe<T> {
    let result: Maybe<T>;
    try {
      result = work();
    } catch (error) {
      return this.#fault(operation, error);
    }
    if (!(result instanceof Promise)) {
      this.#watchMetadata();
      return result;
    }
    return result.then(
      (value) => {
        this.#watchMetadata();
        return value;
      },
      (error) => this.#fault(operation, error),
    );
  }

  async #fault(operation: string, error: unknown): Promise<never> {
    if (!(error instanceof DmError)) throw error;
    if (error.code === 'DATA_NO_SPACE') throw error;
    if (error.code === 'METADATA_NO_SPACE') {
      this.#setMode('outOfMetadataSpace');
      throw readOnly(error);
    }
    await this.#failed();
    throw ioError(`${operation} failed: ${error.message}`, error);
  }

  /** An event each time that the free blocks of metadata fall to the threshold. */
  #watchMetadata(): void {
    const low = this.metadata.rawFreeMetadata <= this.metadataLowWater;
    if (low && !this.#metadataLow) this.#control?.event();
    this.#metadataLow = low;
  }

  /** Everything since the last commit is given up, and who has lost something hears of it at the next flush. */
  async #failed(): Promise<void> {
    for (const member of this.members) if (this.#uncommitted.has(member.id)) member.lose();
    this.#uncommitted.clear();
    try {
      await this.metadata.abort();
      this.#setMode('readOnly');
    } catch {
      this.#setMode('fail');
    }
  }

  /**
   * Free data blocks side by side, one at least and `most` at most; undefined: there is none. Rejects with EIO where nothing may be
   * changed.
   */
  allocate(most: number): Maybe<BlockRun | undefined> {
    return this.locked(() => this.#allocate(most));
  }

  #allocate(most: number): Maybe<BlockRun | undefined> {
    this.checkChangeable();
    if (this.mode === 'outOfDataSpace') return undefined;
    const { metadata } = this;
    if (metadata.freeDataBlocks === 0) {
      this.#watchLowWater(1);
      return this.#allocateLast(most);
    }
    this.#watchLowWater(Math.min(most, metadata.freeDataBlocks));
    const found = this.guarded('dm_pool_alloc_data_block', () => metadata.allocateRun(most));
    return found instanceof Promise || metadata.freeMetadataBlocks === 0 ? this.#allocated(found) : found;
  }

  /** What was freed since the last commit can be had after another one. */
  async #allocateLast(most: number): Promise<BlockRun | undefined> {
    await this.commitLocked();
    if (this.metadata.freeDataBlocks === 0) {
      this.#setMode('outOfDataSpace');
      return undefined;
    }
    return this.#allocated(this.guarded('dm_pool_alloc_data_block', () => this.metadata.allocateRun(most)));
  }

  async #allocated(run: Maybe<BlockRun>): Promise<BlockRun | undefined> {
    let found: BlockRun;
    try {
      found = await run;
    } catch (error) {
      if (!(error instanceof DmError && error.code === 'DATA_NO_SPACE')) throw error;
      this.#setMode('outOfDataSpace');
      return undefined;
    }
    if (this.metadata.freeMetadataBlocks === 0) await this.commitLocked();
    return found;
  }

  /** An event when the last of `count` blocks is taken out of so few as the table says, once until the next resume. */
  #watchLowWater(count: number): void {
    if (this.#lowWaterTold || this.metadata.freeDataBlocks - (count - 1) > this.#control!.lowWater) return;
    this.#lowWaterTold = true;
    this.#control!.event();
  }

  /** For a request to `member`: resolves when it is worth trying to allocate again. ENOSPC where nothing is to wait. */
  space(member: Member): Promise<void> {
    if (this.#errorIfNoSpace || member.abandoned) throw noSpace();
    return new Promise<void>((go, fail) => this.#waiting.push({ member, go, fail }));
  }

  /** Nothing is to wait for space any longer that was asked of `member`. */
  abandon(member: Member): void {
    for (const waiting of this.#waiting.splice(0))
      if (waiting.member === member) waiting.fail(noSpace());
      else this.#waiting.push(waiting);
  }

  /** Throws ENOSPC where nothing is to wait for space any longer. */
  checkWaits(): void {
    if (this.mode === 'outOfDataSpace' && this.#errorIfNoSpace) throw noSpace();
  }

  /** Gives back blocks that were allocated and not mapped. */
  free({ begin, count }: BlockRun): Maybe {
    return this.locked(() =>
      this.#changing('dm_pool_dec_data_range', () => this.metadata.releaseData(begin, begin + count)),
    );
  }

  /** Maps virtual blocks from `virtual` on to what was allocated. Rejects with EIO where nothing may be changed. */
  map(id: number, virtual: number, { begin, count }: BlockRun): Maybe {
    const wait = this.locked(() =>
      this.#changing('dm_thin_insert_block', () => this.metadata.insert(id, virtual, begin, count)),
    );
    if (wait) return wait.then(() => this.changed(id));
    this.changed(id);
  }

  #changing<T>(operation: string, work: () => Maybe<T>): Maybe<T> {
    this.checkChangeable();
    return this.guarded(operation, work);
  }

  get passesDown(): boolean {
    return (this.#control?.features.passDown ?? false) && this.data.canDiscard;
  }

  /** Thin devices take discards. */
  get discards(): boolean {
    return this.#control?.features.discard ?? false;
  }

  /** New blocks are zeroed. */
  get zeroes(): boolean {
    return this.#control?.features.zero ?? true;
  }

  /** Requests that wait for space try again. */
  #wake(): void {
    for (const { go } of this.#waiting.splice(0)) go();
  }

  #setMode(asked: Mode): void {
    const before = this.mode;
    let mode = asked;
    if (mode === 'write' && this.metadata.needsCheck) mode = before === 'write' ? 'readOnly' : before;
    if (before === 'fail') mode = 'fail';
    this.mode = mode;
    if (this.#control) this.#control.mode = mode;
    if (mode === 'outOfDataSpace') this.#armNoSpace();
    else {
      this.#cancelNoSpace?.();
      this.#cancelNoSpace = undefined;
      if (mode === 'write') this.#errorIfNoSpace = this.#control?.features.errorIfNoSpace ?? false;
    }
    if (mode === before) return;
    this.#control?.event();
    this.#wake();
  }

  #armNoSpace(): void {
    if (this.#errorIfNoSpace || Pool.noSpaceTimeout === 0) return;
    this.#cancelNoSpace ??= Pool.clock.after(Pool.noSpaceTimeout, () => {
      this.#cancelNoSpace = undefined;
      if (this.mode !== 'outOfDataSpace') return;
      this.#errorIfNoSpace = true;
      this.#control?.event();
      this.#wake();
    });
  }

  /** Of a thin device, which several mapped devices may show. */
  trafficOf(id: number): Traffic {
    for (const member of this.members) if (member.id === id) return member.traffic;
    return new Traffic();
  }

  /** Where a data block lies, in bytes. */
  at(block: number): Bytes {
    return bytes(block * this.blockBytes);
  }
}

const readOnly = (cause?: unknown) =>
  ioError('Cannot change anything: the thin pool is read-only, or has no metadata left', cause);

const noSpace = () =>
  new DmError('POOL_NO_SPACE', 'ENOSPC', 'No data block of the thin pool is free', {
    hint: 'enlarge its data device and load its table anew, or discard or delete what is not needed',
  });

const resizeFault = (text: string) => new DmError('POOL_SHRUNK', 'EINVAL', text);
