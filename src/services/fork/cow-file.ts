/** The COW file of a fork: as large as can never be too small, or opened again if it belongs to this image. */
import { stat, truncate } from 'node:fs/promises';
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError, FormatError } from '../../errors.ts';
import { fullCowSize } from '../../stores/exception/persistent.ts';
import { type Bytes, bytes, toSectors } from '../../units.ts';
import { inspectCow } from './cow-report.ts';

/** As errors call it. */
export const COW_FILE = 'the COW file';

/** Sparse room for every chunk of an origin of `originSize` bytes. */
export const cowSizeFor = (originSize: Bytes, chunkSize: number) =>
  fullCowSize(originSize, toSectors(bytes(chunkSize)));

/**
 * The chunk size of the store that `device`, opened from `path`, holds. Throws FORK_COW_EXISTS (EEXIST) when it is no
 * usable store, and FORK_COW_OTHER (EINVAL) when it cannot be one of an origin of `originSize` bytes. Writes nothing.
 */
export async function existingCow(path: string, device: BlockDevice, originSize: Bytes): Promise<number> {
  const report = await inspectCow(device, { size: originSize });
  if (
    report.chunkSize === 0 &&
    (report.blank || report.problems.some(({ kind }) => kind === 'magic' || kind === 'too-small'))
  )
    throw new DmError(
      'FORK_COW_EXISTS',
      'EEXIST',
      `Cannot make the COW file ${path}: the file exists and is no COW store`,
      {
        hint: 'choose another name, give another file with --cow, or delete it if nobody needs it',
      },
    );
  const beyond = report.problems.find(({ kind }) => kind === 'old-beyond-origin');
  if (beyond)
    throw new FormatError(
      'FORK_COW_OTHER',
      'EINVAL',
      `Cannot open the COW store ${path} again: it belongs to another origin of at least ${report.originReach} bytes, and this one has ${originSize}: ${beyond.message}`,
      { hint: 'give the image it was made from, or another COW file with --cow' },
    );
  if (report.problems.length > 0)
    throw new FormatError(
      'FORK_COW_CORRUPT',
      'EINVAL',
      `Cannot open the COW store ${path} again: ${report.problems.map(({ message }) => message).join('; ')}`,
      { hint: `look at it: dmkit inspect ${path}` },
    );
  return report.chunkSize;
}

/** Grows a COW file that is too small for its origin. Never shrinks; leaves block devices alone. */
export async function growCowFile(path: string, size: Bytes): Promise<void> {
  const found = await stat(path);
  if (found.isFile() && found.size < size) await truncate(path, size);
}
