/** How large the metadata of a pool can become, as `thin_metadata_size` 1.x estimates it. */
import { type Sector, sector } from '../../units.ts';
import { METADATA_BLOCK_SECTORS } from './superblock.ts';

/** A leaf of mappings that random writes leave half full. */
const MAPPINGS = 126;
/** 255 bitmaps of 16,320 blocks: more cannot be used. */
const BLOCKS_MAX = 255 * 16320;

/** For that many data blocks, and thin devices with their snapshots. (0.9.0 rounds down where this rounds up.) */
export function metadataSize(dataBlocks: number, thins: number): Sector {
  const blocks = Math.min(1 + Math.ceil(dataBlocks / MAPPINGS) + thins, BLOCKS_MAX);
  return sector(blocks * METADATA_BLOCK_SECTORS);
}
