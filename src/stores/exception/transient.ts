import type { BlockDevice } from '../../device/block-device.ts';
import { type Layout, layoutOf } from '../../formats/exception-store.ts';
import { ChunkMap } from '../../lib/chunk-map.ts';
import { type Sector, sector, toSectors } from '../../units.ts';
import type { Commit, ExceptionStore, Usage } from './store.ts';

/** Exceptions in memory only (`N`, Linux `dm-snap-transient.c`): chunk i of the COW device holds the i-th exception. */
export class TransientStore implements ExceptionStore {
  readonly persistent = false;
  readonly layout: Layout;
  valid = true;
  lastSettled = -1;
  #cow: BlockDevice;
  #completed = new ChunkMap();
  #oldOf = new Map<number, number>();
  #next = 0;

  constructor(cow: BlockDevice, chunkSize: Sector) {
    this.#cow = cow;
    this.layout = layoutOf(chunkSize);
  }

  get size(): number {
    return this.#completed.size;
  }

  /** There is nothing to survive: as durable as it will ever be. */
  get durableBelow(): number {
    return Number.POSITIVE_INFINITY;
  }

  lookup(oldChunk: number): number {
    return this.#completed.get(oldChunk);
  }

  allocate(oldChunk: number): number {
    if (toSectors(this.#cow.size) < (this.#next + 1) * this.layout.chunkSize) return -1;
    this.#oldOf.set(this.#next, oldChunk);
    return this.#next++;
  }

  settle(newChunk: number, ok: boolean): void {
    const oldChunk = this.#oldOf.get(newChunk)!;
    this.#oldOf.delete(newChunk);
    if (!ok) {
      if (newChunk === this.#next - 1) this.#next--;
      return;
    }
    this.#completed.add(oldChunk, newChunk);
    this.lastSettled = Math.max(this.lastSettled, newChunk);
  }

  commit(): Commit {
    return this.valid ? 'durable' : 'invalid';
  }

  async invalidate(): Promise<void> {
    this.valid = false;
  }

  async ended(): Promise<void> {}

  usage(): Usage {
    const allocated = sector(this.#next * this.layout.chunkSize);
    return { allocated, total: toSectors(this.#cow.size), metadata: sector(0) };
  }

  each(visit: (oldChunk: number, newChunk: number) => void): void {
    this.#completed.each(visit);
  }

  async reset(): Promise<void> {
    this.valid = true;
    this.#completed = new ChunkMap();
    this.#next = 0;
    this.lastSettled = -1;
  }
}
