/**
 * A COW file merged into its image, in this process: for files that no daemon has open. The same target does it under a
 * mapper of its own, so that it may be killed at any moment and run again. The file stays, an empty store.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { BlockDevice } from '../../device/block-device.ts';
import { Disks } from '../../device/open.ts';
import { DmError, FormatError } from '../../errors.ts';
import { COW_STORE } from '../../formats/signatures.ts';
import type { DeviceOpener } from '../../mapper/devices.ts';
import { Mapper } from '../../mapper/mapper.ts';
import { inspectCow } from './cow-report.ts';
import { imageFormat } from './image.ts';
import { exceptionsBy } from './merge-status.ts';
import { mergeTable } from './tables.ts';

/** How far it is. */
export interface FilesMerge {
  /** As the devices name themselves: canonical paths or URIs. */
  image: string;
  cow: string;
  /** `stopped`: `signal` fired. The image is a mix of old and new until another run has ended. */
  state: 'merging' | 'stopped' | 'done';
  /** Bytes. */
  chunkSize: number;
  /** Chunks in the store at the start, and how many of them are in the image. */
  total: number;
  merged: number;
}

export interface MergeFilesOptions {
  /** The image is taken as it is although it looks like another format. */
  raw?: boolean;
  /** Absolute directory that relative paths start from. */
  directory?: string;
  /** Ends it in order after the batch under way. */
  signal?: AbortSignal;
  /** Called at the start and whenever something has changed. */
  onProgress?(progress: FilesMerge): void;
  opener?: DeviceOpener;
  /** Between two looks at the status. Rejects when `signal` fires. */
  pause?(signal: AbortSignal | undefined): Promise<unknown>;
}

const DEVICE = { name: 'merge' };
const PAUSE_MS = 50;

/**
 * Settles when everything is merged and closed, or stopped. Rejects, with nothing written, when the store is not one of
 * this image or has problems, when the image cannot be written, and with DEVICE_IN_USE (EBUSY) when somebody has one of
 * the two open; with MERGE_FAILED (EIO) when a disk has failed: then another run goes on.
 */
export async function mergeFiles(
  image: string,
  cow: string,
  { raw = false, directory, signal, onProgress = () => {}, opener = new Disks(), pause }: MergeFilesOptions = {},
): Promise<FilesMerge> {
  const wait = pause ?? ((until?: AbortSignal) => delay(PAUSE_MS, undefined, { signal: until }));
  const mapper = new Mapper({ opener });
  try {
    const progress = await begin(mapper, image, cow, raw, directory);
    onProgress({ ...progress });
    for (;;) {
      const [{ text }] = await mapper.status(DEVICE);
      const left = exceptionsBy(text, progress.chunkSize);
      if (left === undefined) throw await failed(mapper, progress, text);
      const merged = Math.max(progress.total - left, 0);
      if (left === 0) progress.state = 'done';
      else if (signal?.aborted) progress.state = 'stopped';
      if (merged > progress.merged || progress.state === 'done') {
        progress.merged = merged;
        onProgress({ ...progress });
      }
      if (progress.state !== 'merging') break;
      await wait(signal).catch(() => {});
    }
    // The batch under way ends now.
    await mapper.suspend(DEVICE);
    const left = exceptionsBy((await mapper.status(DEVICE))[0].text, progress.chunkSize) ?? 0;
    progress.merged = progress.total - left;
    if (left === 0) progress.state = 'done';
    return progress;
  } finally {
    await mapper.close();
  }
}

/** Checks both and starts the merge. */
async function begin(
  mapper: Mapper,
  image: string,
  cow: string,
  raw: boolean,
  directory: string | undefined,
): Promise<FilesMerge> {
  const store = await mapper.lease(cow, directory);
  try {
    const disk = await mapper.lease(image, directory);
    try {
      const { device } = disk;
      if (device === store.device)
        throw new DmError('MERGE_NO_STORE', 'EINVAL', `Cannot merge ${device.name} into itself`, {
          hint: 'first the image, then the COW file',
        });
      if (!raw) await checkImage(device, store.device);
      const { chunkSize, exceptions } = await checkStore(store.device, device);
      for (const lease of [disk, store]) {
        await lease.upgrade();
        if (lease.device.readOnly)
          throw new DmError('READ_ONLY', 'EROFS', `Cannot merge: ${lease.device.name} is read-only`, {
            hint: 'make it writable: chmod u+w, blockdev --setrw',
          });
      }
      await mapper.create(DEVICE.name);
      await mapper.load(DEVICE, [mergeTable(device.name, store.device.name, device.size, chunkSize)]);
      await mapper.resume(DEVICE);
      return {
        image: device.name,
        cow: store.device.name,
        state: 'merging',
        chunkSize,
        total: exceptions,
        merged: 0,
      };
    } finally {
      await disk.release();
    }
  } finally {
    await store.release();
  }
}

async function checkImage(image: BlockDevice, cow: BlockDevice): Promise<void> {
  const format = image.path === undefined ? undefined : await imageFormat(image.path);
  if (!format) return;
  const other = cow.path === undefined ? undefined : await imageFormat(cow.path);
  if (format.name === COW_STORE && other?.name !== COW_STORE)
    throw new DmError('MERGE_NO_STORE', 'EINVAL', `Cannot merge: ${image.name} is the COW store, not ${cow.name}`, {
      hint: `first the image, then the COW file: dmkit merge ${cow.name} ${image.name}`,
    });
  throw new DmError('IMAGE_FORMAT', 'EINVAL', `Cannot merge into ${image.name}: it is a ${format.name} file`, {
    hint: 'name the image that the COW file was made from\nor take its bytes as they are: --raw',
  });
}

/** As the target would load it, and more: the kernel checks no entry. */
async function checkStore(cow: BlockDevice, image: BlockDevice): Promise<{ chunkSize: number; exceptions: number }> {
  const report = await inspectCow(cow, image);
  const { problems } = report;
  if (report.blank || problems.some(({ kind }) => kind === 'magic' || kind === 'too-small'))
    throw new DmError('MERGE_NO_STORE', 'EINVAL', `Cannot merge ${cow.name}: it is no COW store`, {
      hint: `first the image, then the COW file; look at it: dmkit inspect ${cow.name}`,
    });
  if (problems.some(({ kind }) => kind === 'invalidated'))
    throw new DmError(
      'SNAPSHOT_INVALID',
      'EIO',
      `Cannot merge ${cow.name}: the store is invalid, its changes are lost`,
    );
  const beyond = problems.find(({ kind }) => kind === 'old-beyond-origin');
  if (beyond)
    throw new FormatError(
      'FORK_COW_OTHER',
      'EINVAL',
      `Cannot merge ${cow.name}: it belongs to another image of at least ${report.originReach} bytes, and ${image.name} has ${image.size}: ${beyond.message}`,
      { hint: 'name the image that it was made from' },
    );
  if (problems.length > 0)
    throw new FormatError(
      'FORK_COW_CORRUPT',
      'EINVAL',
      `Cannot merge ${cow.name}: ${problems.map(({ message }) => message).join('; ')}`,
      { hint: `look at it: dmkit inspect ${cow.name}` },
    );
  return report;
}

async function failed(mapper: Mapper, { image, cow }: FilesMerge, status: string): Promise<DmError> {
  const { note } = await mapper.info(DEVICE);
  return new DmError('MERGE_FAILED', 'EIO', `The merge of ${cow} into ${image} has stopped: ${note ?? status}`, {
    hint: 'nothing is lost; once that is repaired, repeat the command',
  });
}
