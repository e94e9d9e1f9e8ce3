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

/** More than 2^40 entries need. */
const LEVELS_MAX = 64;

export class MetadataReader {
  readonly superblock: ThinSuperblock;
  readonly #device: Readable;

  private constructor(device: Readable, superblock: ThinSuperblock) {
    this.#device = device;
    this.superblock = superblock;
  }

  /**
   * The pool as of its last commit, or as of its metadata snapshot if it is to be the `held` one. Rejects: ENOTBLK or EILSEQ
   * (no metadata, or damaged), EINVAL (nothing held, or a version that is not known), or what the device says.
   */
  static async open(device: Readable, { held = false } = {}): Promise<MetadataReader> {
    if (device.size < BLOCK_BYTES) throw noMetadata(device);
    const superblock = await readSuperblock(device, 0);
    if (!held) return new MetadataReader(device, superblock);
    if (superblock.heldRoot === 0)
      throw new DmError('THIN_NOT_HELD', 'EINVAL', `The pool of ${device.name} has no metadata snapshot`, {
        hint: 'make one: dmsetup message POOL 0 reserve_metadata_snap',
      });
    return new MetadataReader(device, await readSuperblock(device, superblock.heldRoot));
  }

  /** Devices by number. */
  async *devices(): AsyncGenerator<ThinDevice> {
    const { deviceDetailsRoot, dataMappingRoot } = this.superblock;
    const roots = this.#roots(dataMappingRoot);
    for await (const leaf of this.#leaves(deviceDetailsRoot, diskDetails.size)) {
      for (let i = 0; i < node.nr(leaf); i++) {
        const id = node.key(leaf, i);
        const { value } = await roots.next();
        if (value?.id !== id) throw this.#notBoth(Math.min(value?.id ?? id, id));
        yield { id, root: value.root, ...diskDetails.get(leaf.view, node.valueAt(leaf, i)) };
      }
    }
    const { value } = await roots.next();
    if (value) throw this.#notBoth(value.id);
  }

  /** Rejects with ENODATA. */
  async device(id: number): Promise<ThinDevice> {
    for await (const device of this.devices()) if (device.id === id) return device;
    throw new DmError('THIN_NO_DEVICE', 'ENODATA', `There is no thin device ${id} in ${this.#device.name}`, {
      hint: 'list them with `dmkit thin ls`',
    });
  }

  /** What a device has mapped, in order, a leaf at a time. With `anyTime` runs go on where only the time differs. */
  async *runs({ root }: ThinDevice, { anyTime = false } = {}): AsyncGenerator<Run[]> {
    let run: Run | undefined;
    for await (const leaf of this.#leaves(root, MAPPING_BYTES)) {
      const complete: Run[] = [];
      for (let i = 0; i < node.nr(leaf); i++) {
        const at = node.valueAt(leaf, i);
        const virtual = node.key(leaf, i);
        const data = mappedBlock(leaf.view, at);
        const time = mappedTime(leaf.view, at);
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

  async *#roots(top: number): AsyncGenerator<{ id: number; root: number }, undefined> {
    for await (const leaf of this.#leaves(top, node.CHILD))
      for (let i = 0; i < node.nr(leaf); i++) yield { id: node.key(leaf, i), root: node.child(leaf, i) };
    return undefined;
  }

  /** The leaves of a tree whose values have `size` bytes. */
  async *#leaves(root: number, size: number): AsyncGenerator<BlockData> {
    const path: { block: BlockData; number: number; next: number }[] = [];
    let last = -1;
    let number = root;
    for (;;) {
      const block = await readBlock(this.#device, number, NODE);
      const leaf = node.isLeaf(block);
      const wrong = (what: string) =>
        new FormatError(
          'METADATA_TREE',
          'EILSEQ',
          `The B-tree node ${number} of the metadata on ${this.#device.name} ${what}`,
          { hint: 'check it with `dmkit thin check`' },
        );
      if (path.length > LEVELS_MAX) throw wrong('leads back to itself');
      if (node.valueSize(block) !== (leaf ? size : node.CHILD))
        throw wrong(`has values of ${node.valueSize(block)} bytes`);
      if (leaf) {
        for (let i = 0; i < node.nr(block); i++) {
          const key = node.key(block, i);
          if (key <= last) throw wrong(`has key ${key} after ${last}`);
          last = key;
        }
        yield block;
      } else path.push({ block, number, next: 0 });
      while (path.length > 0 && path[path.length - 1].next === node.nr(path[path.length - 1].block)) path.pop();
      const above = path.at(-1);
      if (!above) return;
      number = node.child(above.block, above.next++);
    }
  }

  #notBoth(id: number): FormatError {
    return new FormatError(
      'METADATA_TREE',
      'EILSEQ',
      `Thin device ${id} of ${this.#device.name} has only one of mappings and details`,
      { hint: 'check it with `dmkit thin check`' },
    );
  }
}

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
