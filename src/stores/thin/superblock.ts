/** What a superblock may say to be taken for one of a pool, and what it says of a new one. */
import type { BlockDevice } from '../../device/block-device.ts';
import { FormatError } from '../../errors.ts';
import { type diskSuperblock, MAGIC, METADATA_BLOCK_SECTORS, VERSION } from '../../formats/thin/superblock.ts';
import { DATA_BLOCKS_MAX, TIME_MAX } from '../../formats/thin/values.ts';
import type { Sector } from '../../units.ts';

type Superblock = ReturnType<typeof diskSuperblock.get>;

/** Of a pool without anything, as far as it is always the same. */
export const emptySuperblock = {
  csum: 0,
  flags: 0,
  blocknr: 0,
  uuid: undefined,
  magic: MAGIC,
  version: VERSION,
  time: 0,
  transId: 0n,
  heldRoot: 0,
  gap1: undefined,
  gap2: undefined,
  metadataBlockSize: METADATA_BLOCK_SECTORS,
  compatFlags: 0,
  compatRoFlags: 0,
  incompatFlags: 0,
};

/** Throws FormatError: EILSEQ for something else, EINVAL for another block size and for what is not known. */
export function checkKnown(found: Superblock, { name, readOnly }: BlockDevice, blockSize: Sector): void {
  const { magic, dataBlockSize, incompatFlags, compatRoFlags, time, dataSpaceMap } = found;
  if (magic !== MAGIC) throw new FormatError('THIN_MAGIC', 'EILSEQ', `There is no metadata of a thin pool on ${name}`);
  if (dataBlockSize !== blockSize)
    throw new FormatError(
      'THIN_BLOCK_SIZE',
      'EINVAL',
      `changing the data block size (from ${dataBlockSize} to ${blockSize}) is not supported`,
    );
  if (incompatFlags !== 0 || (compatRoFlags !== 0 && !readOnly))
    throw new FormatError('THIN_FEATURES', 'EINVAL', `The metadata on ${name} has features that are not known`);
  // A mapping has 24 bits for it: more would change the block.
  if (time > TIME_MAX) throw new FormatError('THIN_TIME', 'EINVAL', `The pool on ${name} has had ${time} snapshots`);
  if (dataSpaceMap.nrBlocks > DATA_BLOCKS_MAX)
    throw new FormatError('METADATA_SIZE', 'EINVAL', `The pool on ${name} has ${dataSpaceMap.nrBlocks} data blocks`);
}
