/** What every device of a stack must show. The disks and tables are the stack's; this can be copied at any moment. */
import type { Image } from './image.ts';

/** The table of the device `base`: a merge that pauses is a plain snapshot over the same store. */
export type BaseTable = 'snapshot-origin' | 'snapshot-merge' | 'snapshot';

export class Model {
  /** What `base` shows: the origin's image, and from the handover to a merge on that of the snapshot merged. */
  base: Image;
  table: BaseTable = 'snapshot-origin';
  /** The COW device whose snapshot is being merged. */
  merging: number | undefined;
  /** The snapshots' images, by COW device. */
  readonly slots: (Image | undefined)[];
  /** While a revert runs: what the snapshot shows instead, as a whole. */
  readonly reverted = new Map<number, Image>();
  /** COW devices with the store of a snapshot that is gone. */
  readonly used: Set<number>;

  constructor(base: Image, slots: (Image | undefined)[], used = new Set<number>()) {
    this.base = base;
    this.slots = slots;
    this.used = used;
  }

  clone(): Model {
    const slots = this.slots.map((image) => image?.clone());
    const copy = new Model(this.base.clone(), slots, new Set(this.used));
    copy.table = this.table;
    copy.merging = this.merging;
    for (const [slot, image] of this.reverted) copy.reverted.set(slot, image.clone());
    return copy;
  }

  image(name: string): Image {
    return name === 'base' ? this.base : this.slots[slotOf(name)]!;
  }

  /** COW devices of live snapshots. */
  taken(): number[] {
    return [...this.slots.keys()].filter((slot) => this.slots[slot]);
  }

  free(): number[] {
    return [...this.slots.keys()].filter((slot) => !this.slots[slot] && slot !== this.merging);
  }

  names(): string[] {
    return ['base', ...this.taken().map((slot) => `s${slot}`)];
  }

  /** `base` has become the snapshot: the origin's own image is gone. */
  merge(slot: number): void {
    this.base = this.slots[slot]!;
    this.slots[slot] = undefined;
    this.merging = slot;
    this.table = 'snapshot-merge';
  }

  merged(): void {
    this.used.add(this.merging!);
    this.merging = undefined;
    this.table = 'snapshot-origin';
  }

  drop(slot: number): void {
    this.slots[slot] = undefined;
    this.used.add(slot);
  }
}

export const slotOf = (name: string) => Number(name.slice(1));
