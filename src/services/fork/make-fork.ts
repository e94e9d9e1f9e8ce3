/** How a fork comes to be: its image, its COW file, the origin device beside it. */
import { randomUUID } from 'node:crypto';
import { access } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { DmError } from '../../errors.ts';
import { isNbdUri } from '../../formats/nbd/uri.ts';
import type { Lease } from '../../mapper/devices.ts';
import { deviceWord } from '../../targets/arguments.ts';
import { type Bytes, SECTOR } from '../../units.ts';
import { createSparseFile, deleteFile } from '../sparse-file.ts';
import { policyOf } from './autoextend.ts';
import { COW_FILE, cowSizeFor, existingCow, growCowFile } from './cow-file.ts';
import type { Fork, ForkOptions } from './fork-control.ts';
import { imageFormat, notRaw } from './image.ts';
import type { Images } from './images.ts';
import type { ForkRecord } from './records.ts';
import { originTable } from './tables.ts';

/** Bytes; the kernel's default. */
const CHUNK_SIZE = 16384;
/** For a file system that limits the size of files. */
const TOO_LARGE =
  'the file system limits the size of files: give less with --size, or a place on another one with --cow';
const CHUNK_SIZE_MIN = 4096;
/** What the snapshot target takes. */
const CHUNK_SIZE_MAX = 2 ** 30;

interface CowFile {
  path: string;
  chunkSize: number;
  /** False: it was there and was opened again. */
  made: boolean;
}

export class Maker {
  readonly #images: Images;
  readonly #uri: (name: string) => string | undefined;

  constructor(images: Images, uri: (name: string) => string | undefined) {
    this.#images = images;
    this.#uri = uri;
  }

  async openImage(image: string, { raw = false, directory = process.cwd() }: ForkOptions): Promise<Lease> {
    try {
      if (!raw && !isNbdUri(image)) {
        const path = resolve(directory, image);
        // What cannot be read so may still be a mapped device, or fails below with a better message.
        const format = await imageFormat(path).catch(() => undefined);
        if (format) throw notRaw(path, format);
      }
      const lease = await this.#images.mapper.lease(image, directory);
      try {
        this.#images.checkNoPool(lease.device);
      } catch (error) {
        await lease.release();
        throw error;
      }
      return lease;
    } catch (error) {
      if (error instanceof DmError && error.code === 'MAPPED_DEVICE')
        throw new DmError('FORK_MAPPED', 'EINVAL', `Cannot fork ${image}: it is a mapped device, not an image`, {
          hint: 'fork the image below it; or stack a snapshot on it yourself: dmkit dmsetup create',
        });
      throw error;
    }
  }

  async make({ device }: Lease, name: string, options: ForkOptions): Promise<Fork> {
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
      await this.#images.mapper.create(name, { uuid });
    } catch (error) {
      this.#images.remove(record);
      const known = this.#images.mapper.names().includes(name) ? this.#images.mapper.device({ name }).uuid : '';
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
        await this.#images.mapper.load({ name }, [table]);
        if (options.transient) {
          await deleteFile(cow!.path, COW_FILE);
          delete record.cow;
          delete record.owned;
        }
        await this.#images.mapper.resume({ name });
      });
    } catch (error) {
      await this.#images.mapper.remove({ name }).catch(() => {});
      this.#images.remove(record);
      if (cow?.made) await deleteFile(cow.path, COW_FILE).catch(() => {});
      if (origin?.made) await this.#images.removeOrigin(image);
      throw error;
    }
    await this.#images.save();
    const originInfo = await this.#images.mapper.info({ name: origin.name });
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
    if (await createSparseFile(path, room as Bytes, COW_FILE, TOO_LARGE))
      return { path, chunkSize: wanted, made: true };
    if (transient)
      throw new DmError('FORK_COW_EXISTS', 'EEXIST', `Cannot make the COW file ${path}: the file exists`, {
        hint: 'a transient fork needs a file of its own: give another with --cow',
      });
    const lease = await this.#images.mapper.lease(path);
    try {
      // Two snapshots over one store would be a handover: the second takes over the first one's exceptions.
      for (const info of await this.#images.mapper.list()) {
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
      await this.#images.mapper.load(ref, [table]);
      // An image that cannot be written was opened to be read, and says so. One that volumes show must not change.
      const below = device.inactiveTable?.devices[0].device;
      if (below?.readOnly || (await this.#images.shownBy(image)) !== undefined)
        await this.#images.mapper.load(ref, [table], { readOnly: true });
      await this.#images.mapper.resume(ref);
    } catch (error) {
      await this.#images.unmakeOriginDevice(device);
      throw error;
    }
    return { ...ref, made: true };
  }
}

/** What uuids of forks begin with. */
export const FORK_UUID = 'dmkit-fork-';

/** As `error`, with what to do where a fork, a volume or a pool has the name: removed as a device, it would leave files or thin devices. */
export function nameTaken(error: unknown, name: string, uuid: string): unknown {
  if (!(error instanceof DmError) || error.code !== 'NAME_IN_USE' || !/^dmkit-(fork|pool|volume)-/.test(uuid))
    return error;
  const hint = `choose another name, or first: dmkit drop ${name}`;
  return new DmError(error.code, error.errno, error.message, { hint, cause: error });
}

export function cowPath(image: string, name: string, { cow, directory = process.cwd() }: ForkOptions): string {
  // Not beside a block device or a URI: /dev lies in memory.
  const beside = image.startsWith('/') && !image.startsWith('/dev/') ? dirname(image) : directory;
  return resolve(directory, cow ?? join(beside, `${name}.cow`));
}
