/**
 * Where a pool lies: in two files or disks, or in one, in the order
 *
 *     0          metadata, as many bytes as its own superblock says, rounded up to a block
 *     dataStart  data, whole blocks up to the end
 *
 * which needs no format of its own: two `linear` devices show the parts, `NAME_tmeta` and `NAME_tdata` as LVM calls them.
 */
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError, FormatError } from '../../errors.ts';
import { BLOCK_BYTES } from '../../formats/pdata/block.ts';
import { recognise, SIGNATURE_BYTES } from '../../formats/signatures.ts';
import { metadataSize } from '../../formats/thin/size.ts';
import { DATA_BLOCKS_MAX } from '../../formats/thin/values.ts';
import type { TargetSpec } from '../../mapper/control.ts';
import type { ThinSuperblock } from '../../stores/thin/reader.ts';
import { deviceWord } from '../../targets/arguments.ts';
import { bytes, SECTOR, toBytes } from '../../units.ts';

const BLOCK_MIN = 65536;
const BLOCK_MAX = 2 ** 30;
/** Room for so many volumes that are written everywhere and share nothing, and for so many thin devices. */
const FULL_VOLUMES = 4;
const THINS = 4096;

/** Sizes and offsets in bytes. */
export interface Layout {
  readonly blockSize: number;
  readonly metadataSize: number;
  /** In the file of the data. 0: metadata lies elsewhere. */
  readonly dataStart: number;
  readonly dataSize: number;
}

export const wholeBlocks = (size: number, blockSize: number) => Math.ceil(size / blockSize) * blockSize;

/** `limit`: what the data may come to. Throws POOL_SIZE and POOL_BLOCK_SIZE (EINVAL). */
export function plan(
  size: number | undefined,
  blockSize: number,
  { limit = size, inOne }: { limit?: number; inOne: boolean },
): Layout {
  if (!Number.isSafeInteger(blockSize) || blockSize < BLOCK_MIN || blockSize > BLOCK_MAX || blockSize % BLOCK_MIN !== 0)
    throw new DmError('POOL_BLOCK_SIZE', 'EINVAL', `Cannot make a pool with blocks of ${blockSize} bytes`, {
      hint: 'a multiple of 64k, at most 1G: --block 64k',
    });
  if (size === undefined || !(size > 0) || !Number.isSafeInteger(wholeBlocks(size, blockSize)))
    throw new DmError('POOL_SIZE', 'EINVAL', `Cannot make a pool of ${size ?? 'no'} bytes`, {
      hint: 'say how much data its volumes may take together: --size 100G',
    });
  const dataSize = wholeBlocks(size, blockSize);
  const blocks = Math.max(dataSize, limit ?? 0) / blockSize;
  if (blocks > DATA_BLOCKS_MAX)
    throw new DmError('POOL_SIZE', 'EINVAL', `Cannot make a pool of ${dataSize} bytes in blocks of ${blockSize}`, {
      hint: 'larger blocks: --block 1m',
    });
  const metadata = toBytes(metadataSize(Math.ceil(blocks) * FULL_VOLUMES, THINS));
  if (!inOne) return { blockSize, metadataSize: metadata, dataStart: 0, dataSize };
  const rounded = wholeBlocks(metadata, blockSize);
  return { blockSize, metadataSize: rounded, dataStart: rounded, dataSize };
}

/** That of a pool that is there. `file`: of the data. Throws POOL_SHORT (EINVAL) if there is less than its metadata says. */
export function layoutOf(
  { dataBlockSize, dataSpaceMap, metadataSpaceMap }: ThinSuperblock,
  file: Pick<BlockDevice, 'name' | 'size'>,
  inOne: boolean,
): Layout {
  const blockSize = toBytes(dataBlockSize);
  const found = metadataSpaceMap.nrBlocks * BLOCK_BYTES;
  const dataStart = inOne ? wholeBlocks(found, blockSize) : 0;
  const dataSize = dataSpaceMap.nrBlocks * blockSize;
  if (!(dataStart + dataSize <= file.size))
    throw new FormatError(
      'POOL_SHORT',
      'EINVAL',
      `Cannot open the pool in ${file.name}: it has ${file.size} bytes, and its metadata tells of ${dataStart + dataSize}`,
      { hint: inOne ? 'if its data is in another file: dmkit pool open DATA --metadata METADATA' : undefined },
    );
  return { blockSize, metadataSize: inOne ? dataStart : found, dataStart, dataSize };
}

/** Throws POOL_DISK (EINVAL) unless the disk holds nothing where signatures lie. */
export async function checkBlank(disk: BlockDevice, path: string): Promise<void> {
  const length = Math.min(Math.ceil(SIGNATURE_BYTES / SECTOR) * SECTOR, disk.size);
  const start = Buffer.alloc(length);
  await disk.read(bytes(0), start, 0, length);
  if (start.every((byte) => byte === 0)) return;
  const found = recognise(start);
  throw new DmError(
    'POOL_DISK',
    'EINVAL',
    `Cannot make a pool on ${path}: it holds ${found ? `a ${found.name}` : 'something'}`,
    { hint: `if nobody needs that: wipefs -a ${path}; blkdiscard -z ${path}` },
  );
}

/** `below`: a disk. Offsets and lengths in bytes. */
export const linear = (below: Pick<BlockDevice, 'name'>, start: number, length: number): TargetSpec => ({
  start: 0,
  length: length / SECTOR,
  type: 'linear',
  args: `${deviceWord(below)} ${start / SECTOR}`,
});

/** `lowWater` in blocks. */
export const poolTable = (
  metadata: Pick<BlockDevice, 'name'>,
  data: Pick<BlockDevice, 'name'>,
  { blockSize, dataSize }: Layout,
  lowWater: number,
): TargetSpec => ({
  start: 0,
  length: dataSize / SECTOR,
  type: 'thin-pool',
  args: `${deviceWord(metadata)} ${deviceWord(data)} ${blockSize / SECTOR} ${lowWater}`,
});

/** `origin`: the image below it. */
export const thinTable = (
  pool: Pick<BlockDevice, 'name'>,
  id: number,
  size: number,
  origin?: Pick<BlockDevice, 'name'>,
): TargetSpec => ({
  start: 0,
  length: size / SECTOR,
  type: 'thin',
  args: [deviceWord(pool), id, ...(origin ? [deviceWord(origin)] : [])].join(' '),
});
