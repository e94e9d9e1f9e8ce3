/**
 * What one image may hold, sector by sector: the last write while the power is on; after a power cut the last write that
 * a flush covered, or any begun since. A write is known by its stamp.
 */
export class Image {
  /** The write that a flush covered last, and those begun since, in order. Replaced, never changed in place. */
  readonly #versions: (readonly number[])[];
  /** Sectors of which the newest version is in flight, or was refused: the newest write that is certain. */
  readonly #certain: Map<number, number>;
  /** Sectors that the snapshot reads from its origin, whose flush is not its own: the write found there. */
  readonly #shared: Map<number, number>;
  /** Sectors with a write in flight. */
  readonly busy = new Set<number>();
  /** Old chunks with an exception, for the rules of discard. */
  readonly mapped: Set<number>;

  private constructor(
    versions: (readonly number[])[],
    certain = new Map<number, number>(),
    shared = new Map<number, number>(),
    mapped = new Set<number>(),
  ) {
    this.#versions = versions;
    this.#certain = certain;
    this.#shared = shared;
    this.mapped = mapped;
  }

  static of(stamps: readonly number[]): Image {
    return new Image(stamps.map((stamp) => [stamp]));
  }

  clone(): Image {
    return new Image(this.#versions.slice(), new Map(this.#certain), new Map(this.#shared), new Set(this.mapped));
  }

  last(sector: number): number {
    const versions = this.#versions[sector];
    return versions[versions.length - 1];
  }

  /** A write has begun, or has put zeroes there at once. */
  begin(sector: number, stamp: number): void {
    if (!this.#certain.has(sector)) this.#certain.set(sector, this.last(sector));
    this.#versions[sector] = [...this.#versions[sector], stamp];
    this.busy.add(sector);
  }

  /** A write was acknowledged, or refused (`ok` false): then any part of it may be there. */
  end(sector: number, ok: boolean): void {
    this.busy.delete(sector);
    if (ok) this.#certain.delete(sector);
  }

  /** What a flush that begins now makes durable, sector by sector. */
  covered(): number[] {
    return this.#versions.map((versions, s) => {
      const stamp = this.#certain.get(s) ?? this.last(s);
      return stamp === this.#shared.get(s) ? versions[0] : stamp;
    });
  }

  /** A flush was acknowledged. */
  flushed(covered: readonly number[]): void {
    covered.forEach((stamp, s) => {
      const index = this.#versions[s].indexOf(stamp);
      if (index > 0) this.#versions[s] = this.#versions[s].slice(index);
    });
  }

  /** What a reader may find while the power is on. */
  isLive(sector: number, stamp: number): boolean {
    const versions = this.#versions[sector];
    const certain = this.#certain.get(sector);
    if (certain === undefined) return stamp === versions[versions.length - 1];
    return versions.lastIndexOf(stamp) >= versions.indexOf(certain);
  }

  isPossible(sector: number, stamp: number): boolean {
    return this.#versions[sector].includes(stamp);
  }

  possible(sector: number): readonly number[] {
    return this.#versions[sector];
  }

  /** This is what the sector holds, now and after any power cut. */
  found(sector: number, stamp: number): void {
    this.#versions[sector] = [stamp];
    this.#certain.delete(sector);
    this.#shared.delete(sector);
    this.busy.delete(sector);
  }

  /** The same, but what the origin held before may come back when the power goes. */
  foundUnflushed(sector: number, stamp: number): void {
    const others = this.#versions[sector].filter((other) => other !== stamp);
    this.found(sector, stamp);
    this.#versions[sector] = [...others, stamp];
    this.#shared.set(sector, stamp);
  }
}
