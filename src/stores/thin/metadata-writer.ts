/** Writes metadata of a thin pool from its first block to its last, without ever reading: trees grow from left to right. */
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import { BITMAP, BLOCK_BYTES, type BlockData, blockData, INDEX, type Kind, seal } from '../../formats/pdata/block.ts';
import * as node from '../../formats/pdata/node.ts';
import { CHILD, NODE } from '../../formats/pdata/node.ts';
import { diskIndexEntry, ENTRIES, INDEX_AT, MANY, setCount } from '../../formats/pdata/space-map.ts';
import { u64 } from '../../formats/struct.ts';
import { bytes } from '../../units.ts';
import { shift } from '../pdata/redistribute.ts';
import type { SpaceMapRoot } from '../pdata/space-map.ts';
import type { Counts } from './counts.ts';

/** Blocks written in one go. */
const RUN = 64;

/** Blocks one behind the other, from number 1 on: block 0 is left for the superblock. */
export class BlockWriter {
  readonly #device: BlockDevice | undefined;
  readonly #buffer = new Uint8Array(RUN * BLOCK_BYTES);
  readonly #waiting: Uint8Array[] = [];
  #next = 1;
  #filled = 0;

  /** Without a device it only counts. */
  constructor(device?: BlockDevice) {
    this.#device = device;
  }

  /** Blocks so far, with the superblock. */
  get count(): number {
    return this.#next;
  }

  /** Takes a block over and returns its number. */
  put(block: BlockData, kind: Kind): number {
    const number = this.#next++;
    if (!this.#device) return number;
    seal(block, number, kind);
    this.#waiting.push(block.bytes);
    return number;
  }

  /** There is enough to `write` what waits. */
  get full(): boolean {
    return this.#waiting.length >= RUN;
  }

  /** Flushes nothing. */
  async write(): Promise<void> {
    while (this.#waiting.length > 0) {
      const part = this.#waiting.splice(0, RUN);
      for (const [i, block] of part.entries()) this.#buffer.set(block, i * BLOCK_BYTES);
      const at = bytes((1 + this.#filled) * BLOCK_BYTES);
      const wait = this.#device?.write(at, this.#buffer, 0, part.length * BLOCK_BYTES);
      if (wait) await wait;
      this.#filled += part.length;
    }
  }
}

/** A B-tree whose keys come in order: nodes are full but for the last two of a level, which share what they have. */
export class TreeWriter {
  readonly #out: BlockWriter;
  readonly #leaf: boolean;
  readonly #size: number;
  #before: BlockData | undefined;
  #node: BlockData;
  #parent: TreeWriter | undefined;

  /** Of values of `size` bytes. */
  constructor(out: BlockWriter, size: number, leaf = true) {
    this.#out = out;
    this.#leaf = leaf;
    this.#size = size;
    this.#node = this.#empty();
  }

  #empty(): BlockData {
    const block = blockData();
    node.format(block, this.#leaf, this.#size);
    return block;
  }

  /** `value` is copied. */
  add(key: number, value: Uint8Array): void {
    if (node.nr(this.#node) === node.max(this.#node)) {
      if (this.#before) this.#put(this.#before);
      this.#before = this.#node;
      this.#node = this.#empty();
    }
    const i = node.nr(this.#node);
    node.setNr(this.#node, i + 1);
    node.setKey(this.#node, i, key);
    this.#node.bytes.set(value, node.valueAt(this.#node, i));
  }

  /** Returns the root. */
  finish(): number {
    if (!this.#before) return this.#out.put(this.#node, NODE);
    const all = node.nr(this.#before) + node.nr(this.#node);
    shift(this.#before, this.#node, node.nr(this.#before) - Math.ceil(all / 2));
    this.#put(this.#before);
    this.#put(this.#node);
    return this.#parent!.finish();
  }

  #put(block: BlockData): void {
    const key = node.key(block, 0);
    this.#parent ??= new TreeWriter(this.#out, CHILD, false);
    this.#parent.add(key, numberValue(this.#out.put(block, NODE)));
  }
}

/** A number as the value of a tree. Not in shared memory: to add it may be to add another one further up first. */
export function numberValue(number: number): Uint8Array {
  const value = new Uint8Array(CHILD);
  u64.set(new DataView(value.buffer), 0, number);
  return value;
}

const count = new DataView(new ArrayBuffer(4));
const entry = new DataView(new ArrayBuffer(diskIndexEntry.size));

/** The space map of data of which `counts` were counted. */
export async function writeDataMap(out: BlockWriter, nrBlocks: number, counts: Counts): Promise<SpaceMapRoot> {
  const many = new TreeWriter(out, 4);
  for (const [block, owners] of counts.entries()) {
    if (owners < MANY) continue;
    count.setUint32(0, owners, true);
    many.add(block, new Uint8Array(count.buffer));
    if (out.full) await out.write();
  }
  const refCountRoot = many.finish();
  const index = new TreeWriter(out, diskIndexEntry.size);
  let nrAllocated = 0;
  for (let begin = 0; begin < nrBlocks; begin += ENTRIES) {
    const { allocated, ...found } = putBitmap(out, Math.min(ENTRIES, nrBlocks - begin), (i) => counts.get(begin + i));
    nrAllocated += allocated;
    diskIndexEntry.set(entry, 0, found);
    index.add(begin / ENTRIES, new Uint8Array(entry.buffer));
    if (out.full) await out.write();
  }
  return { nrBlocks, nrAllocated, bitmapRoot: index.finish(), refCountRoot };
}

/** The space map of the metadata itself, as the last thing: every block that was written has one owner. Throws ENOSPC. */
export function writeMetadataMap(out: BlockWriter, nrBlocks: number, name: string): SpaceMapRoot {
  const bitmaps = Math.ceil(nrBlocks / ENTRIES);
  const refCountRoot = new TreeWriter(out, 4).finish();
  // The bitmaps and the index, too.
  const used = out.count + bitmaps + 1;
  if (used > nrBlocks)
    throw new DmError(
      'METADATA_NO_SPACE',
      'ENOSPC',
      `The metadata needs ${used} blocks of 4096 bytes, and ${name} has room for ${nrBlocks}`,
      { hint: 'take a larger one: dmkit thin metadata-size says how large' },
    );
  const index = blockData();
  for (let i = 0; i < bitmaps; i++) {
    const begin = i * ENTRIES;
    const { allocated, ...found } = putBitmap(out, Math.min(ENTRIES, nrBlocks - begin), (j) =>
      begin + j < used ? 1 : 0,
    );
    diskIndexEntry.set(index.view, INDEX_AT + i * diskIndexEntry.size, found);
  }
  return { nrBlocks, nrAllocated: used, bitmapRoot: out.put(index, INDEX), refCountRoot };
}

function putBitmap(out: BlockWriter, entries: number, owners: (i: number) => number) {
  const bitmap = blockData();
  let allocated = 0;
  let noneFreeBefore = -1;
  for (let i = 0; i < entries; i++) {
    const found = owners(i);
    if (found > 0) {
      allocated++;
      setCount(bitmap, i, Math.min(found, MANY));
    } else if (noneFreeBefore < 0) noneFreeBefore = i;
  }
  if (noneFreeBefore < 0) noneFreeBefore = entries;
  // As the kernel counts: all that a bitmap has room for.
  return { blocknr: out.put(bitmap, BITMAP), nrFree: ENTRIES - allocated, noneFreeBefore, allocated };
}
