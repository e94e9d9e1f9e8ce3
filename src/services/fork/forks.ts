/**
 * Forks: a snapshot of an image over a COW file, and beside it one `snapshot-origin` device for each image, so that
 * writes to the image through dmkit leave its forks as they are, as LVM2 does it:
 *
 *     suspend the origin's devices   create, load and resume the snapshot   resume them      the moment of the fork
 *     suspend them                   remove the snapshot                    resume them      drop
 *
 * Merges are in merges.ts.
 */
import { randomUUID } from 'node:crypto';
import { access } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { DmError } from '../../errors.ts';
import { isNbdUri } from '../../formats/nbd/uri.ts';
import { Lock } from '../../lib/lock.ts';
import type { DeviceInfo, DeviceRef } from '../../mapper/control.ts';
import type { Lease } from '../../mapper/devices.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { ChangeKind, Mapper } from '../../mapper/mapper.ts';
import type { SavedDevice } from '../../mapper/saved-device.ts';
import { deviceWord } from '../../targets/arguments.ts';
import { type Bytes, SECTOR } from '../../units.ts';
import type { Emit } from '../events/event.ts';
import { Autoextender, policyOf } from './autoextend.ts';
import { cowSizeFor, createCowFile, deleteCowFile, existingCow, growCowFile } from './cow-file.ts';
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
import { imageFormat, notRaw } from './image.ts';
import { Images } from './images.ts';
import { Merges, type MergesOptions } from './merges.ts';
import { checkName } from './names.ts';
import type { ForkRecord, ForksState } from './records.ts';
import { originTable } from './tables.ts';
import { volumeOf } from './volumes.ts';

/** Bytes; the kernel's default. */
const CHUNK_SIZE = 16384;
const CHUNK_SIZE_MIN = 4096;
/** What the snapshot target takes. */
const CHUNK_SIZE_MAX = 2 ** 30;

interface CowFile {
  path: string;
  chunkSize: number;
  /** False: it was there and was opened again. */
  made: boolean;
}

export interface ForksOptions {
  mapper: Mapper;
  records?: ForkRecord[];
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

export class Forks implements ForkControl {
  readonly autoextender: Autoextender;
  readonly #mapper: Mapper;
  readonly #images: Images;
  readonly #uri: (name: string) => string | undefined;
  readonly #lock = new Lock();
  readonly #merges: Merges;
  readonly #emit: Emit;
  readonly #log: (line: string) => void;

  constructor(options: ForksOptions) {
    const { mapper, records = [], save = async () => {}, uri = () => undefined, emit = () => {}, ...merging } = options;
    this.#mapper = mapper;
    this.#images = new Images(mapper, records, save);
    this.autoextender = new Autoextender(this.#images, emit);
    this.#uri = uri;
    this.#emit = emit;
    this.#log = merging.log ?? (() => {});
    this.#merges = new Merges({ ...merging, emit, images: this.#images, lock: this.#lock });
  }

  /** To be kept over a restart. */
  state(): ForksState {
    return this.#images.state();
  }

  /**
   * After a restart, with the devices it was given: what a crash cut short and nobody was told of. A fork that was never
   * live is undone, a drop that had removed its device is finished, a merge goes on. Returns what was done, in words. Never
   * throws.
   */
  recover(saved: readonly SavedDevice[]): Promise<string[]> {
    return this.#lock.run(async () => {
      const done: string[] = [];
      for (const record of [...this.#images.records]) {
        if (record.merging) continue;
        const device = saved.find(({ uuid }) => uuid === record.uuid);
        // Only a device that was never resumed has no table and no note of why.
        const unfinished = device !== undefined && device.table === undefined && device.note === undefined;
        const gone = device === undefined && record.dropping !== undefined;
        if (!unfinished && !gone) {
          delete record.dropping;
          continue;
        }
        try {
          if (unfinished) await this.#mapper.remove({ name: device.name });
          const { deleted } = await this.#images.forget(record, record.dropping !== 'keep');
          const what = unfinished ? `${device.name} was never ready: removed` : `finished the drop of a fork`;
          done.push(deleted === undefined ? what : `${what}, and deleted ${deleted}`);
        } catch (error) {
          done.push(`cannot tidy up after ${device?.name ?? record.uuid}: ${(error as Error).message}`);
        }
      }
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
  }

  /** Lets go of devices and records that are to go on elsewhere, and resolves with them. As the mapper's. */
  leave(names: readonly string[], uuids: readonly string[], signal?: AbortSignal): Promise<ForksState> {
    return this.#lock.run(async () => {
      const why = this.bound(uuids);
      if (why !== undefined) throw new DmError('DEVICE_OPEN', 'EBUSY', why);
      const devices = await this.#mapper.leave(names, signal);
      const forks = this.#images.records.filter(({ uuid }) => uuids.includes(uuid));
      this.#images.records = this.#images.records.filter((record) => !forks.includes(record));
      return { devices, forks };
    }, signal);
  }

  /** What there was before a restart. */
  restore({ devices, forks }: ForksState, after?: string): Promise<void> {
    this.#images.records.push(...forks);
    return this.#mapper.restore(devices, after);
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
      const lease = await this.#openImage(image, options);
      try {
        return await this.#fork(lease, name, options);
      } finally {
        await lease.release();
      }
    });
  }

  async volumes(): Promise<Volume[]> {
    const infos = await this.#mapper.list();
    const volumes = infos.map((info) =>
      volumeOf(this.#images, info, { uri: this.#uri(info.name), merge: this.#merges.on(info.name) }).catch((error) => {
        // It went away since it was listed.
        if (error instanceof DmError && error.code === 'NO_DEVICE') return undefined;
        throw error;
      }),
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
      const snapshot = await this.#images.snapshot(name);
      const origin = open.device.liveTable!.devices[0].device;
      return await compare({ name, origin, snapshot: open.device, chunkSize: snapshot.chunkSize, start });
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

  async #openImage(image: string, { raw = false, directory = process.cwd() }: ForkOptions): Promise<Lease> {
    try {
      if (!raw && !isNbdUri(image)) {
        const path = resolve(directory, image);
        // What cannot be read so may still be a mapped device, or fails below with a better message.
        const format = await imageFormat(path).catch(() => undefined);
        if (format) throw notRaw(path, format);
      }
      return await this.#mapper.lease(image, directory);
    } catch (error) {
      if (error instanceof DmError && error.code === 'MAPPED_DEVICE')
        throw new DmError('FORK_MAPPED', 'EINVAL', `Cannot fork ${image}: it is a mapped device, not an image`, {
          hint: 'fork the image below it; or stack a snapshot on it yourself: dmkit dmsetup create',
        });
      throw error;
    }
  }

  async #fork({ device }: Lease, name: string, options: ForkOptions): Promise<Fork> {
    const { size } = device;
    const image = device.name;
    this.#images.checkNotMerging(image, `fork ${image}`);
    if (size === 0)
      throw new DmError('IMAGE_EMPTY', 'EINVAL', `Cannot fork ${image}: it has 0 bytes`, {
        hint: `give it a size: truncate -s 1G ${image}`,
      });
    const wanted = options.chunkSize ?? CHUNK_SIZE;
    if (!Number.isInteger(Math.log2(wanted)) || wanted < CHUNK_SIZE_MIN || wanted > CHUNK_SIZE_MAX)
      throw new DmError('FORK_CHUNK_SIZE', 'EINVAL', `Cannot fork ${image} in chunks of ${wanted} bytes`, {
        hint: 'a power of two from 4k to 1G: --chunk 16k',
      });
    const autoextend = options.autoextend && policyOf(options.autoextend, wanted, options.cowSize);
    // Taken now, so that nothing is made on disk for a name that is in use.
    const uuid = `${FORK_UUID}${randomUUID()}`;
    const path = cowPath(image, name, options);
    // Before anything is made: a crash leaves a record too many, never a device or a COW file that nobody knows.
    const exists = await access(path).then(
      () => true,
      () => false,
    );
    const record: ForkRecord = { uuid, role: 'fork', image, cow: path, owned: !exists, autoextend };
    this.#images.records.push(record);
    let cow: CowFile | undefined;
    let origin: { name: string; made: boolean } | undefined;
    try {
      await this.#mapper.create(name, { uuid });
    } catch (error) {
      this.#images.remove(record);
      const known = this.#mapper.names().includes(name) ? this.#mapper.device({ name }).uuid : '';
      throw nameTaken(error, name, known);
    }
    try {
      // What would not survive a restart is not begun.
      await this.#images.save();
      cow = await this.#cow(path, size, wanted, options);
      record.cow = cow.path;
      record.owned = cow.made;
      if (autoextend) autoextend.chunkSize = cow.chunkSize;
      const type = options.transient ? 'N' : options.cowSize === undefined ? 'P' : 'PO';
      const table = {
        start: 0,
        length: size / SECTOR,
        type: 'snapshot',
        args: `${deviceWord({ name: image })} ${deviceWord({ name: cow.path })} ${type} ${cow.chunkSize / SECTOR}`,
      };
      origin = await this.#origin(image, size, device.path ?? image);
      await this.#images.whileSuspended(await this.#images.originsOf(image), async () => {
        await this.#mapper.load({ name }, [table]);
        if (options.transient) {
          await deleteCowFile(cow!.path);
          delete record.cow;
          delete record.owned;
        }
        await this.#mapper.resume({ name });
      });
    } catch (error) {
      await this.#mapper.remove({ name }).catch(() => {});
      this.#images.remove(record);
      if (cow?.made) await deleteCowFile(cow.path).catch(() => {});
      if (origin?.made) await this.#images.removeOrigin(image);
      throw error;
    }
    await this.#images.save();
    const originInfo = await this.#mapper.info({ name: origin.name });
    return {
      name,
      image,
      origin: origin.name,
      originReadOnly: originInfo.readOnly,
      cow: options.transient ? undefined : cow.path,
      size,
      chunkSize: cow.chunkSize,
      reopened: !cow.made,
      uri: this.#uri(name),
      originUri: this.#uri(origin.name),
    };
  }

  /** The COW file, made or opened again. */
  async #cow(
    path: string,
    size: Bytes,
    wanted: number,
    { cowSize, chunkSize, transient }: ForkOptions,
  ): Promise<CowFile> {
    const room = cowSize === undefined ? cowSizeFor(size, wanted) : Math.floor(cowSize / SECTOR) * SECTOR;
    if (room < 3 * wanted)
      throw new DmError('FORK_COW_SIZE', 'EINVAL', `Cannot make a COW file of ${room} bytes: a store takes 3 chunks`, {
        hint: `--size ${3 * wanted} or more`,
      });
    if (await createCowFile(path, room as Bytes)) return { path, chunkSize: wanted, made: true };
    if (transient)
      throw new DmError('FORK_COW_EXISTS', 'EEXIST', `Cannot make the COW file ${path}: the file exists`, {
        hint: 'a transient fork needs a file of its own: give another with --cow',
      });
    const lease = await this.#mapper.lease(path);
    try {
      // Two snapshots over one store would be a handover: the second takes over the first one's exceptions.
      for (const info of await this.#mapper.list()) {
        if (!info.deps.some((below) => below.name === lease.device.name)) continue;
        throw new DmError(
          'FORK_COW_IN_USE',
          'EBUSY',
          `Cannot use the COW store ${path}: the device ${info.name} uses it`,
          {
            hint: `give another file with --cow, or first: dmkit drop --keep ${info.name}`,
          },
        );
      }
      const found = await existingCow(path, lease.device, size);
      if (chunkSize !== undefined && chunkSize !== found)
        throw new DmError(
          'FORK_CHUNK_SIZE',
          'EINVAL',
          `Cannot open ${path} again in chunks of ${chunkSize} bytes: its store has chunks of ${found}`,
          { hint: 'leave out --chunk' },
        );
      await growCowFile(path, cowSize === undefined ? cowSizeFor(size, found) : (room as Bytes));
      return { path: lease.device.name, chunkSize: found, made: false };
    } finally {
      await lease.release();
    }
  }

  /** The origin device of an image; made if there is none. */
  async #origin(image: string, size: Bytes, path: string): Promise<{ name: string; made: boolean }> {
    const known = (await this.#images.originsOf(image))[0];
    if (known) return { name: known.name, made: false };
    const device = await this.#images.makeOriginDevice(image, path);
    const ref = { name: device.storedName };
    try {
      const table = originTable(image, size);
      await this.#mapper.load(ref, [table]);
      // An image that cannot be written was opened to be read, and says so.
      const below = device.inactiveTable?.devices[0].device;
      if (below?.readOnly) await this.#mapper.load(ref, [table], { readOnly: true });
      await this.#mapper.resume(ref);
    } catch (error) {
      await this.#images.unmakeOriginDevice(device);
      throw error;
    }
    return { ...ref, made: true };
  }
}

/** What uuids of forks begin with. */
export const FORK_UUID = 'dmkit-fork-';

/** As `error`, with what to do where it is a fork that has the name: removed as a device, it would leave its COW file. */
export function nameTaken(error: unknown, name: string, uuid: string): unknown {
  if (!(error instanceof DmError) || error.code !== 'NAME_IN_USE' || !uuid.startsWith(FORK_UUID)) return error;
  const hint = `choose another name, or first: dmkit drop ${name}`;
  return new DmError(error.code, error.errno, error.message, { hint, cause: error });
}

/** The fork `name` is being merged. */
export const merging = (name: string, attempted: string) =>
  new DmError('MERGING', 'EBUSY', `Cannot ${attempted} ${name}: it is being merged`, {
    hint: `wait for it: dmkit merge ${name}`,
  });

export function cowPath(image: string, name: string, { cow, directory = process.cwd() }: ForkOptions): string {
  // Not beside a block device or a URI: /dev lies in memory.
  const beside = image.startsWith('/') && !image.startsWith('/dev/') ? dirname(image) : directory;
  return resolve(directory, cow ?? join(beside, `${name}.cow`));
}
