/**
 * Reads the metadata of a thin pool as it was at a commit, from left to right, with one path of a tree in memory: what
 * tools that list, dump and compare are made of. Takes nothing for granted: what is out of order is refused.
 */
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError, FormatError } from '../../errors.ts';
import { BLOCK_BYTES, type BlockData, blockData, type Kind } from '../../formats/pdata/block.ts';
import * as node from '../../formats/pdata/node.ts';
import { NODE } from '../../formats/pdata/node.ts';
import { diskSuperblock, MAGIC, SUPERBLOCK, VERSION } from '../../formats/thin/superblock.ts';
import { diskDetails, MAPPING_BYTES, mappedBlock, mappedTime } from '../../formats/thin/values.ts';
import { bytes } from '../../units.ts';
import { checkBlock } from '../pdata/blocks.ts';

/** As much of a device as reading needs. */
export type Readable = Pick<BlockDevice, 'name' | 'size' | 'read'>;

export type ThinSuperblock = ReturnType<typeof diskSuperblock.get>;

export interface ThinDevice extends ReturnType<typeof diskDetails.get> {
  readonly id: number;
  /** Of its mappings. */
  readonly root: number;
}

/** Virtual blocks and data blocks that go on side by side, mapped at the same time. */
export interface Run {
  readonly virtual: number;
  readonly data: number;
  length: number;
  readonly time: number;
}

/** Told what is damaged and therefore left out. */
export type Lost = (what: string) => void;

export interface ReadOptions {
  /** The metadata snapshot. */
  held?: boolean;
  /** Damage is told and left out, where it is refused else. */
  lost?: Lost;
}

/** Whether a node is one of them. */
export type NodeSet = (number: number) => boolean;

export interface RunOptions {
  anyTime?: boolean;
  except?: NodeSet;
}

export class MetadataReader {
  readonly superblock: ThinSuperblock;
  readonly #device: Readable;
  readonly #lost: Lost | undefined;

  private constructor(device: Readable, superblock: ThinSuperblock, lost: Lost | undefined) {
    this.#device = device;
    this.superblock = superblock;
    this.#lost = lost;
  }

  /**
   * The pool as of its last commit, or as of its metadata snapshot if it is to be the `held` one. Rejects: ENOTBLK or EILSEQ
   * (no metadata, or damaged), EINVAL (nothing held, or a version that is not known), or what the device says.
   */
  static async open(device: Readable, { held = false, lost }: ReadOptions = {}): Promise<MetadataReader> {
    if (device.size < BLOCK_BYTES) throw noMetadata(device);
    const superblock = await readSuperblock(device, 0);
    if (!held) return new MetadataReader(device, superblock, lost);
    if (superblock.heldRoot === 0) throw notHeld(device);
    return new MetadataReader(device, await readSuperblock(device, superblock.heldRoot), lost);
  }

  /** Devices by number. */
  async *devices(): AsyncGenerator<ThinDevice> {
    const roots = this.#roots(this.superblock.dataMappingRoot);
    let next = (await roots.next()).value;
    for await (const leaf of this.#leaves(this.superblock.deviceDetailsRoot, diskDetails.size)) {
      for (let i = 0; i < node.nr(leaf); i++) {
        const id = node.key(leaf, i);
        for (; next && next.id < id; next = (await roots.next()).value) yield this.#withoutDetails(next);
        if (next?.id === id) {
          yield this.#possible({ ...next, ...diskDetails.get(leaf.view, node.valueAt(leaf, i)) });
          next = (await roots.next()).value;
        } else this.#damaged(this.#error(`Thin device ${id} of ${this.#device.name} has no mappings`));
      }
    }
    for (; next; next = (await roots.next()).value) yield this.#withoutDetails(next);
  }

  #possible(device: ThinDevice): ThinDevice {
    const { time } = this.superblock;
    const { id, creationTime, snapshottedTime } = device;
    if (!this.#lost || Math.max(creationTime, snapshottedTime) <= time) return device;
    this.#lost(
      `Thin device ${id} has times ${creationTime} and ${snapshottedTime}, after the pool's, which is ${time}`,
    );
    return { ...device, creationTime: Math.min(creationTime, time), snapshottedTime: time };
  }

  /** As if a snapshot had been taken just now: all it has counts as shared, and nothing is overwritten in place. */
  #withoutDetails({ id, root }: { id: number; root: number }): ThinDevice {
    this.#damaged(this.#error(`Thin device ${id} of ${this.#device.name} has no details`));
    return { id, root, mappedBlocks: 0, transactionId: 0n, creationTime: 0, snapshottedTime: this.superblock.time };
  }

  /** Rejects with ENODATA. */
  async device(id: number): Promise<ThinDevice> {
    for await (const device of this.devices()) if (device.id === id) return device;
    throw new DmError('THIN_NO_DEVICE', 'ENODATA', `There is no thin device ${id} in ${this.#device.name}`, {
      hint: 'list them with `dmkit thin ls`',
    });
  }

  /**
   * What a device has mapped, in order, a leaf at a time. With `anyTime` runs go on where only the time differs; `except` is left
   * out.
   */
  async *runs({ root }: ThinDevice, { anyTime = false, except }: RunOptions = {}): AsyncGenerator<Run[]> {
    let run: Run | undefined;
    for await (const leaf of this.#leaves(root, MAPPING_BYTES, except)) {
      const complete: Run[] = [];
      for (let i = 0; i < node.nr(leaf); i++) {
        const at = node.valueAt(leaf, i);
        const virtual = node.key(leaf, i);
        const data = mappedBlock(leaf.view, at);
        const time = mappedTime(leaf.view, at);
        if (this.#lost && (data >= this.superblock.dataSpaceMap.nrBlocks || time > this.superblock.time)) {
          this.#lost(`Virtual block ${virtual} is mapped to data block ${data} at ${time}, which cannot be`);
          continue;
        }
        if (
          run &&
          run.virtual + run.length === virtual &&
          run.data + run.length === data &&
          (anyTime || run.time === time)
        )
          run.length++;
        else {
          if (run) complete.push(run);
          run = { virtual, data, length: 1, time };
        }
      }
      if (complete.length > 0) yield complete;
    }
    if (run) yield [run];
  }

  /** The topmost nodes that belong to the mappings of both devices. Of leaves it reads one of each device. */
  async sharedNodes(left: ThinDevice, right: ThinDevice): Promise<NodeSet> {
    const owners = new Uint8Array(Math.floor(this.#device.size / BLOCK_BYTES));
    await this.#markNodes(left.root, owners, 1);
    await this.#markNodes(right.root, owners, 2);
    return (number) => owners[number] === 3;
  }

  async #markNodes(root: number, owners: Uint8Array, bit: number): Promise<void> {
    const enter = (number: number): boolean => {
      const before = owners[number];
      owners[number] |= bit;
      // All that is below one that the other device has belongs to both.
      return before === 0;
    };
    for (let level = enter(root) ? [root] : []; level.length > 0; ) {
      const below: number[] = [];
      for (const number of level) {
        const block = await readBlock(this.#device, number, NODE);
        // All leaves are as deep as the first one.
        if (node.isLeaf(block)) return;
        for (let i = 0; i < node.nr(block); i++) if (enter(node.child(block, i))) below.push(node.child(block, i));
      }
      level = below;
    }
  }

  async *#roots(top: number): AsyncGenerator<{ id: number; root: number }, undefined> {
    for await (const leaf of this.#leaves(top, node.CHILD))
      for (let i = 0; i < node.nr(leaf); i++) yield { id: node.key(leaf, i), root: node.child(leaf, i) };
    return undefined;
  }

  /** The leaves of a tree whose values have `size` bytes, but for those below or among `except`. */
  async *#leaves(root: number, size: number, except?: NodeSet): AsyncGenerator<BlockData> {
    /** Nodes that have been entered; a tree has none of them twice. */
    const entered = new Set<number>();
    const path: { block: BlockData; next: number; high: number }[] = [];
    let last = -1;
    let high = Number.POSITIVE_INFINITY;
    for (let number = root; ; ) {
      const block = except?.(number) ? undefined : await this.#node(number, size, last, high);
      if (block && node.isLeaf(block)) {
        if (node.nr(block) > 0) last = node.key(block, node.nr(block) - 1);
        yield block;
      } else if (block && entered.has(number))
        this.#damaged(this.#error(`${this.#where(number)} leads back to itself`));
      else if (block) {
        entered.add(number);
        path.push({ block, next: 0, high });
      }
      while (path.length > 0 && path[path.length - 1].next === node.nr(path[path.length - 1].block)) path.pop();
      const above = path.at(-1);
      if (!above) return;
      number = node.child(above.block, above.next++);
      high = above.next < node.nr(above.block) ? node.key(above.block, above.next) : above.high;
    }
  }

  /** A node that is what leads to it says; its keys, if it is a leaf, lie above `last` and below `high`. Undefined if it is lost. */
  async #node(number: number, size: number, last: number, high: number): Promise<BlockData | undefined> {
    try {
      const block = await readBlock(this.#device, number, NODE);
      const leaf = node.isLeaf(block);
      if (node.valueSize(block) !== (leaf ? size : node.CHILD))
        throw this.#error(`${this.#where(number)} has values of ${node.valueSize(block)} bytes`);
      // With another maximum than it was written with, its values would lie elsewhere.
      if (node.max(block) % 3 !== 0)
        throw this.#error(`${this.#where(number)} has room for ${node.max(block)} entries, no multiple of three`);
      for (let i = 0, before = last; leaf && i < node.nr(block); i++) {
        const key = node.key(block, i);
        if (key <= before || key >= high)
          throw this.#error(`${this.#where(number)} has key ${key} after ${before}, where ${high} ends it`);
        before = key;
      }
      return block;
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      this.#damaged(error);
      return undefined;
    }
  }

  #damaged(error: DmError): void {
    if (!this.#lost) throw error;
    this.#lost(error.message);
  }

  #where(number: number): string {
    return `The B-tree node ${number} of the metadata on ${this.#device.name}`;
  }

  #error(what: string): FormatError {
    return new FormatError('METADATA_TREE', 'EILSEQ', what, { hint: 'check it with `dmkit thin check`' });
  }
}

export const notHeld = ({ name }: Readable) =>
  new DmError('THIN_NOT_HELD', 'EINVAL', `The pool of ${name} has no metadata snapshot`, {
    hint: 'make one: dmsetup message POOL 0 reserve_metadata_snap',
  });

async function readSuperblock(device: Readable, number: number): Promise<ThinSuperblock> {
  const superblock = diskSuperblock.get((await readBlock(device, number, SUPERBLOCK)).view, 0);
  if (superblock.magic !== MAGIC) throw noMetadata(device);
  if (superblock.version !== VERSION || superblock.incompatFlags !== 0)
    throw new FormatError(
      'THIN_FEATURES',
      'EINVAL',
      `The metadata on ${device.name} has version ${superblock.version} and features 0x${superblock.incompatFlags.toString(16)}, which are not known`,
    );
  return superblock;
}

async function readBlock(device: Readable, number: number, kind: Kind): Promise<BlockData> {
  const data = blockData();
  if ((number + 1) * BLOCK_BYTES > device.size)
    throw new FormatError('METADATA_SIZE', 'EINVAL', `Block ${number} of the metadata lies beyond ${device.name}`, {
      hint: 'check it with `dmkit thin check`',
    });
  const wait = device.read(bytes(number * BLOCK_BYTES), data.bytes, 0, BLOCK_BYTES);
  if (wait) await wait;
  checkBlock(data, number, kind, device.name);
  return data;
}

const noMetadata = (device: Readable) =>
  new FormatError('THIN_MAGIC', 'EILSEQ', `There is no metadata of a thin pool on ${device.name}`, {
    hint: 'say what it holds: dmkit inspect FILE',
  });
