/** An error that one disk gives for a while: to operations of some kinds, everywhere or in a bad area, once or until it is repaired. */
import type { Operation } from '../../../src/device/simulated.ts';
import type { Errno } from '../../../src/errors.ts';
import type { Prng } from '../../../src/lib/prng.ts';
import { SECTOR } from '../../../src/units.ts';

type Kind = Operation['kind'];

const KINDS: readonly Kind[][] = [
  ['read'],
  ['write', 'zero'],
  ['flush'],
  ['write', 'zero', 'flush'],
  ['read', 'write', 'zero', 'flush'],
];

export class Fault {
  readonly disk: string;
  readonly errno: Errno;
  readonly #kinds: readonly Kind[];
  /** Sectors, the second not included. */
  readonly #from: number;
  readonly #to: number;
  /** Operations that still pass, and those that fail then. */
  #passing: number;
  #failing: number;

  constructor(random: Prng, disk: string, sectors: number) {
    this.disk = disk;
    this.#kinds = random.pick(KINDS);
    this.errno = this.#kinds.includes('read') || random.chance(0.5) ? 'EIO' : 'ENOSPC';
    this.#from = random.chance(0.5) ? 0 : random.below(sectors);
    this.#to = this.#from === 0 ? sectors : this.#from + 1 + random.below(4);
    this.#passing = random.below(6);
    this.#failing = random.pick([1, 2, 6, 1000]);
  }

  hits(disk: string, kind: Kind, at: number, length: number): boolean {
    if (disk !== this.disk || !this.#kinds.includes(kind)) return false;
    if (kind !== 'flush' && (at >= this.#to * SECTOR || at + length <= this.#from * SECTOR)) return false;
    if (this.#passing-- > 0) return false;
    return this.#failing-- > 0;
  }

  toString(): string {
    const where =
      this.#kinds.includes('flush') && this.#kinds.length === 1 ? '' : `, sectors ${this.#from} to ${this.#to - 1}`;
    return `${this.disk}: ${this.#kinds.join(', ')}${where}: ${this.errno}, after ${this.#passing}, ${this.#failing} times`;
  }
}
