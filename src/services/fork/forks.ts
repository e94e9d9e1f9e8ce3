import { DmError } from '../../errors.ts';
import { Lock } from '../../lib/lock.ts';
import type { DeviceInfo, DeviceRef } from '../../mapper/control.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { ChangeKind, Mapper } from '../../mapper/mapper.ts';
import type { SavedDevice } from '../../mapper/saved-device.ts';
import type { Bytes } from '../../units.ts';
import type { Emit } from '../events/event.ts';
import { Book } from '../pool/book.ts';
import { PoolGrowth } from '../pool/growth.ts';
import type {
  OpenPoolOptions,
  Pool,
  PoolControl,
  PoolOptions,
  ThinVolume,
  VolumeSource,
} from '../pool/pool-control.ts';
import { Pools } from '../pool/pools.ts';
import { ThinVolumes } from '../pool/thin-volumes.ts';
import { Autoextender } from './autoextend.ts';
import { compare } from './diff.ts';
import type {
  Diff,
  DiffOptions,
  Dropped,
  Fork,
  ForkControl,
  ForkOptions,
  MergeOptions,
  MergeProgress,
  Volume,
} from './fork-control.ts';
import { Images } from './images.ts';
import { Maker } from './make-fork.ts';
import { Merges, type MergesOptions } from './merges.ts';
import { checkName } from './names.ts';
import { type ForksState, isForkRecord, type SavedRecord } from './records.ts';
import { recover } from './recovery.ts';
import { volumeOf } from './volumes.ts';

export interface ForksOptions {
  mapper: Mapper;
  records?: SavedRecord[];
  /** The records have changed; settles when they are durable, rejects when they cannot be. */
  save?(): Promise<void>;
  /** The NBD URI of a device; absent where none is served. */
  uri?(name: string): string | undefined;
  /** Told when a COW file grew, or could not. */
  emit?: Emit;
  /** Who has a device open, and how to end that, in words. */
  users?: MergesOptions['users'];
  log?: MergesOptions['log'];
  pause?: MergesOptions['pause'];
}

export class Forks implements ForkControl, PoolControl {
  readonly autoextender: Autoextender;
  readonly growth: PoolGrowth;
  readonly #mapper: Mapper;
  readonly #images: Images;
  readonly #uri: (name: string) => string | undefined;
  readonly #lock = new Lock();
  readonly #maker: Maker;
  readonly #merges: Merges;
  readonly #book: Book;
  readonly #pools: Pools;
  readonly #volumes: ThinVolumes;
  readonly #emit: Emit;
  readonly #log: (line: string) => void;

  constructor(options: ForksOptions) {
    const { mapper, records = [], save = async () => {}, uri = () => undefined, emit = () => {}, ...merging } = options;
    this.#mapper = mapper;
    this.#images = new Images(mapper, records.filter(isForkRecord), save);
    this.autoextender = new Autoextender(this.#images, emit);
    this.#uri = uri;
    this.#maker = new Maker(this.#images, uri);
    this.#emit = emit;
    this.#log = merging.log ?? (() => {});
    this.#merges = new Merges({ ...merging, emit, images: this.#images, lock: this.#lock });
    this.#book = new Book(
      this.#images,
      records.filter((record) => !isForkRecord(record)),
    );
    this.#pools = new Pools(this.#book);
    this.#volumes = new ThinVolumes(this.#book, this.#maker, uri);
    this.growth = new PoolGrowth({ book: this.#book, emit, log: this.#log });
  }

  /** To be kept over a restart. */
  state(): ForksState {
    const { devices, forks } = this.#images.state();
    return { devices, forks: [...forks, ...this.#book.state(devices)] };
  }

  /**
   * After a restart, with the devices it was given: what a crash cut short and nobody was told of. A fork that was never
   * live is undone, a drop that had removed its device is finished, a merge goes on. Returns what was done, in words. Never
   * throws.
   */
  recover(saved: readonly SavedDevice[]): Promise<string[]> {
    return this.#lock.run(async () => {
      const forks = this.#images.records.filter(({ merging }) => !merging);
      const done = await recover(forks, saved, 'fork', async (record, unfinished) => {
        if (unfinished) await this.#mapper.remove({ name: unfinished.name });
        return (await this.#images.forget(record, record.dropping !== 'keep')).deleted;
      });
      done.push(...(await this.#volumes.recover(saved)), ...(await this.#pools.recover(saved)));
      return [...done, ...(await this.#merges.recover())];
    });
  }

  /** Follows no merge any more: the devices are to be closed. */
  stop(): Promise<void> {
    return this.#merges.stop();
  }

  /** What the mapper calls at every change. */
  changed(kind: ChangeKind, device: MappedDevice): void {
    if (kind !== 'remove') this.named(device.storedName);
  }

  /** A device has this name, perhaps one of another mapper. */
  named(name: string): void {
    this.#merges.named(name);
  }

  /** A fork has one of these, words as tables have them, for its image or its COW file. */
  holds(words: readonly string[]): boolean {
    return this.#images.records.some(
      ({ image, cow }) => words.includes(image) || (cow !== undefined && words.includes(cow)),
    );
  }

  /** Why the forks of these records cannot go on elsewhere, in words; undefined if they can. */
  bound(uuids: readonly string[]): string | undefined {
    for (const { uuid, merging, dropping } of this.#images.records)
      if (uuids.includes(uuid) && (merging || dropping))
        return `${merging?.name ?? 'a fork'} is being ${merging ? 'merged' : 'dropped'}`;
    for (const { uuid, dropping } of this.#book.records)
      if (uuids.includes(uuid) && dropping) return 'a volume is being dropped';
  }

  /** Lets go of devices and records that are to go on elsewhere, and resolves with them. As the mapper's. */
  leave(names: readonly string[], uuids: readonly string[], signal?: AbortSignal): Promise<ForksState> {
    const lock = <T>(work: () => Promise<T>) => this.#lock.run(() => this.#book.steady.run(work, signal), signal);
    return lock(async () => {
      const why = this.bound(uuids);
      if (why !== undefined) throw new DmError('DEVICE_OPEN', 'EBUSY', why);
      const devices = await this.#mapper.leave(names, signal);
      const forks = [...this.#images.records, ...this.#book.records].filter(({ uuid }) => uuids.includes(uuid));
      this.#images.records = this.#images.records.filter((record) => !forks.includes(record));
      this.#book.records = this.#book.records.filter((record) => !forks.includes(record));
      return { devices, forks };
    });
  }

  /** What there was before a restart. */
  restore({ devices, forks }: ForksState, after?: string): Promise<void> {
    this.#images.records.push(...forks.filter(isForkRecord));
    this.#book.records.push(...forks.filter((record) => !isForkRecord(record)));
    // A pool that grows takes no volume.
    return this.#book.steady.run(() => this.#mapper.restore(devices, after));
  }

  /**
   * Takes in what has left elsewhere. Not in turn with forks that come and go, which are of other images. Resolves with what
   * could not be opened again, in words.
   */
  async join(state: ForksState): Promise<string[]> {
    await this.restore(state, 'it moved to another thread');
    const lost: string[] = [];
    for (const saved of state.devices) {
      const device = this.#mapper.device({ name: saved.name });
      if (saved.note !== undefined || device.lostTable === undefined) continue;
      lost.push(`${saved.name}: ${device.note}`);
      this.#log(lost.at(-1)!);
      this.#emit(device, { event: 'change' });
    }
    return lost;
  }

  /** What is known of a merge of a fork of that name. */
  mergeOf(name: string): 'running' | 'finished' | undefined {
    return this.#merges.known(name);
  }

  fork(image: string, name: string, options: ForkOptions = {}): Promise<Fork> {
    return this.#lock.run(async () => {
      checkName(name);
      this.#checkNotMerged(name, 'make');
      const lease = await this.#maker.openImage(image, options);
      try {
        return await this.#maker.make(lease, name, options);
      } finally {
        await lease.release();
      }
    });
  }

  createPool(data: string, options: PoolOptions = {}): Promise<Pool> {
    return this.#lock.run(() => this.#pools.create(data, options));
  }

  openPool(data: string, options: OpenPoolOptions = {}): Promise<Pool> {
    return this.#lock.run(() => this.#pools.open(data, options));
  }

  async extendPool(name: string, size: number): Promise<Pool> {
    await this.growth.extend(name, size);
    return this.#pools.describe(this.#mapper.device({ name }));
  }

  createVolume(pool: string, name: string, source: VolumeSource): Promise<ThinVolume> {
    return this.#lock.run(() => {
      this.#checkNotMerged(name, 'make');
      return this.#volumes.create(pool, name, source);
    });
  }

  async volumes(): Promise<Volume[]> {
    const infos = await this.#mapper.list();
    const volumes = infos.map((info) =>
      volumeOf(this.#images, this.#book, info, { uri: this.#uri(info.name), merge: this.#merges.on(info.name) }).catch(
        (error) => {
          // It went away since it was listed.
          if (error instanceof DmError && error.code === 'NO_DEVICE') return undefined;
          throw error;
        },
      ),
    );
    return (await Promise.all(volumes)).filter((volume) => volume !== undefined);
  }

  merge(name: string, options?: MergeOptions): Promise<MergeProgress> {
    return this.#merges.start(name, options);
  }

  mergeProgress(name: string, options?: { since?: number }, signal?: AbortSignal): Promise<MergeProgress> {
    return this.#merges.progress(name, options, signal);
  }

  async diff(name: string, { start = 0 }: DiffOptions = {}): Promise<Diff> {
    this.#checkNotMerged(name, 'compare');
    const open = this.#mapper.open({ name });
    try {
      if (this.#book.thin(open.device)) return await this.#volumes.diff(open.device, start);
      const snapshot = await this.#images.snapshot(name);
      const origin = open.device.liveTable!.devices[0].device;
      const { device } = open;
      const changed = (at: Bytes, length: number) => device.changed(at, length);
      return await compare({ name, origin, device, changed, chunkSize: snapshot.chunkSize, start });
    } finally {
      await open.close();
    }
  }

  /** As the mapper's, with a word on what is being merged. */
  async revert(ref: DeviceRef): Promise<DeviceInfo> {
    if ('name' in ref) this.#checkNotMerged(ref.name, 'revert');
    return this.#mapper.revert(ref);
  }

  drop(name: string, { keepCow = false }: { keepCow?: boolean } = {}): Promise<Dropped> {
    return this.#lock.run(async () => {
      const abandoned = await this.#merges.abandon(name);
      if (abandoned) return { name, ...abandoned };
      const device = this.#mapper.device({ name });
      if (this.#pools.owns(device)) return this.#book.steady.run(() => this.#pools.drop(name, keepCow));
      if (this.#book.volumeRecord(device) || this.#book.thin(device)) return this.#volumes.drop(device, keepCow);
      const info = await this.#mapper.info({ name });
      const record = this.#images.recordOf(info, 'fork');
      // Without a live table nobody can tell what it was; the record can.
      const image = record?.image ?? (await this.#images.snapshot(name)).origin;
      const origins = await this.#images.originsOf(image);
      // Saved with the removal: a crash from then on is made up for by `recover`.
      if (record) record.dropping = keepCow ? 'keep' : 'delete';
      try {
        await this.#images.whileSuspended(origins, () => this.#mapper.remove({ name }));
      } catch (error) {
        if (record) delete record.dropping;
        throw error;
      }
      try {
        if (record) return { name, ...(await this.#images.forget(record, !keepCow)) };
        return { name, originRemoved: await this.#images.removeOrigin(image) };
      } finally {
        await this.#images.save();
      }
    });
  }

  /** The device of that name is gone, but not for good until the merge has ended. */
  #checkNotMerged(name: string, attempted: string): void {
    if (this.#images.mergingOf(name)) throw merging(name, attempted);
  }
}

/** The fork `name` is being merged. */
export const merging = (name: string, attempted: string) =>
  new DmError('MERGING', 'EBUSY', `Cannot ${attempted} ${name}: it is being merged`, {
    hint: `wait for it: dmkit merge ${name}`,
  });
