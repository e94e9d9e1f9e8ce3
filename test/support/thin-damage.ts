/** Damages of a pool's metadata, each as it can come about, with checksums that are right unless they are what is damaged. */
import { MemoryDevice } from '../../src/device/memory.ts';
import {
  BITMAP,
  BLOCK_BYTES,
  type BlockData,
  blockData,
  INDEX,
  type Kind,
  seal,
} from '../../src/formats/pdata/block.ts';
import * as node from '../../src/formats/pdata/node.ts';
import { NODE } from '../../src/formats/pdata/node.ts';
import { count, diskIndexEntry, INDEX_AT, setCount } from '../../src/formats/pdata/space-map.ts';
import { u64 } from '../../src/formats/struct.ts';
import { diskSuperblock, SUPERBLOCK } from '../../src/formats/thin/superblock.ts';
import { diskDetails, setMapping } from '../../src/formats/thin/values.ts';
import { PoolMetadata } from '../../src/stores/thin/pool-metadata.ts';
import { bytes, sector } from '../../src/units.ts';
import { allocateBlock } from './allocate-block.ts';

/** Devices 1, of 300 blocks, and 2, its snapshot, which is as it was; 1000 data blocks. */
export async function wholeImage(): Promise<MemoryDevice> {
  const device = new MemoryDevice(2 ** 20);
  const pool = await PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });
  await pool.resizeData(1000);
  await pool.createThin(1);
  await pool.openThin(1);
  for (let i = 0; i < 300; i++) await pool.insert(1, i, await allocateBlock(pool));
  await pool.createSnapshot(2, 1);
  await pool.commit();
  return device;
}

type Superblock = ReturnType<typeof diskSuperblock.get>;

/** Blocks of an image, and how to change them. */
export class Image {
  readonly device: MemoryDevice;

  constructor(device: MemoryDevice) {
    this.device = device;
  }

  block(number: number): BlockData {
    const block = blockData();
    this.device.read(bytes(number * BLOCK_BYTES), block.bytes, 0, BLOCK_BYTES);
    return block;
  }

  change(number: number, kind: Kind, edit: (block: BlockData) => void): void {
    const block = this.block(number);
    edit(block);
    seal(block, number, kind);
    this.device.write(bytes(number * BLOCK_BYTES), block.bytes, 0, BLOCK_BYTES);
  }

  /** Without a new checksum. */
  flip(number: number, at: number): void {
    const block = this.block(number);
    block.bytes[at] ^= 1;
    this.device.write(bytes(number * BLOCK_BYTES), block.bytes, 0, BLOCK_BYTES);
  }

  /** The checksum fits another number. */
  renumber(number: number, kind: Kind): void {
    const block = this.block(number);
    seal(block, number + 1, kind);
    this.device.write(bytes(number * BLOCK_BYTES), block.bytes, 0, BLOCK_BYTES);
  }

  get superblock(): Superblock {
    return diskSuperblock.get(this.block(0).view, 0);
  }

  setSuperblock(change: (found: Superblock) => Partial<Superblock>): void {
    this.change(0, SUPERBLOCK, ({ view }) => {
      const found = diskSuperblock.get(view, 0);
      diskSuperblock.set(view, 0, { ...found, ...change(found) });
    });
  }

  /** The first leaf of mappings of device 1. */
  get leaf(): number {
    const roots = this.block(this.superblock.dataMappingRoot);
    let number = node.child(roots, 0);
    while (!node.isLeaf(this.block(number))) number = node.child(this.block(number), 0);
    return number;
  }

  get dataBitmap(): number {
    const index = this.block(this.superblock.dataSpaceMap.bitmapRoot);
    return diskIndexEntry.get(index.view, node.valueAt(index, 0)).blocknr;
  }

  get metadataBitmap(): number {
    return diskIndexEntry.get(this.block(this.superblock.metadataSpaceMap.bitmapRoot).view, INDEX_AT).blocknr;
  }

  setDataCount(block: number, value: number): void {
    this.change(this.dataBitmap, BITMAP, (bitmap) => setCount(bitmap, block, value));
  }

  setMetadataCount(block: number, value: number): void {
    this.change(this.metadataBitmap, BITMAP, (bitmap) => setCount(bitmap, block, value));
  }

  setIndexEntry(change: Partial<ReturnType<typeof diskIndexEntry.get>>): void {
    this.change(this.superblock.metadataSpaceMap.bitmapRoot, INDEX, ({ view }) =>
      diskIndexEntry.set(view, INDEX_AT, { ...diskIndexEntry.get(view, INDEX_AT), ...change }),
    );
  }
}

export interface Damage {
  readonly name: string;
  /** What is found: a severity and a message; `refused`, as nothing can be read; `nothing`. */
  readonly found: readonly [severity: 'error' | 'leak' | 'total' | 'refused', message: RegExp] | 'nothing';
  /** Exit status of thin_check 0.9.0. */
  readonly theirs: 0 | 1;
  apply(image: Image): void;
}

const inLeaf = (image: Image, edit: (leaf: BlockData) => void) => image.change(image.leaf, NODE, edit);

export const DAMAGES: readonly Damage[] = [
  {
    name: 'the checksum of the superblock',
    found: ['refused', /its checksum is wrong/],
    theirs: 1,
    apply: (image) => image.flip(0, 0),
  },
  {
    name: 'the magic',
    found: ['error', /^the magic of superblock 0 is 5, not 27022010$/],
    theirs: 0,
    apply: (image) => image.setSuperblock(() => ({ magic: 5 })),
  },
  ...[1, 3].map(
    (version): Damage => ({
      name: `version ${version}`,
      found: ['error', new RegExp(`^the version is ${version}, and only 2 is known$`)],
      theirs: 0,
      apply: (image) => image.setSuperblock(() => ({ version })),
    }),
  ),
  {
    name: 'a feature that is not known',
    found: ['error', /^incompatFlags is 0x1, of which nothing is known$/],
    theirs: 0,
    apply: (image) => image.setSuperblock(() => ({ incompatFlags: 1 })),
  },
  {
    name: 'the number of the superblock',
    found: ['refused', /it bears the number 1$/],
    theirs: 0,
    apply: (image) => image.renumber(0, SUPERBLOCK),
  },
  {
    name: 'the needs_check flag, which is none',
    found: 'nothing',
    theirs: 0,
    apply: (image) => image.setSuperblock(() => ({ flags: 1 })),
  },
  {
    name: 'the checksum of a leaf',
    found: ['error', /is no B-tree node: its checksum is wrong$/],
    theirs: 1,
    apply: (image) => image.flip(image.leaf, 100),
  },
  {
    name: 'the number of a leaf',
    found: ['error', /is no B-tree node: it bears the number \d+$/],
    theirs: 1,
    apply: (image) => image.renumber(image.leaf, NODE),
  },
  {
    name: 'keys out of order',
    found: ['error', /^node \d+ of mappings: key 4 comes after 5$/],
    theirs: 1,
    apply: (image) =>
      inLeaf(image, (leaf) => {
        node.setKey(leaf, 4, 5);
        node.setKey(leaf, 5, 4);
      }),
  },
  {
    name: 'a key twice',
    found: ['error', /^node \d+ of mappings: key 5 comes after 5$/],
    theirs: 1,
    apply: (image) => inLeaf(image, (leaf) => node.setKey(leaf, 4, 5)),
  },
  {
    name: 'a node whose entries at most are no multiple of three',
    found: ['error', /its 251 entries at most are no multiple of three$/],
    theirs: 1,
    apply: (image) => inLeaf(image, ({ view }) => view.setUint32(20, 251, true)),
  },
  {
    name: 'a device with details and no mappings',
    found: ['error', /^device 3 has details and no mappings$/],
    theirs: 0,
    apply: (image) => image.change(image.superblock.deviceDetailsRoot, NODE, (leaf) => node.setKey(leaf, 1, 3)),
  },
  {
    name: 'a device with mappings and no details',
    found: ['error', /^device 2 has mappings and no details$/],
    theirs: 0,
    apply: (image) => image.change(image.superblock.deviceDetailsRoot, NODE, (leaf) => node.setNr(leaf, 1)),
  },
  {
    name: 'mapped_blocks',
    found: ['error', /^device 1 is said to have 299 blocks mapped, and has 300$/],
    theirs: 0,
    apply: (image) =>
      image.change(image.superblock.deviceDetailsRoot, NODE, (leaf) => {
        const at = node.valueAt(leaf, 0);
        diskDetails.set(leaf.view, at, { ...diskDetails.get(leaf.view, at), mappedBlocks: 299 });
      }),
  },
  {
    name: 'a data block that is counted and not mapped',
    found: ['leak', /^data block 900 is referred to 0 times, and 1 are counted$/],
    theirs: 0,
    apply: (image) => image.setDataCount(900, 1),
  },
  ...[0, 2].map(
    (value): Damage => ({
      name: `a data block that is mapped once and counted ${value} times`,
      found: ['error', new RegExp(`^data block 7 is referred to 1 times, and ${value} are counted$`)],
      theirs: 0,
      apply: (image) => image.setDataCount(7, value),
    }),
  ),
  {
    name: 'a block of metadata that is counted and not used',
    found: ['leak', /^metadata block 200 is referred to 0 times, and 1 are counted$/],
    theirs: 1,
    apply: (image) => image.setMetadataCount(200, 1),
  },
  ...[-1, 1].map(
    (change): Damage => ({
      name: `a block of metadata that is counted ${change > 0 ? 'too often' : 'not often enough'}`,
      found: ['error', /^metadata block \d+ is referred to \d times, and \d are counted$/],
      theirs: 1,
      apply: (image) => {
        const { leaf } = image;
        image.setMetadataCount(leaf, count(image.block(image.metadataBitmap), leaf) + change);
      },
    }),
  ),
  {
    name: 'a mapping to a data block that is not there',
    found: ['error', /^virtual block 3 is mapped to 1000 of 1000 data blocks$/],
    theirs: 0,
    apply: (image) => inLeaf(image, (leaf) => setMapping(leaf.view, node.valueAt(leaf, 3), 1000, 0)),
  },
  {
    name: 'the checksum of the index of metadata',
    found: ['error', /is no space map index: its checksum is wrong$/],
    theirs: 1,
    apply: (image) => image.flip(image.superblock.metadataSpaceMap.bitmapRoot, 100),
  },
  {
    name: 'the checksum of a bitmap of metadata',
    found: ['error', /is no space map bitmap: its checksum is wrong$/],
    theirs: 1,
    apply: (image) => image.flip(image.metadataBitmap, 4000),
  },
  {
    name: 'the number of free blocks of a bitmap',
    found: ['total', /^bitmap 0 of metadata is said to have 5 blocks free, and has \d+$/],
    theirs: 0,
    apply: (image) => image.setIndexEntry({ nrFree: 5 }),
  },
  {
    name: 'where the free blocks of a bitmap begin',
    found: ['total', /^bitmap 0 of metadata is said to have nothing free before 250, and has \d+$/],
    theirs: 0,
    apply: (image) => image.setIndexEntry({ noneFreeBefore: 250 }),
  },
  {
    name: 'the number of allocated data blocks',
    found: ['total', /^the space map of data is said to have 7 blocks allocated, and has 300$/],
    theirs: 0,
    apply: (image) =>
      image.setSuperblock(({ dataSpaceMap }) => ({ dataSpaceMap: { ...dataSpaceMap, nrAllocated: 7 } })),
  },
  {
    name: 'a time that has not come',
    found: ['error', /^virtual block 3 was mapped at 9, after the pool's time 1$/],
    theirs: 0,
    apply: (image) => inLeaf(image, (leaf) => setMapping(leaf.view, node.valueAt(leaf, 3), 3, 9)),
  },
  {
    name: 'a tree that leads back to itself',
    found: ['error', /^metadata block \d+ is referred to \d times, and \d are counted$/],
    theirs: 1,
    apply(image) {
      const root = node.child(image.block(image.superblock.dataMappingRoot), 0);
      image.change(root, NODE, (block) => u64.set(block.view, node.valueAt(block, 1), root));
    },
  },
];
