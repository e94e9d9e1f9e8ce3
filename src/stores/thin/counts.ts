/** Reference counts of up to 2^40 blocks, of which few are counted or most: a byte for each in pages that come as needed. */
const PAGE = 65536;
/** What does not fit into a byte is kept apart. */
const BYTE_MAX = 255;

export class Counts {
  readonly #pages = new Map<number, Uint8Array>();
  readonly #large = new Map<number, number>();

  get(block: number): number {
    const count = this.#pages.get(Math.floor(block / PAGE))?.[block % PAGE] ?? 0;
    return count === BYTE_MAX ? this.#large.get(block)! : count;
  }

  /** Counts one more; returns the count. */
  add(block: number): number {
    const index = Math.floor(block / PAGE);
    let page = this.#pages.get(index);
    if (!page) this.#pages.set(index, (page = new Uint8Array(PAGE)));
    const count = this.get(block) + 1;
    page[block % PAGE] = Math.min(count, BYTE_MAX);
    if (count >= BYTE_MAX) this.#large.set(block, count);
    return count;
  }

  /** Visits what was counted, in order. */
  *entries(): Generator<[block: number, count: number]> {
    for (const index of [...this.#pages.keys()].sort((a, b) => a - b)) {
      const page = this.#pages.get(index)!;
      for (let i = 0; i < PAGE; i++) if (page[i] > 0) yield [index * PAGE + i, this.get(index * PAGE + i)];
    }
  }
}
