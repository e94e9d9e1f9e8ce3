/** The superblock of a thin pool's metadata, block 0 (Linux `dm-thin-metadata.c`). All fields are in its first sector. */

import { SECTOR, type Sector } from '../../units.ts';
import type { Kind } from '../pdata/block.ts';
import { BLOCK_BYTES } from '../pdata/block.ts';
import { diskRoot } from '../pdata/space-map.ts';
import { type Field, struct, u32, u64, wide } from '../struct.ts';

export const SUPERBLOCK: Kind = { name: 'superblock', salt: 160774 };
export const MAGIC = 27022010;
export const VERSION = 2;
/** In `flags`: something went wrong, and `thin_check` has yet to say what. */
export const NEEDS_CHECK = 1;

/** Room for the root of a space map, of which 32 bytes are used. */
const ROOT_BYTES = 128;
const gap = (size: number): Field<undefined> => ({ size, get: () => undefined, set: () => {} });

export const diskSuperblock = struct({
  csum: u32,
  flags: u32,
  blocknr: u64,
  uuid: gap(16),
  magic: u64,
  version: u32,
  time: u32,
  transId: wide,
  heldRoot: u64,
  dataSpaceMap: diskRoot,
  gap1: gap(ROOT_BYTES - diskRoot.size),
  metadataSpaceMap: diskRoot,
  gap2: gap(ROOT_BYTES - diskRoot.size),
  dataMappingRoot: u64,
  deviceDetailsRoot: u64,
  dataBlockSize: u32 as Field<Sector>,
  metadataBlockSize: u32,
  metadataNrBlocks: u64,
  compatFlags: u32,
  compatRoFlags: u32,
  incompatFlags: u32,
});

export const METADATA_BLOCK_SECTORS = BLOCK_BYTES / SECTOR;
/** Both roots of space maps, from here on. */
export const SPACE_MAP_ROOTS = { at: diskSuperblock.at.dataSpaceMap, length: 2 * ROOT_BYTES } as const;
