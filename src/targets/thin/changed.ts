/** Where a thin device shows something other than what it was made from, by what is mapped. */
import type { ChangedExtent } from '../../device/block-device.ts';
import type { Run } from '../../stores/thin/trees.ts';
import { type Bytes, bytes } from '../../units.ts';
import type { Pool } from './pool.ts';

/** One answer. */
const EXTENTS_MAX = 1024;

/**
 * Compares the thin device `id` with `other`, both in use, or else with what is below it: blocks that lead elsewhere, or that only one
 * has. In order; the last ones may be left out. `at` and `length` in bytes.
 */
export async function changedBetween(
  pool: Pool,
  id: number,
  other: number | undefined,
  at: Bytes,
  length: number,
): Promise<ChangedExtent[]> {
  const size = pool.blockBytes;
  const end = at + length;
  const [begin, stop] = [Math.floor(at / size), Math.ceil(end / size)];
  const found: ChangedExtent[] = [];
  const [a, b] = [new Cursor(pool, id, stop), other === undefined ? undefined : new Cursor(pool, other, stop)];
  for (let block = begin; block < stop && found.length < EXTENTS_MAX; ) {
    await a.seek(block);
    await b?.seek(block);
    const next = Math.min(a.edge(block), b?.edge(block) ?? stop);
    const changed = a.at(block) !== (b?.at(block) ?? -1);
    const count = Math.min(next * size, end) - Math.max(block * size, at);
    const last = found.at(-1);
    if (last?.changed === changed) last.length = bytes(last.length + count);
    else found.push({ length: bytes(count), changed });
    block = next;
  }
  return found;
}

/** Goes along the mappings of one device. */
class Cursor {
  readonly #pool: Pool;
  readonly #id: number;
  readonly #stop: number;
  #run: Run | undefined;
  #known = 0;

  constructor(pool: Pool, id: number, stop: number) {
    this.#pool = pool;
    this.#id = id;
    this.#stop = stop;
  }

  async seek(block: number): Promise<void> {
    if (block < this.#known) return;
    this.#run = await this.#pool.metadata.nextRun(this.#id, block, this.#stop);
    this.#known = this.#run ? this.#run.begin + this.#run.count : this.#stop;
  }

  /** Where what is at `block` ends. */
  edge(block: number): number {
    return this.#run && block < this.#run.begin ? this.#run.begin : this.#known;
  }

  /** The data block there; -1: none. */
  at(block: number): number {
    if (!this.#run || block < this.#run.begin) return -1;
    return this.#run.block + block - this.#run.begin;
  }
}
