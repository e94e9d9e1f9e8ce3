/**
 * Whether the metadata of a thin pool is whole: every block is what it should be, every tree in order, every reference
 * counted. Reads only. It finds what `thin_check` 1.x finds, and wrong totals and hints besides.
 */
import { DmError } from '../../errors.ts';
import { BITMAP, BLOCK_BYTES, type BlockData, blockData, INDEX, type Kind } from '../../formats/pdata/block.ts';
import * as node from '../../formats/pdata/node.ts';
import { NODE } from '../../formats/pdata/node.ts';
import {
  count as countIn,
  diskIndexEntry,
  ENTRIES,
  INDEX_AT,
  INDEX_ENTRIES,
  MANY,
} from '../../formats/pdata/space-map.ts';
import { diskSuperblock, MAGIC, NEEDS_CHECK, SUPERBLOCK, VERSION } from '../../formats/thin/superblock.ts';
import { diskDetails, MAPPING_BYTES, mappedBlock, mappedTime } from '../../formats/thin/values.ts';
import { bytes } from '../../units.ts';
import { checkBlock } from '../pdata/blocks.ts';
import type { IndexEntry, SpaceMapRoot } from '../pdata/space-map.ts';
import { Counts } from './counts.ts';
import { notHeld, type Readable } from './reader.ts';

export interface Finding {
  /**
   * `leak`: space that nobody uses, which harms nobody. `total`: a sum or a hint that is wrong, which a pool goes on with;
   * `thin_restore` 0.9 writes such.
   */
  readonly severity: 'error' | 'leak' | 'total';
  readonly message: string;
}

/** A block that is counted more often than referred to, which is never. */
export interface Leak {
  readonly of: 'data' | 'metadata';
  readonly block: number;
  readonly count: number;
}

export interface CheckOptions {
  /**
   * `all` unless given. `devices`: without what they have mapped, and without space maps. `held`: the metadata snapshot, which
   * has no space maps; the pool may be active.
   */
  scope?: 'all' | 'superblock' | 'devices' | 'held';
}

export interface CheckReport {
  readonly findings: Finding[];
  /** Those of the findings that are leaks. */
  readonly leaks: Leak[];
  /** There were more than are listed. */
  readonly truncated: boolean;
  /** One of the findings is an error, listed or not. */
  readonly damaged: boolean;
  readonly needsCheck: boolean;
  readonly transactionId: bigint;
  /** Devices by number: virtual blocks that are mapped. */
  readonly devices: Map<number, number>;
  readonly metadataBlocks: number;
  readonly freeMetadataBlocks: number;
  readonly dataBlocks: number;
  readonly freeDataBlocks: number;
}

/** Findings that are listed. */
const FINDINGS_MAX = 1000;

/** More than 2^40 entries need. */
const LEVELS_MAX = 64;

/** What a tree of one level holds. */
interface TreeKind {
  readonly name: string;
  readonly size: number;
  leaf(block: BlockData): Promise<number>;
}

type Superblock = ReturnType<typeof diskSuperblock.get>;

/** Rejects with FormatError if there is no superblock, or with what the device says. */
export async function checkMetadata(device: Readable, { scope = 'all' }: CheckOptions = {}): Promise<CheckReport> {
  return new Check(device, scope).run();
}

class Check {
  readonly #device: Readable;
  readonly #scope: NonNullable<CheckOptions['scope']>;
  readonly #findings: Finding[] = [];
  readonly #leaks: Leak[] = [];
  #truncated = false;
  #damaged = false;
  readonly #metadata = new Counts();
  readonly #data = new Counts();
  /** Entries below nodes that were visited, and how deep they are. */
  readonly #below = new Map<number, { entries: number; depth: number; kind: TreeKind }>();
  #metadataBlocks = 0;
  #dataBlocks = 0;
  #time = 0;

  constructor(device: Readable, scope: NonNullable<CheckOptions['scope']>) {
    this.#device = device;
    this.#scope = scope;
  }

  async run(): Promise<CheckReport> {
    const superblock = await this.#superblock(0);
    const { metadataSpaceMap, dataSpaceMap, flags, version, transId, heldRoot } = superblock;
    this.#metadataBlocks = metadataSpaceMap.nrBlocks;
    this.#dataBlocks = dataSpaceMap.nrBlocks;
    if (this.#dataBlocks > this.#metadataBlocks * ENTRIES) {
      this.#error(`${this.#dataBlocks} data blocks need more bitmaps than there are blocks of metadata`);
      this.#dataBlocks = 0;
    }
    this.#time = superblock.time;
    if (version !== VERSION) this.#error(`the version is ${version}, and only ${VERSION} is known`);
    if ((flags & ~NEEDS_CHECK) !== 0) this.#error(`unknown flags are set: 0x${flags.toString(16)}`);
    for (const name of ['compatFlags', 'compatRoFlags', 'incompatFlags'] as const)
      if (superblock[name] !== 0)
        this.#error(`${name} is 0x${superblock[name].toString(16)}, of which nothing is known`);
    this.#metadata.add(0);
    let devices = new Map<number, number>();
    if (this.#scope === 'held') {
      if (heldRoot === 0) throw notHeld(this.#device);
      devices = await this.#held(heldRoot);
    } else if (this.#scope !== 'superblock') devices = await this.#pool(superblock);
    if (this.#scope === 'all') {
      if (heldRoot !== 0) await this.#held(heldRoot);
      await this.#spaceMap('data', dataSpaceMap, this.#data, await this.#dataIndex(dataSpaceMap));
      const entries = await this.#metadataIndex(metadataSpaceMap);
      await this.#spaceMap('metadata', metadataSpaceMap, this.#metadata, entries);
    }
    return {
      findings: this.#findings,
      leaks: this.#leaks,
      truncated: this.#truncated,
      damaged: this.#damaged,
      needsCheck: (flags & NEEDS_CHECK) !== 0,
      transactionId: transId,
      devices,
      metadataBlocks: metadataSpaceMap.nrBlocks,
      freeMetadataBlocks: metadataSpaceMap.nrBlocks - metadataSpaceMap.nrAllocated,
      dataBlocks: dataSpaceMap.nrBlocks,
      freeDataBlocks: dataSpaceMap.nrBlocks - dataSpaceMap.nrAllocated,
    };
  }

  #error(message: string, severity: Finding['severity'] = 'error'): void {
    if (severity === 'error') this.#damaged = true;
    if (this.#findings.length < FINDINGS_MAX) this.#findings.push({ severity, message });
    else this.#truncated = true;
  }

  async #superblock(number: number): Promise<Superblock> {
    const found = diskSuperblock.get((await this.#read(number, SUPERBLOCK)).view, 0);
    if (found.magic !== MAGIC) this.#error(`the magic of superblock ${number} is ${found.magic}, not ${MAGIC}`);
    return found;
  }

  async #read(number: number, kind: Kind): Promise<BlockData> {
    const data = blockData();
    const wait = this.#device.read(bytes(number * BLOCK_BYTES), data.bytes, 0, BLOCK_BYTES);
    if (wait) await wait;
    checkBlock(data, number, kind, this.#device.name);
    return data;
  }

  /** Counts a reference to a block. 0, with a finding, where there is no such block. */
  #refer(number: number, kind: Kind): number {
    if (number < this.#metadataBlocks && (number + 1) * BLOCK_BYTES <= this.#device.size)
      return this.#metadata.add(number);
    this.#error(`block ${number} is referred to as ${kind.name}, and the metadata has ${this.#metadataBlocks} blocks`);
    return 0;
  }

  /** As `#read`, of a block that there is; undefined, with a finding, where it is damaged. */
  async #block(number: number, kind: Kind): Promise<BlockData | undefined> {
    try {
      return await this.#read(number, kind);
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      this.#error(error.message);
      return undefined;
    }
  }

  /** The trees of a superblock. Returns what is mapped, by device. */
  async #pool({ dataMappingRoot, deviceDetailsRoot }: Superblock): Promise<Map<number, number>> {
    const mapped = new Map<number, number>();
    const roots = this.#tree('mapping tree', node.CHILD, async (leaf) => {
      for (let i = 0; i < node.nr(leaf); i++) {
        const id = node.key(leaf, i);
        mapped.set(id, this.#scope === 'devices' ? -1 : await this.#walk(node.child(leaf, i), this.#mappings));
      }
    });
    await this.#walk(dataMappingRoot, roots);
    const described = new Set<number>();
    const details = this.#tree('device details', diskDetails.size, (leaf) => {
      for (let i = 0; i < node.nr(leaf); i++) {
        const id = node.key(leaf, i);
        described.add(id);
        const { mappedBlocks, creationTime, snapshottedTime } = diskDetails.get(leaf.view, node.valueAt(leaf, i));
        const found = mapped.get(id);
        if (found === undefined) this.#error(`device ${id} has details and no mappings`);
        else if (found < 0) mapped.set(id, mappedBlocks);
        else if (found !== mappedBlocks)
          this.#error(`device ${id} is said to have ${mappedBlocks} blocks mapped, and has ${found}`);
        if (Math.max(creationTime, snapshottedTime) > this.#time)
          this.#error(
            `device ${id} was made or had a snapshot taken at ${Math.max(creationTime, snapshottedTime)}, after the pool's time ${this.#time}`,
          );
      }
    });
    await this.#walk(deviceDetailsRoot, details);
    for (const id of mapped.keys()) if (!described.has(id)) this.#error(`device ${id} has mappings and no details`);
    return mapped;
  }

  /** The metadata snapshot shares trees with the pool; what it alone leads to was read once more here. */
  async #held(number: number): Promise<Map<number, number>> {
    if (this.#refer(number, SUPERBLOCK) === 0 || !(await this.#block(number, SUPERBLOCK))) return new Map();
    return this.#pool(await this.#superblock(number));
  }

  #tree(name: string, size: number, leaf: (block: BlockData) => void | Promise<void>): TreeKind {
    return {
      name,
      size,
      async leaf(block) {
        await leaf(block);
        return node.nr(block);
      },
    };
  }

  readonly #mappings: TreeKind = this.#tree('mappings', MAPPING_BYTES, (leaf) => {
    for (let i = 0; i < node.nr(leaf); i++) {
      const at = node.valueAt(leaf, i);
      const block = mappedBlock(leaf.view, at);
      if (block >= this.#dataBlocks)
        this.#error(`virtual block ${node.key(leaf, i)} is mapped to ${block} of ${this.#dataBlocks} data blocks`);
      else this.#data.add(block);
      if (mappedTime(leaf.view, at) > this.#time)
        this.#error(
          `virtual block ${node.key(leaf, i)} was mapped at ${mappedTime(leaf.view, at)}, after the pool's time ${this.#time}`,
        );
    }
  });

  /** Returns the number of entries below. Keys must be at least `low` and below `high`. */
  async #walk(root: number, kind: TreeKind, low = 0, high = Number.POSITIVE_INFINITY, level = 0): Promise<number> {
    const references = this.#refer(root, NODE);
    if (references === 0) return 0;
    const known = this.#below.get(root);
    if (references > 1 && known) {
      if (known.kind.size !== kind.size) this.#error(`node ${root} is part of ${kind.name} and of ${known.kind.name}`);
      return known.entries;
    }
    // Until it is done: what leads back to itself has nothing below.
    const state = { entries: 0, depth: 0, kind };
    this.#below.set(root, state);
    if (level > LEVELS_MAX) {
      this.#error(`node ${root} of ${kind.name} is ${level} levels below its root`);
      return 0;
    }
    const block = await this.#block(root, NODE);
    if (!block || !this.#checkNode(root, block, kind, level === 0, low, high)) return 0;
    if (node.isLeaf(block)) {
      state.entries = await kind.leaf(block);
      return state.entries;
    }
    const depths = new Set<number>();
    for (let i = 0; i < node.nr(block); i++) {
      const next = i + 1 < node.nr(block) ? node.key(block, i + 1) : high;
      state.entries += await this.#walk(node.child(block, i), kind, node.key(block, i), next, level + 1);
      depths.add(this.#below.get(node.child(block, i))?.depth ?? 0);
    }
    if (depths.size > 1) this.#error(`the leaves below node ${root} of ${kind.name} are not all as deep`);
    state.depth = Math.max(-1, ...depths) + 1;
    return state.entries;
  }

  /** False if its values are not those of the tree. */
  #checkNode(number: number, block: BlockData, kind: TreeKind, isRoot: boolean, low: number, high: number): boolean {
    const wrong = (what: string) => this.#error(`node ${number} of ${kind.name}: ${what}`);
    const leaf = node.isLeaf(block);
    const size = leaf ? kind.size : node.CHILD;
    if (node.valueSize(block) !== size) wrong(`its values have ${node.valueSize(block)} bytes in place of ${size}`);
    if (node.max(block) % 3 !== 0) wrong(`its ${node.max(block)} entries at most are no multiple of three`);
    const count = node.nr(block);
    if (!isRoot && count < Math.floor(node.max(block) / 3)) wrong(`it has ${count} entries, fewer than a third`);
    if (!leaf && count === 0) wrong('it has no children');
    for (let i = 0; i < count; i++) {
      const key = node.key(block, i);
      if (i > 0 && key <= node.key(block, i - 1)) wrong(`key ${key} comes after ${node.key(block, i - 1)}`);
      if (key < low || key >= high) wrong(`key ${key} lies outside of what leads to it`);
    }
    return node.valueSize(block) === size;
  }

  async #metadataIndex({ bitmapRoot, nrBlocks }: SpaceMapRoot): Promise<IndexEntry[]> {
    const index = this.#refer(bitmapRoot, INDEX) > 0 ? await this.#block(bitmapRoot, INDEX) : undefined;
    if (!index) return [];
    const count = Math.min(INDEX_ENTRIES, Math.ceil(nrBlocks / ENTRIES));
    return Array.from({ length: count }, (_, i) => diskIndexEntry.get(index.view, INDEX_AT + i * diskIndexEntry.size));
  }

  async #dataIndex({ bitmapRoot }: SpaceMapRoot): Promise<IndexEntry[]> {
    const entries: IndexEntry[] = [];
    const kind = this.#tree('the index of the data space map', diskIndexEntry.size, (leaf) => {
      for (let i = 0; i < node.nr(leaf); i++) {
        if (node.key(leaf, i) !== entries.length)
          this.#error(`the index of the data space map has no bitmap ${entries.length}`);
        entries.push(diskIndexEntry.get(leaf.view, node.valueAt(leaf, i)));
      }
    });
    await this.#walk(bitmapRoot, kind);
    return entries;
  }

  /** Compares what a space map says with what was counted. Its own blocks are counted on the way, the last ones last. */
  async #spaceMap(name: Leak['of'], root: SpaceMapRoot, counted: Counts, entries: IndexEntry[]): Promise<void> {
    const many = new Map<number, number>();
    const kind = this.#tree(`the counts of ${name}`, 4, (leaf) => {
      for (let i = 0; i < node.nr(leaf); i++)
        many.set(node.key(leaf, i), leaf.view.getUint32(node.valueAt(leaf, i), true));
    });
    await this.#walk(root.refCountRoot, kind);
    // All are counted before one is compared: a map's own bitmaps are among what it counts.
    const owned = entries.map(({ blocknr }) => this.#refer(blocknr, BITMAP) === 1);
    if (entries.length < Math.ceil(root.nrBlocks / ENTRIES))
      this.#error(`the space map of ${name} has ${entries.length} bitmaps for ${root.nrBlocks} blocks`);
    let allocated = 0;
    for (const [index, entry] of entries.entries()) {
      const bitmap = owned[index] ? await this.#block(entry.blocknr, BITMAP) : undefined;
      if (!owned[index]) this.#error(`bitmap ${index} of ${name} is no block of its own`);
      if (bitmap) allocated += this.#bitmap(name, root, counted, many, index, entry, bitmap);
    }
    for (const block of many.keys())
      this.#error(`the count of ${name} block ${block} is in the tree of counts and not in its bitmap`);
    if (allocated !== root.nrAllocated)
      this.#error(
        `the space map of ${name} is said to have ${root.nrAllocated} blocks allocated, and has ${allocated}`,
        'total',
      );
  }

  #bitmap(
    name: Leak['of'],
    { nrBlocks }: SpaceMapRoot,
    counted: Counts,
    many: Map<number, number>,
    index: number,
    entry: IndexEntry,
    bitmap: BlockData,
  ): number {
    const begin = index * ENTRIES;
    const end = Math.min(ENTRIES, nrBlocks - begin);
    let allocated = 0;
    let firstFree = -1;
    for (let i = 0; i < end; i++) {
      const few = countIn(bitmap, i);
      const block = begin + i;
      let found = few;
      if (few === MANY) {
        found = many.get(block) ?? 0;
        if (!many.delete(block)) this.#error(`the count of ${name} block ${block} is in no tree`);
        else if (found < MANY) this.#error(`the count of ${name} block ${block} is in the tree, and is ${found}`);
      }
      if (few !== 0) allocated++;
      else if (firstFree < 0) firstFree = i;
      const expected = counted.get(block);
      if (found === expected) continue;
      const message = `${name} block ${block} is referred to ${expected} times, and ${found} are counted`;
      this.#error(message, expected === 0 ? 'leak' : 'error');
      if (expected === 0 && this.#leaks.length < FINDINGS_MAX) this.#leaks.push({ of: name, block, count: found });
    }
    if (firstFree >= 0 && firstFree < entry.noneFreeBefore)
      this.#error(
        `bitmap ${index} of ${name} is said to have nothing free before ${entry.noneFreeBefore}, and has ${firstFree}`,
        'total',
      );
    // As if all blocks existed; some tools write what there is.
    const free = end - allocated;
    if (entry.nrFree !== free && entry.nrFree !== ENTRIES - allocated)
      this.#error(`bitmap ${index} of ${name} is said to have ${entry.nrFree} blocks free, and has ${free}`, 'total');
    return allocated;
  }
}
