import { DmError } from '../../errors.ts';
import { diskDetails } from '../../formats/thin/values.ts';
import { type Trees, unknown } from './trees.ts';

/** A thin device that is open, or has changed since the last commit. */
export interface Device {
  readonly id: number;
  opened: number;
  changed: boolean;
  mappedBlocks: number;
  transactionId: bigint;
  creationTime: number;
  snapshottedTime: number;
}

const value = new Uint8Array(diskDetails.size);
const view = new DataView(value.buffer);

/** What is known of a pool's thin devices beside the tree of details, which a commit brings up to date. */
export class Devices {
  readonly #trees: Trees;
  /** The one that came last is the last. */
  readonly #records = new Map<number, Device>();

  constructor(trees: Trees) {
    this.#trees = trees;
  }

  get(id: number): Device | undefined {
    return this.#records.get(id);
  }

  /** One that is known, or read from the details, and then not kept. ENODATA. */
  find(id: number): Device {
    return this.#records.get(id) ?? this.#read(id);
  }

  #read(id: number): Device {
    const { details, detailsRoot } = this.#trees;
    if (!details.find(detailsRoot, id)) throw unknown(id);
    return { id, opened: 0, changed: false, ...diskDetails.get(details.leaf.view, details.valueAt) };
  }

  /** EEXIST. */
  checkNew(id: number): void {
    if (this.#records.has(id) || this.#trees.details.find(this.#trees.detailsRoot, id))
      throw new DmError('THIN_EXISTS', 'EEXIST', `Cannot create thin device ${id}: it exists`);
  }

  make(id: number, mappedBlocks: number, transactionId: bigint, time: number): void {
    const [creationTime, snapshottedTime] = [time, time];
    this.keep({ id, opened: 0, changed: true, mappedBlocks, transactionId, creationTime, snapshottedTime });
  }

  keep(device: Device): void {
    this.#records.set(device.id, device);
  }

  forget(id: number): void {
    this.#records.delete(id);
  }

  /** Puts those that have changed into the tree, the latest first. */
  write(): Device[] {
    const changed = [...this.#records.values()].reverse().filter((device) => device.changed);
    for (const device of changed) {
      diskDetails.set(view, 0, device);
      this.#trees.detailsRoot = this.#trees.details.insert(this.#trees.detailsRoot, [device.id], value);
    }
    return changed;
  }

  written(changed: readonly Device[]): void {
    for (const device of changed) {
      device.changed = false;
      if (device.opened === 0) this.forget(device.id);
    }
  }

  /** Open ones become what the tree says; one that was made since the last commit is known no more. */
  reload(): void {
    const opened = [...this.#records.values()].filter((device) => device.opened > 0);
    const { details, detailsRoot } = this.#trees;
    const there = opened.filter(({ id }) => details.find(detailsRoot, id)).map(({ id }) => this.#read(id));
    const counts = new Map(opened.map((device) => [device.id, device.opened]));
    this.#records.clear();
    for (const device of there) this.keep({ ...device, opened: counts.get(device.id)! });
  }
}
