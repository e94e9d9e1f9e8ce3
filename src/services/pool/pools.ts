/**
 * Pools over files or disks: made, opened again, extended, dropped. Making and dropping are as with forks: the record first, so
 * that a restart undoes what was not finished and finishes what was begun to be dropped.
 */
import { randomUUID } from 'node:crypto';
import { access, realpath } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import type { Lease } from '../../mapper/devices.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { SavedDevice } from '../../mapper/saved-device.ts';
import { MetadataReader } from '../../stores/thin/reader.ts';
import { bytes } from '../../units.ts';
import { cannotGrow, checkRates } from '../fork/autoextend.ts';
import type { Autoextend, Dropped } from '../fork/fork-control.ts';
import { nameTaken } from '../fork/make-fork.ts';
import { checkName, originNames } from '../fork/names.ts';
import { recover } from '../fork/recovery.ts';
import { createSparseFile, deleteFile } from '../sparse-file.ts';
import { type Book, PARTS } from './book.ts';
import { checkBlank, type Layout, layoutOf, linear, plan, poolTable } from './layout.ts';
import type { OpenPoolOptions, Pool, PoolOptions } from './pool-control.ts';
import { statusOf } from './pool-status.ts';
import { POOL_UUID, type PoolRecord } from './records.ts';

const BLOCK_SIZE = 65536;
/** What a pool may grow to, compared to what it begins with, unless a limit is given. */
const GROWTH = 16;
const POOL_FILE = 'the pool file';
const TOO_LARGE = 'the file system limits the size of files: give less with --size, or a place on another one';

export class Pools {
  readonly #book: Book;

  constructor(book: Book) {
    this.#book = book;
  }

  /** See `PoolControl.createPool`. */
  async create(file: string, options: PoolOptions): Promise<Pool> {
    const { blockSize = BLOCK_SIZE, autoextend } = options;
    const places = await placesOf(file, options);
    const disk = await this.#blankSize(places.data);
    if (places.metadata !== undefined) await this.#blankSize(places.metadata);
    const size = options.size ?? disk;
    const limit = autoextend && (autoextend.limit ?? (size ?? 0) * GROWTH);
    const inOne = places.metadata === undefined;
    const made = plan(size, blockSize, { limit, inOne });
    // A disk that is the whole pool holds the metadata too.
    const layout =
      disk !== undefined && options.size === undefined
        ? { ...made, dataSize: Math.floor((disk - made.dataStart) / blockSize) * blockSize }
        : made;
    const short = disk !== undefined && layout.dataStart + layout.dataSize > disk;
    if (short || layout.dataSize <= 0)
      throw new DmError('POOL_SIZE', 'EINVAL', `Cannot make a pool on ${places.data}: it has only ${disk} bytes`, {
        hint: `of which metadata takes ${layout.dataStart}: give less with --size`,
      });
    return this.#begin(
      places,
      options.name ?? nameOf(file),
      layout,
      autoextend && policyOf(autoextend, layout, limit!),
      async (record) => {
        const whole = layout.dataStart + layout.dataSize;
        await this.#make(record, places.data, whole);
        if (places.metadata !== undefined) await this.#make(record, places.metadata, layout.metadataSize);
        return [];
      },
    );
  }

  /** See `PoolControl.openPool`. */
  async open(file: string, options: OpenPoolOptions): Promise<Pool> {
    const places = await placesOf(file, options);
    const leases: Lease[] = [];
    try {
      for (const path of [places.metadata ?? places.data, places.data])
        leases.push(await this.#book.mapper.lease(path));
      const [metadata, data] = leases.map(({ device }) => device);
      const reader = await MetadataReader.open(metadata);
      const layout = layoutOf(reader.superblock, data, places.metadata === undefined);
      const thins: Pool['thins'] = [];
      for await (const { id, mappedBlocks } of reader.devices())
        thins.push({ id, mapped: mappedBlocks * layout.blockSize });
      const { autoextend } = options;
      const limit = autoextend?.limit ?? layout.dataSize * GROWTH;
      for (const disk of [metadata, data]) this.#book.checkUnused(disk);
      const grows = autoextend && policyOf(autoextend, layout, limit);
      return await this.#begin(places, options.name ?? nameOf(file), layout, grows, async () => thins);
    } finally {
      for (const lease of leases) await lease.release();
    }
  }

  /** What is there of `name`. */
  describe(device: MappedDevice, thins: Pool['thins'] = []): Pool {
    const record = this.#book.poolRecord(device);
    const status = statusOf(device)!;
    return {
      name: device.storedName,
      data: record?.data ?? device.liveTable!.devices[1].device.name,
      metadata: record ? record.metadata : device.liveTable!.devices[0].device.name,
      size: status.dataSize,
      metadataSize: status.metadataSize,
      blockSize: status.blockSize,
      thins,
    };
  }

  /** The device is a pool that was made or opened here, or is being made. */
  owns(device: Pick<MappedDevice, 'uuid'>): boolean {
    return this.#book.poolRecord(device) !== undefined;
  }

  /** As `ForkControl.drop`. */
  async drop(name: string, keep: boolean): Promise<Dropped> {
    const { mapper } = this.#book;
    const device = mapper.device({ name });
    const record = this.#book.poolRecord(device)!;
    await this.#checkEmpty(device, record, keep);
    record.dropping = keep ? 'keep' : 'delete';
    try {
      await mapper.remove({ name });
    } catch (error) {
      delete record.dropping;
      throw error;
    }
    try {
      return { name, files: await this.#forget(record) };
    } finally {
      await this.#book.images.save();
    }
  }

  /** After a restart, as `Forks.recover`. */
  recover(saved: readonly SavedDevice[]): Promise<string[]> {
    return recover(this.#book.pools, saved, 'pool', async (record, unfinished) => {
      if (unfinished) await this.#book.mapper.remove({ name: unfinished.name });
      return (await this.#forget(record)).find(({ deleted }) => deleted)?.path;
    });
  }

  /** Makes the devices of a pool. `make`: what has to be there before; resolves with its thin devices. */
  async #begin(
    { data, metadata }: Places,
    name: string,
    layout: Layout,
    autoextend: PoolRecord['autoextend'],
    make: (record: PoolRecord) => Promise<Pool['thins']>,
  ): Promise<Pool> {
    checkName(name);
    const { mapper, images } = this.#book;
    const uuid = `${POOL_UUID}${randomUUID()}`;
    const record: PoolRecord = { uuid, role: 'pool', data, metadata, owned: [], autoextend };
    this.#book.records.push(record);
    try {
      await mapper.create(name, { uuid });
    } catch (error) {
      this.#book.remove(record);
      throw nameTaken(error, name, mapper.names().includes(name) ? mapper.device({ name }).uuid : '');
    }
    try {
      const thins = await make(record);
      const lowWater = record.autoextend ? lowWaterOf(layout, record.autoextend.threshold) : 0;
      const devices = await this.#parts(name, record, layout);
      await mapper.load({ name }, [poolTable(devices[0], devices[1], layout, lowWater)]);
      await mapper.resume({ name });
      await images.save();
      return this.describe(mapper.device({ name }), thins);
    } catch (error) {
      await mapper.remove({ name }).catch(() => {});
      await this.#forget(record).catch(() => {});
      await images.save().catch(() => {});
      throw error;
    }
  }

  /** Metadata and data of a pool, as its table is to name them. */
  async #parts(name: string, { uuid, data, metadata }: PoolRecord, layout: Layout): Promise<{ name: string }[]> {
    if (metadata !== undefined) return [{ name: metadata }, { name: data }];
    const file = { name: data };
    const tables = [linear(file, 0, layout.metadataSize), linear(file, layout.dataStart, layout.dataSize)];
    const devices: { name: string }[] = [];
    for (const [index, part] of PARTS.entries()) {
      const options = { uuid: `${uuid}-${part}`, table: [tables[index]] };
      // That of a pool that was renamed may have the name.
      for (let number = 1; devices.length === index; number++) {
        const partName = `${name}${number === 1 ? '' : `-${number}`}_${part}`;
        try {
          await this.#book.mapper.create(partName, options);
          devices.push(this.#book.mapper.device({ name: partName }));
        } catch (error) {
          if (!(error instanceof DmError) || error.code !== 'NAME_IN_USE') throw error;
        }
      }
    }
    return devices;
  }

  /** A file that is not there yet; a crash from here on deletes it. */
  async #make(record: PoolRecord, path: string, size: number): Promise<void> {
    if (await exists(path)) return;
    record.owned.push(path);
    // What would not survive a restart is not begun.
    await this.#book.images.save();
    if (await createSparseFile(path, bytes(size), POOL_FILE, TOO_LARGE)) return;
    record.owned.pop();
    throw fileThere(path);
  }

  /** Bytes of a disk that is there and holds nothing; undefined: there is nothing yet. Throws POOL_EXISTS (EEXIST) for a file. */
  async #blankSize(path: string): Promise<number | undefined> {
    if (!(await exists(path))) return undefined;
    const lease = await this.#book.mapper.lease(path);
    try {
      const { path: isFile, name, size } = lease.device;
      // A kernel's disk is called by its number.
      if (isFile !== undefined && name === isFile) throw fileThere(path);
      this.#book.checkUnused(lease.device);
      await checkBlank(lease.device, path);
      return size;
    } finally {
      await lease.release();
    }
  }

  /** Throws POOL_VOLUMES (EBUSY) while it has volumes, or thin devices that would go with its files. */
  async #checkEmpty(device: MappedDevice, record: PoolRecord, keep: boolean): Promise<void> {
    const { storedName: name, liveTable } = device;
    const volumes = this.#book.thinsOf(device).map((thin) => thin.device.storedName);
    if (volumes.length > 0)
      throw new DmError(
        'POOL_VOLUMES',
        'EBUSY',
        `Cannot drop the pool ${name}: it has the volumes ${volumes.join(', ')}`,
        {
          hint: `first: dmkit drop ${volumes.length === 1 ? volumes[0] : 'VOLUME'}`,
        },
      );
    if (keep || record.owned.length === 0) return;
    const ids = liveTable ? await this.#idsIn(name, liveTable.devices[0].device) : await this.#idsLost(name, record);
    if (ids.length === 0) return;
    const deleting = `delete them: dmkit dmsetup message ${name} 0 delete ${ids[0]}; or `;
    throw new DmError('POOL_VOLUMES', 'EBUSY', `Cannot drop the pool ${name}: it has thin devices: ${ids.join(', ')}`, {
      hint: `${liveTable ? deleting : ''}keep its files: dmkit drop --keep ${name}`,
    });
  }

  async #idsIn(name: string, metadata: BlockDevice): Promise<number[]> {
    await this.#book.mapper.status({ name });
    const ids: number[] = [];
    const reader = await MetadataReader.open(metadata);
    for await (const { id } of reader.devices()) ids.push(id);
    return ids;
  }

  /** Of a pool without a table: by its file, which may have come back, or be gone. */
  async #idsLost(name: string, record: PoolRecord): Promise<number[]> {
    const path = record.metadata ?? record.data;
    if (!(await exists(path))) return [];
    const lease = await this.#book.mapper.lease(path);
    try {
      return await this.#idsIn(name, lease.device);
    } catch (error) {
      throw new DmError(
        'POOL_STATE',
        'EINVAL',
        `Cannot drop the pool ${name} and its files: ${(error as Error).message}`,
        {
          hint: `to keep them: dmkit drop --keep ${name}`,
        },
      );
    } finally {
      await lease.release();
    }
  }

  /** What is left to do when the device is gone. The record goes whatever fails: another drop could not find it. */
  async #forget(record: PoolRecord): Promise<NonNullable<Dropped['files']>> {
    const files: NonNullable<Dropped['files']> = [];
    const { mapper } = this.#book;
    try {
      for (const part of PARTS) {
        const device = this.#book.device({ uuid: `${record.uuid}-${part}` });
        if (device) await mapper.remove({ name: device.storedName });
      }
      for (const path of [record.data, record.metadata]) {
        if (path === undefined) continue;
        const deleted = record.owned.includes(path) && record.dropping !== 'keep';
        if (deleted) await deleteFile(path, POOL_FILE);
        files.push({ path, deleted });
      }
    } finally {
      this.#book.remove(record);
    }
    return files;
  }
}

interface Places {
  data: string;
  metadata?: string;
}

async function placesOf(file: string, { metadata, directory = process.cwd() }: OpenPoolOptions): Promise<Places> {
  const canonical = async (path: string) => {
    const absolute = resolve(directory, path);
    const inside = await realpath(dirname(absolute)).catch(() => dirname(absolute));
    return realpath(absolute).catch(() => join(inside, basename(absolute)));
  };
  const places: Places = { data: await canonical(file) };
  if (metadata !== undefined) places.metadata = await canonical(metadata);
  return places.metadata === places.data ? { data: places.data } : places;
}

/** That a pool in such a file gets unless another is given. */
export const nameOf = (file: string) => originNames(file).next().value;

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

const fileThere = (path: string) =>
  new DmError('POOL_EXISTS', 'EEXIST', `Cannot make a pool in ${path}: there is such a file`, {
    hint: `if it is a pool: dmkit pool open ${path}; else choose another name`,
  });

/** Blocks that are free when `threshold` percent are used. */
export const lowWaterOf = ({ dataSize, blockSize }: Layout, threshold: number) =>
  Math.floor(((dataSize / blockSize) * (100 - threshold)) / 100);

/** `limit` in bytes. Throws FORK_AUTOEXTEND (EINVAL). */
function policyOf(autoextend: Autoextend, { dataSize, blockSize }: Layout, limit: number) {
  checkRates(autoextend, 'the pool');
  if (!(limit >= dataSize))
    throw cannotGrow(
      'the pool',
      `its limit of ${limit} bytes is below the ${dataSize} it begins with`,
      'a larger limit, or a smaller --size',
    );
  const { threshold, percent } = autoextend;
  return { threshold, percent, limit: Math.floor(limit / blockSize) * blockSize };
}
