/** The trees of a pool's metadata, and what their values lead to (Linux `dm-thin-metadata.c`). */
import { DmError, FormatError } from '../../errors.ts';
import * as node from '../../formats/pdata/node.ts';
import { diskDetails, MAPPING_BYTES, mappedBlock, mappedTime, setMapping } from '../../formats/thin/values.ts';
import { type Block, Numbers } from '../pdata/blocks.ts';
import { Btree } from '../pdata/btree.ts';
import type { DataSpaceMap } from '../pdata/data-space-map.ts';
import type { Transaction } from '../pdata/transaction.ts';
import { childBytes, eachRun, type ValueType } from '../pdata/value-type.ts';

/** Consecutive virtual blocks that are mapped to consecutive data blocks. */
export interface Run {
  begin: number;
  block: number;
  count: number;
  shared: boolean;
}

/** Blocks of a run that is found at once. */
const RUN_MAX = 16384;

const mappingValue = new Uint8Array(MAPPING_BYTES);
const mappingView = new DataView(mappingValue.buffer);

export class Trees {
  /** From device and virtual block to where it is mapped. */
  readonly mappings: Btree;
  /** The upper level of that alone: from device to the root of its own tree. */
  readonly roots: Btree;
  /** The lower level alone, of one device. */
  readonly device: Btree;
  readonly details: Btree;
  readonly #transaction: Transaction;
  /** Of mappings and details. */
  readonly #numbers = new Numbers(2);
  /** What the last `removeRange` has removed. */
  removed = 0;

  constructor(transaction: Transaction, data: DataSpaceMap) {
    this.#transaction = transaction;
    const { spaceMap } = transaction;
    const inc = (begin: number, end: number) => data.inc(begin, end);
    const dec = (begin: number, end: number) => data.dec(begin, end);
    const mapping: ValueType = {
      size: MAPPING_BYTES,
      inc: (leaf, first, count) => eachRun(leaf, first, count, blockAt, inc),
      dec: (leaf, first, count) => eachRun(leaf, first, count, blockAt, dec),
      equal: (leaf, i, value) => blockAt(leaf, i) === mappedBlock(viewOf(value), 0),
    };
    this.mappings = new Btree(transaction, 2, mapping);
    this.device = new Btree(transaction, 1, mapping);
    this.roots = new Btree(transaction, 1, {
      size: node.CHILD,
      inc: (leaf, first, count) => {
        for (let i = first; i < first + count; i++) spaceMap.inc(node.child(leaf, i), node.child(leaf, i) + 1);
      },
      dec: (leaf, first, count) => {
        for (let i = first; i < first + count; i++) this.device.delete(node.child(leaf, i));
      },
    });
    this.details = new Btree(transaction, 1, { size: diskDetails.size });
  }

  /** Of the mapping tree. */
  get root(): number {
    return this.#numbers.numbers[0];
  }

  set root(number: number) {
    this.#transaction.blocks.change(this.#numbers);
    this.#numbers.numbers[0] = number;
  }

  get detailsRoot(): number {
    return this.#numbers.numbers[1];
  }

  set detailsRoot(number: number) {
    this.#transaction.blocks.change(this.#numbers);
    this.#numbers.numbers[1] = number;
  }

  /** Root of a device's own tree. ENODATA. */
  deviceRoot(id: number): number {
    if (!this.roots.find(this.root, id)) throw unknown(id);
    return node.child(this.roots.leaf, this.roots.index);
  }

  setDeviceRoot(id: number, root: number): void {
    this.root = this.roots.insert(this.root, [id], childBytes(root));
  }

  /** Maps a virtual block. True if nothing was mapped there. */
  insert(id: number, virtual: number, block: number, time: number): boolean {
    setMapping(mappingView, 0, block, time);
    this.root = this.mappings.insert(this.root, [id, virtual], mappingValue);
    return this.mappings.inserted;
  }

  /** Unmaps virtual blocks from `begin` up to `end`, about `most` at most; returns where to go on. Sets `removed`. */
  removeRange(id: number, begin: number, end: number, most: number): number {
    const { device, roots } = this;
    let root = this.deviceRoot(id);
    // The tree stays while its entry is away.
    this.#transaction.spaceMap.inc(root, root + 1);
    this.root = roots.remove(this.root, id);
    this.removed = 0;
    let from = begin;
    while (from < end) {
      const first = device.next(root, from) ? node.key(device.leaf, device.index) : end;
      from = Math.max(from, Math.min(first, end));
      if (first >= end || this.removed >= most) break;
      root = device.removeLeaves(root, first, end, most - this.removed);
      if (device.removed === 0)
        throw new FormatError('METADATA_TREE', 'EILSEQ', `Virtual block ${first} of device ${id} cannot be removed`);
      this.removed += device.removed;
      from = device.reached;
    }
    this.setDeviceRoot(id, root);
    return from;
  }

  /** The first run in the virtual blocks from `begin` up to `end`. What was mapped before `snapshotted` is shared. */
  nextRun(id: number, begin: number, end: number, snapshotted: number): Run | undefined {
    const { device } = this;
    const root = this.deviceRoot(id);
    let run: Run | undefined;
    for (let from = begin; from < end && device.next(root, from); from = run!.begin + run!.count) {
      const { leaf } = device;
      for (let i = device.index; i < node.nr(leaf); i++) {
        const virtual = node.key(leaf, i);
        if (virtual >= end) return run;
        const at = node.valueAt(leaf, i);
        const block = mappedBlock(leaf.view, at);
        const shared = snapshotted > mappedTime(leaf.view, at);
        if (!run) run = { begin: virtual, block, count: 1, shared };
        else if (continues(run, virtual, block, shared) && run.count < RUN_MAX) run.count++;
        else return run;
      }
    }
    return run;
  }
}

const continues = (run: Run, virtual: number, block: number, shared: boolean): boolean =>
  virtual === run.begin + run.count && block === run.block + run.count && shared === run.shared;

export const unknown = (id: number) => new DmError('THIN_NO_DEVICE', 'ENODATA', `There is no thin device ${id}`);

const blockAt = (leaf: Block, i: number): number => mappedBlock(leaf.view, node.valueAt(leaf, i));

const viewOf = (value: Uint8Array): DataView => new DataView(value.buffer, value.byteOffset, value.byteLength);
