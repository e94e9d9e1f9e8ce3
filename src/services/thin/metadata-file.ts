/** The metadata of a thin pool that is not active, or the snapshot of its metadata that an active one holds, by the name of its disk. */
import { execFile } from 'node:child_process';
import { constants, createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { resolve } from 'node:path';
import { promisify } from 'node:util';
import type { BlockDevice, Mode } from '../../device/block-device.ts';
import { locate } from '../../device/locate.ts';
import { Disks } from '../../device/open.ts';
import { DmError, fromSystem } from '../../errors.ts';
import { type CheckOptions, type CheckReport, checkMetadata } from '../../stores/thin/check.ts';
import { changes, type DeltaRange, printDelta } from '../../stores/thin/delta.ts';
import { type DumpFormat, type DumpOptions, dump } from '../../stores/thin/dump.ts';
import { type Mended, mend } from '../../stores/thin/mend.ts';
import { MetadataReader, type Readable, type ThinDevice, type ThinSuperblock } from '../../stores/thin/reader.ts';
import { type Repaired, repair } from '../../stores/thin/repair.ts';
import { type Restored, type RestoreOptions, restore } from '../../stores/thin/restore.ts';
import { type ThinUsage, usage } from '../../stores/thin/usage.ts';
import { reader, sizeOf } from '../fork/inspect.ts';

export interface ThinDumpOptions extends DumpOptions {
  /** Told what is damaged and therefore left out, where it is refused else. */
  lost?: (what: string) => void;
}

/** Every call reads the disk from its beginning, and rejects with a DmError. */
export interface ThinMetadata {
  /** What is wrong: with all of it unless a scope is given, or, where that was opened, with the metadata snapshot. */
  check(options?: CheckOptions): Promise<CheckReport>;
  superblock(): Promise<ThinSuperblock>;
  /** By number. */
  devices(): Promise<ThinDevice[]>;
  /** As `devices`, with what each has to itself; reads all mappings twice. */
  usage(): Promise<ThinUsage[]>;
  /** As `thin_dump` prints it. `write` is called with one part after the other. */
  dump(format: DumpFormat, write: (text: string) => void, options?: ThinDumpOptions): Promise<void>;
  /** What differs between two devices, in order. Takes as long as there are differences, not as the devices are large. */
  delta(left: number, right: number): AsyncGenerator<DeltaRange>;
  /** The same, and what is the same, as `thin_delta` prints it. */
  printDelta(left: number, right: number, verbose: boolean, write: (text: string) => void): Promise<void>;
  close(): Promise<void>;
}

export interface ThinMetadataOptions {
  /** Relative paths start here; the current one unless given. */
  directory?: string;
  /** The metadata snapshot that the pool holds; the pool may then be active, here or in a kernel. */
  snapshot?: boolean;
}

/** Opens a file or a block device to read it. DEVICE_IN_USE while the pool is active. */
export async function openThinMetadata(
  path: string,
  { directory = '.', snapshot = false }: ThinMetadataOptions = {},
): Promise<ThinMetadata> {
  const device = snapshot ? await openUnlocked(resolve(directory, path)) : await openClaimed(path, directory);
  const metadata = () => MetadataReader.open(device, { held: snapshot });
  const pair = async (left: number, right: number) => {
    const source = await metadata();
    return [source, await source.device(left), await source.device(right)] as const;
  };
  return {
    check: (options) => checkMetadata(device, { scope: snapshot ? 'held' : 'all', ...options }),
    superblock: async () => (await metadata()).superblock,
    async devices() {
      const found: ThinDevice[] = [];
      for await (const each of (await metadata()).devices()) found.push(each);
      return found;
    },
    usage: async () => usage(await metadata()),
    async dump(format, write, { lost, ...options } = {}) {
      await dump(await MetadataReader.open(device, { held: snapshot, lost }), format, write, options);
    },
    async *delta(left, right) {
      yield* changes(...(await pair(left, right)));
    },
    printDelta: async (left, right, verbose, write) => printDelta(...(await pair(left, right)), verbose, write),
    close: () => device.close(),
  };
}

type Opened = Readable & { close(): Promise<void> };

async function openLocked(path: string, directory: string, mode: Mode): Promise<BlockDevice> {
  const disks = new Disks();
  try {
    return await disks.open(await disks.identify(path, directory), mode);
  } catch (error) {
    throw withHint(error);
  }
}

/** Who reads a disk of the kernel claims nothing by that, and while a pool of the kernel has it, it changes. */
async function openClaimed(path: string, directory: string): Promise<Opened> {
  const device = await openLocked(path, directory, 'r');
  const isDisk = device.path !== undefined && (await locate(device.path)).stat.isBlockDevice();
  if (!isDisk) return device;
  try {
    const claim = await open(device.path!, constants.O_RDONLY | constants.O_EXCL);
    return {
      name: device.name,
      size: device.size,
      read: (at, into, start, length) => device.read(at, into, start, length),
      async close() {
        await claim.close();
        await device.close();
      },
    };
  } catch (error) {
    await device.close();
    const busy = (error as NodeJS.ErrnoException).code === 'EBUSY';
    if (!busy) throw fromSystem(error, `Cannot open ${path}`);
    throw withHint(new DmError('DEVICE_IN_USE', 'EBUSY', `Cannot open ${path} to read: it is in use`));
  }
}

function withHint(error: unknown): unknown {
  if (!(error instanceof DmError) || error.code !== 'DEVICE_IN_USE') return error;
  const hint =
    'deactivate its pool first, or have the pool hold a metadata snapshot (message reserve_metadata_snap) and read that: -m';
  return new DmError('DEVICE_IN_USE', 'EBUSY', error.message, { hint, cause: error });
}

/** As somebody else writes to it: only what a metadata snapshot leads to stays as it is. */
async function openUnlocked(path: string): Promise<Opened> {
  try {
    const { stat } = await locate(path);
    // A pool of the kernel writes past the page cache, which may have old blocks.
    if (stat.isBlockDevice()) await promisify(execFile)('blockdev', ['--flushbufs', path]);
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const source = reader(file, await sizeOf(file));
    return {
      name: path,
      size: source.size,
      read: (at, into, start, length) => source.read(at, into, start, length),
      close: () => file.close(),
    };
  } catch (error) {
    throw fromSystem(error, `Cannot open ${path}`);
  }
}

/**
 * Checks metadata, and if nothing is damaged clears its needs_check flag and gives blocks back that nobody uses and nobody gets. Rejects
 * with DEVICE_IN_USE while the pool is active.
 */
export function mendThinMetadata(path: string, { directory = '.' }: { directory?: string } = {}): Promise<Mended> {
  return toDevice(path, directory, mend);
}

/** Makes metadata from the XML of `thin_dump`, on a file or disk that is there and has the size that it is to have. */
export async function restoreThinMetadata(
  xml: string,
  path: string,
  { directory = '.', ...options }: RestoreOptions & { directory?: string } = {},
): Promise<Restored> {
  const source = resolve(directory, xml);
  return toDevice(path, directory, (device) => restore(device, () => textOf(source), options));
}

/** Makes metadata from what can be read of damaged metadata, which stays as it is, on another file or disk. */
export async function repairThinMetadata(
  damaged: string,
  path: string,
  { directory = '.', ...options }: RestoreOptions & { directory?: string } = {},
): Promise<Repaired> {
  const source = await openClaimed(damaged, directory);
  try {
    return await toDevice(path, directory, (device) => repair(source, device, options));
  } finally {
    await source.close();
  }
}

async function toDevice<T>(path: string, directory: string, write: (device: BlockDevice) => Promise<T>): Promise<T> {
  const device = await openLocked(path, directory, 'rw');
  try {
    if (device.readOnly)
      throw new DmError('READ_ONLY', 'EROFS', `Cannot write metadata to ${device.name}: it must not be written`);
    return await write(device);
  } finally {
    await device.close();
  }
}

async function* textOf(path: string): AsyncGenerator<string> {
  try {
    yield* createReadStream(path, 'latin1') as AsyncIterable<string>;
  } catch (error) {
    throw fromSystem(error, `Cannot read ${path}`);
  }
}
