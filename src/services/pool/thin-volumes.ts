/**
 * Volumes of a pool: made from nothing, from another volume, or over an image; and dropped.
 *
 *     make  record and device, durably   the thin device   table, resume
 *     drop  record, durably   the device is gone   so is the thin device
 */
import { randomUUID } from 'node:crypto';
import { DmError } from '../../errors.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { SavedDevice } from '../../mapper/saved-device.ts';
import { changedBetween } from '../../targets/thin/changed.ts';
import { poolOf } from '../../targets/thin/pools.ts';
import { SECTOR } from '../../units.ts';
import { compare } from '../fork/diff.ts';
import type { Diff, Dropped } from '../fork/fork-control.ts';
import { type Maker, nameTaken } from '../fork/make-fork.ts';
import { checkName } from '../fork/names.ts';
import { recover } from '../fork/recovery.ts';
import type { Book } from './book.ts';
import { thinTable } from './layout.ts';
import type { ThinVolume, VolumeSource } from './pool-control.ts';
import { statusOf } from './pool-status.ts';
import { VOLUME_UUID, type VolumeRecord } from './records.ts';

const IDS = 2 ** 24;

/** What a volume is to be. */
interface Plan {
  /** Bytes. */
  size: number;
  /** The thin device. Absent: it is there. */
  message?: (id: number) => string;
  id?: number;
  /** What it is made from, and what is below it. */
  parent?: MappedDevice;
  image?: { name: string };
}

export class ThinVolumes {
  readonly #book: Book;
  readonly #maker: Maker;
  readonly #uri: (name: string) => string | undefined;

  constructor(book: Book, maker: Maker, uri: (name: string) => string | undefined) {
    this.#book = book;
    this.#maker = maker;
    this.#uri = uri;
  }

  /** See `PoolControl.createVolume`. */
  async create(poolName: string, name: string, source: VolumeSource): Promise<ThinVolume> {
    checkName(name);
    const pool = this.#book.pool(poolName, `make the volume ${name}`);
    this.#checkWritable(pool, `make the volume ${name}`);
    if (!('image' in source)) return await this.#create(pool, name, await this.#plan(pool, name, source));
    const lease = await this.#maker.openImage(source.image, source);
    try {
      const { device } = lease;
      await this.#book.images.checkUnchanging(device.name, `make the volume ${name} over ${device.name}`);
      const size = checkSize(source.size ?? device.size, device.name);
      const message = (id: number) => `create_thin ${id}`;
      return await this.#create(pool, name, { size, message, image: device });
    } finally {
      await lease.release();
    }
  }

  async #plan(pool: MappedDevice, name: string, source: Exclude<VolumeSource, { image: string }>): Promise<Plan> {
    if ('volume' in source) {
      const parent = this.#book.mapper.device({ name: source.volume });
      const thin = this.#book.thin(parent);
      if (thin?.pool !== pool)
        throw new DmError(
          'NO_VOLUME',
          'EINVAL',
          `Cannot fork ${source.volume}: it is no volume of ${pool.storedName}`,
          {
            hint: thin ? `its pool is ${thin.pool.storedName}` : 'look at: dmkit ls',
          },
        );
      const image = thin.origin === undefined ? undefined : { name: thin.origin };
      return { size: parent.size, message: (id) => `create_snap ${id} ${thin.id}`, parent, image };
    }
    const size = checkSize(source.size, pool.storedName);
    if (!('id' in source)) return { size, message: (id) => `create_thin ${id}` };
    const { id } = source;
    const shown = this.#book.thinsOf(pool).find((thin) => thin.id === id)?.device;
    if (shown)
      throw new DmError('VOLUME_SHOWN', 'EBUSY', `Cannot show thin device ${id} twice: ${shown.storedName} shows it`);
    if (await isThin(pool, id)) return { size, id };
    throw new DmError(
      'NO_VOLUME',
      'EINVAL',
      `Cannot make the volume ${name}: ${pool.storedName} has no thin device ${id}`,
      {
        hint: 'without --id it gets a new one',
      },
    );
  }

  async #create(pool: MappedDevice, name: string, { size, message, id: known, parent, image }: Plan) {
    const { mapper, images } = this.#book;
    const { storedName: poolName, minor } = pool;
    const id = known ?? (await this.#freeId(pool));
    const uuid = `${VOLUME_UUID}${randomUUID()}`;
    const origin = parent && parent.uuid !== '' ? parent.uuid : undefined;
    const record: VolumeRecord = {
      uuid,
      role: 'volume',
      pool: minor,
      poolUuid: pool.uuid,
      id,
      origin,
      owned: message !== undefined,
    };
    this.#book.records.push(record);
    try {
      await mapper.create(name, { uuid });
    } catch (error) {
      this.#book.remove(record);
      throw nameTaken(error, name, mapper.names().includes(name) ? mapper.device({ name }).uuid : '');
    }
    let made = false;
    try {
      // What would not survive a restart is not begun.
      await images.save();
      if (message) {
        const around = parent ? [await mapper.info({ name: parent.storedName })] : [];
        await images.whileSuspended(around, async () => void (await this.#message(pool, message(id))));
        made = true;
      }
      await this.#book.steady.run(async () => {
        await mapper.load({ name }, [thinTable(pool, id, size, image)]);
        await mapper.resume({ name });
      });
    } catch (error) {
      await mapper.remove({ name }).catch(() => {});
      this.#book.remove(record);
      if (made) await this.#message(pool, `delete ${id}`).catch(() => {});
      await images.save().catch(() => {});
      throw error;
    }
    await images.save();
    const device = mapper.device({ name });
    return {
      name,
      pool: poolName,
      id,
      size,
      origin: this.#book.originOf(device),
      uri: this.#uri(name),
      note: this.#book.warningOf(pool),
    };
  }

  /** To a pool that does not grow meanwhile: it takes none then. */
  #message({ storedName: name }: MappedDevice, text: string): Promise<string> {
    return this.#book.steady.run(() => this.#book.mapper.message({ name }, 0, text));
  }

  /** A number that no thin device of the pool has. */
  async #freeId(pool: MappedDevice): Promise<number> {
    const { minor, uuid } = pool;
    const known = this.#book.volumes
      .filter((record) => record.pool === minor && record.poolUuid === uuid)
      .map(({ id }) => id);
    const first = known.reduce((highest, id) => Math.max(highest, id), 0) + 1;
    for (let step = 0; step < IDS; step++) {
      const id = (first + step) % IDS;
      if (!(await isThin(pool, id))) return id;
    }
    throw new DmError('POOL_IDS', 'ENOSPC', `The pool ${pool.storedName} has no number left for a thin device`);
  }

  /** As `ForkControl.drop`, of a device whose live table is that of a thin device, or which has a record. */
  async drop(device: MappedDevice, keep: boolean): Promise<Dropped> {
    const { mapper, images } = this.#book;
    const { storedName: name } = device;
    const record = this.#book.volumeRecord(device);
    const thin = this.#book.thin(device);
    const pool = thin?.pool ?? this.#book.poolOf(record!);
    const id = record?.id ?? thin!.id;
    const [lost] = device.lostTable ?? [];
    const size = lost ? lost.length * SECTOR : device.size;
    // Of a pool that is gone there is nothing to delete.
    const deletes = record?.owned === true && !keep && pool !== undefined;
    if (deletes) this.#checkDeletes(pool, name);
    // Saved with the removal: a crash from then on is made up for by `recover`.
    if (record) record.dropping = deletes ? 'delete' : 'keep';
    try {
      await mapper.remove({ name });
    } catch (error) {
      delete record?.dropping;
      throw error;
    }
    try {
      if (deletes) await this.#message(pool, `delete ${id}`);
      return { name, thin: pool && { pool: pool.storedName, id, size, deleted: deletes } };
    } finally {
      if (record) this.#forget(record);
      await images.save();
    }
  }

  /** What was made from it counts as made from what it was made from. */
  #forget(record: VolumeRecord): void {
    this.#book.remove(record);
    for (const child of this.#book.volumes) if (child.origin === record.uuid) child.origin = record.origin;
  }

  /** As `ForkControl.diff`. Throws NO_ORIGIN (EINVAL) if it was made from nothing, or that is gone. */
  async diff(device: MappedDevice, start: number): Promise<Diff> {
    const { storedName: name } = device;
    const { pool: owner, id, origin: external } = this.#book.thin(device)!;
    const pool = poolOf(owner)!;
    const { origin: uuid } = this.#book.volumeRecord(device) ?? {};
    const parent = uuid === undefined ? undefined : this.#book.device({ uuid });
    const other = parent && this.#book.thin(parent);
    if (parent && other?.pool === owner) {
      const open = this.#book.mapper.open({ name: parent.storedName });
      try {
        const originName = `${owner.storedName}/${parent.storedName}`;
        return await compare({
          name,
          pool: owner.storedName,
          origin: parent,
          originName,
          device,
          changed: (at, length) => changedBetween(pool, id, other.id, at, length),
          chunkSize: pool.blockBytes,
          start,
        });
      } finally {
        await open.close();
      }
    }
    if (external === undefined)
      throw new DmError(
        'NO_ORIGIN',
        'EINVAL',
        `${name} was made from nothing that is there: there is nothing to compare it with`,
      );
    const origin = device.liveTable!.devices.find(({ device: below }) => below !== owner)!.device;
    return compare({
      name,
      pool: owner.storedName,
      origin,
      device,
      changed: (at, length) => changedBetween(pool, id, undefined, at, length),
      chunkSize: pool.blockBytes,
      start,
    });
  }

  /** After a restart, as `Forks.recover`. */
  recover(saved: readonly SavedDevice[]): Promise<string[]> {
    return recover(this.#book.volumes, saved, 'volume', async (record, unfinished) => {
      if (record.owned && record.dropping !== 'keep') await this.#deleteThin(record);
      if (unfinished) await this.#book.mapper.remove({ name: unfinished.name });
      this.#forget(record);
      return undefined;
    });
  }

  async #deleteThin(record: VolumeRecord): Promise<void> {
    const { id } = record;
    const name = this.#book.poolOf(record)?.storedName;
    if (name === undefined) return;
    const pool = this.#book.pool(name, `delete thin device ${id}`);
    if (await isThin(pool, id)) await this.#message(pool, `delete ${id}`);
  }

  /** Throws as `Book.pool`, or POOL_STATE (EROFS). */
  #checkDeletes({ storedName }: MappedDevice, name: string): void {
    try {
      this.#checkWritable(this.#book.pool(storedName, `drop ${name}`), `drop ${name}`);
    } catch (error) {
      const { code, errno, message } = error as DmError;
      throw new DmError(code, errno, message, { hint: `to keep what it has in the pool: dmkit drop --keep ${name}` });
    }
  }

  /** Throws POOL_READ_ONLY (EROFS). */
  #checkWritable(pool: MappedDevice, attempted: string): void {
    const status = statusOf(pool);
    if (status && status.mode !== 'ro') return;
    throw new DmError('POOL_STATE', 'EROFS', `Cannot ${attempted}: ${this.#book.warningOf(pool)}`);
  }
}

/** Throws VOLUME_SIZE (EINVAL). */
function checkSize(size: number, from: string): number {
  if (size > 0 && Number.isSafeInteger(size) && size % SECTOR === 0) return size;
  throw new DmError('VOLUME_SIZE', 'EINVAL', `Cannot make a volume of ${size} bytes from ${from}`, {
    hint: 'a multiple of 512: --size 10G',
  });
}

/** The pool has a thin device of that number. */
async function isThin(device: MappedDevice, id: number): Promise<boolean> {
  const { metadata } = poolOf(device)!;
  try {
    await metadata.openThin(id);
    metadata.closeThin(id);
    return true;
  } catch (error) {
    if (error instanceof DmError && error.errno === 'ENODATA') return false;
    throw error;
  }
}
