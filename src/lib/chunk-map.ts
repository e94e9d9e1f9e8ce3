/**
 * Old chunk to new chunk, for tens of millions of exceptions: an open-addressed table in typed arrays, 8 bytes a slot
 * while both numbers stay below 2^32 and 10 above, at most 23 and 29 bytes an entry (just after a growth), about 12
 * when full.
 *
 * Chunks that lie side by side on the disk lie side by side in the table (only the number above the low four bits is
 * hashed), so that a sequential request misses the processor's cache once in sixteen chunks.
 *
 * Numbers are integers from 0 up to MAX_CHUNK. The table never gets smaller.
 */

/** Largest chunk number the table holds: 2^40 - 2 chunks, 4 PiB of the smallest useful chunks. */
export const MAX_CHUNK = 2 ** 40 - 2;

const SMALLEST = 64;
const LOAD = 0.7;

export class ChunkMap {
  #keys = new Uint32Array(SMALLEST);
  /** Value plus one; all zero bits mean that the slot is free. */
  #values = new Uint32Array(SMALLEST);
  /** High eight bits of the key (low byte) and of the value plus one (high byte); absent while none is needed. */
  #high: Uint16Array | undefined;
  #mask = SMALLEST - 1;
  #size = 0;
  #limit = Math.floor(SMALLEST * LOAD);

  get size(): number {
    return this.#size;
  }

  /** Bytes of memory held by the table. */
  get memory(): number {
    return this.#keys.byteLength + this.#values.byteLength + (this.#high?.byteLength ?? 0);
  }

  /** The new chunk of `key`, or -1. */
  get(key: number): number {
    const high = this.#high;
    if (high) return this.#getWide(key, high);
    if (key > 0xffffffff) return -1;
    const keys = this.#keys;
    const values = this.#values;
    const mask = this.#mask;
    for (let slot = hash(key) & mask; ; slot = (slot + 1) & mask) {
      const value = values[slot];
      if (value === 0) return -1;
      if (keys[slot] === key) return value - 1;
    }
  }

  #getWide(key: number, high: Uint16Array): number {
    const low = key >>> 0;
    const top = Math.floor(key / 2 ** 32);
    const mask = this.#mask;
    for (let slot = hash(key) & mask; ; slot = (slot + 1) & mask) {
      const bits = high[slot];
      const value = this.#values[slot] + (bits >>> 8) * 2 ** 32;
      if (value === 0) return -1;
      if (this.#keys[slot] === low && (bits & 0xff) === top) return value - 1;
    }
  }

  /** Adds `key`, unless it is there already: then nothing changes and false is returned. */
  add(key: number, value: number): boolean {
    if (key > MAX_CHUNK || value > MAX_CHUNK) throw new RangeError(`chunk ${Math.max(key, value)} is out of range`);
    if (!this.#high && (key > 0xffffffff || value >= 0xffffffff)) this.#high = new Uint16Array(this.#keys.length);
    if (this.#size >= this.#limit) this.#grow();
    if (!this.#insert(key, value + 1)) return false;
    this.#size++;
    return true;
  }

  #insert(key: number, stored: number): boolean {
    const keys = this.#keys;
    const values = this.#values;
    const high = this.#high;
    const mask = this.#mask;
    const low = key >>> 0;
    const top = Math.floor(key / 2 ** 32);
    let slot = hash(key) & mask;
    for (; values[slot] !== 0 || (high && high[slot] >>> 8 !== 0); slot = (slot + 1) & mask) {
      if (keys[slot] === low && (!high || (high[slot] & 0xff) === top)) return false;
    }
    keys[slot] = low;
    values[slot] = stored >>> 0;
    if (high) high[slot] = top | (Math.floor(stored / 2 ** 32) << 8);
    return true;
  }

  /** Removes `key`; false if it is not there. */
  delete(key: number): boolean {
    const mask = this.#mask;
    let hole = hash(key) & mask;
    while (this.#keyAt(hole) !== key) {
      if (this.#isFree(hole)) return false;
      hole = (hole + 1) & mask;
    }
    if (this.#isFree(hole)) return false;
    // A search ends at a free slot: what was put behind this one for want of room moves up.
    for (let slot = (hole + 1) & mask; !this.#isFree(slot); slot = (slot + 1) & mask) {
      const home = hash(this.#keyAt(slot)) & mask;
      if (((slot - home) & mask) < ((slot - hole) & mask)) continue;
      this.#keys[hole] = this.#keys[slot];
      this.#values[hole] = this.#values[slot];
      if (this.#high) this.#high[hole] = this.#high[slot];
      hole = slot;
    }
    this.#keys[hole] = 0;
    this.#values[hole] = 0;
    if (this.#high) this.#high[hole] = 0;
    this.#size--;
    return true;
  }

  #isFree(slot: number): boolean {
    return this.#values[slot] === 0 && (!this.#high || this.#high[slot] >>> 8 === 0);
  }

  #keyAt(slot: number): number {
    return this.#keys[slot] + (this.#high ? (this.#high[slot] & 0xff) * 2 ** 32 : 0);
  }

  #grow(): void {
    const keys = this.#keys;
    const values = this.#values;
    const high = this.#high;
    const slots = keys.length * 2;
    this.#keys = new Uint32Array(slots);
    this.#values = new Uint32Array(slots);
    this.#high = high && new Uint16Array(slots);
    this.#mask = slots - 1;
    this.#limit = Math.floor(slots * LOAD);
    for (let slot = 0; slot < keys.length; slot++) {
      const bits = high ? high[slot] : 0;
      const stored = values[slot] + (bits >>> 8) * 2 ** 32;
      if (stored !== 0) this.#insert(keys[slot] + (bits & 0xff) * 2 ** 32, stored);
    }
  }

  /** Visits every entry, in no order. */
  each(visit: (key: number, value: number) => void): void {
    for (let slot = 0; slot < this.#keys.length; slot++) {
      const bits = this.#high ? this.#high[slot] : 0;
      const stored = this.#values[slot] + (bits >>> 8) * 2 ** 32;
      if (stored !== 0) visit(this.#keys[slot] + (bits & 0xff) * 2 ** 32, stored - 1);
    }
  }
}

/** Mixes the number of the run of sixteen (twice, so that strides of powers of two spread too) and keeps the place in it. */
function hash(key: number): number {
  let run = key >>> 4;
  if (key > 0xffffffff) run ^= Math.imul(Math.floor(key / 2 ** 32), 0x27d4eb2f);
  run = Math.imul(run ^ (run >>> 15), 0x9e3779b1);
  run = Math.imul(run ^ (run >>> 13), 0x85ebca6b);
  return ((run ^ (run >>> 16)) << 4) | (key & 15);
}
