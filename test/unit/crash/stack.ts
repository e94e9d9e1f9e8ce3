/**
 * An origin and its snapshots on simulated disks, driven by a seed, beside a model that knows for every sector of every
 * image what it may hold: exactly the last write while the power is on; after a power cut the last write that a flush
 * covered, or any written since.
 *
 * Every write fills its sectors with a stamp of its own, so that one look at a sector tells which write it came from.
 */
import { expect } from 'vitest';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.ts';
import { DmError } from '../../../src/errors.ts';
import { type Prng, prng } from '../../../src/lib/prng.ts';
import type { MappedDevice } from '../../../src/mapper/mapped-device.ts';
import { Mapper } from '../../../src/mapper/mapper.ts';
import { FakeDisks } from '../../../src/testing/fake-disks.ts';
import { bytes, SECTOR } from '../../../src/units.ts';

export interface StackOptions {
  seed: number;
  /** Sectors of the origin. */
  origin: number;
  /** Chunk sizes of the snapshots, in sectors, in the order in which they are taken. */
  chunks: number[];
  /** Sectors of each COW device; enough for every exception if absent. */
  cow?: number;
  /** Table words behind the chunk size. */
  store?: string;
  features?: string;
  slow?: number;
}

/** What one image may hold, sector by sector. */
class Image {
  /** The write that a flush covered last, and those acknowledged or begun since, in order. */
  readonly versions: number[][];
  readonly busy = new Set<number>();
  /** Old chunks with an exception, for the rules of discard. */
  readonly mapped = new Set<number>();

  constructor(now: readonly number[]) {
    this.versions = now.map((stamp) => [stamp]);
  }

  last(sector: number): number {
    return this.versions[sector].at(-1)!;
  }
}

const stampOf = (view: DataView, sector: number): number => {
  const first = view.getUint32(sector * SECTOR, true);
  for (let at = 4; at < SECTOR; at += 4) if (view.getUint32(sector * SECTOR + at, true) !== first) return Number.NaN;
  return first;
};

export class Stack {
  readonly random: Prng;
  readonly options: StackOptions;
  power: PowerSupply;
  mapper!: Mapper;
  origin: Image;
  /** Taken so far. */
  readonly snapshots: Image[] = [];
  readonly #disks = new Map<string, SimulatedDisk>();
  #stamp = 1000;
  readonly #running = new Set<Promise<void>>();
  /** What happened, for whoever reads a failed seed. */
  readonly log: string[] = [];

  constructor(options: StackOptions, cutAt?: number) {
    this.options = options;
    this.random = prng(options.seed);
    this.power = new PowerSupply({ seed: options.seed, cutAt, slow: options.slow });
    const { origin } = options;
    const contents = new Uint8Array(origin * SECTOR);
    const stamps = Array.from({ length: origin }, (_, sector) => sector + 1);
    for (const [sector, stamp] of stamps.entries()) fill(contents, sector, stamp);
    this.origin = new Image(stamps);
    this.#plug('/dev/origin', origin, contents);
    options.chunks.forEach((chunk, i) => {
      const size = options.cow ?? (4 + 2 * Math.ceil(origin / chunk)) * chunk;
      this.#plug(`/dev/cow${i}`, size, staleDisk(size, this.random));
    });
  }

  #plug(path: string, sectors: number, contents: Uint8Array): void {
    this.#disks.set(path, new SimulatedDisk(sectors * SECTOR, { name: path, power: this.power, contents }));
  }

  disk(path: string): SimulatedDisk {
    return this.#disks.get(path)!;
  }

  device(name: string): MappedDevice {
    return this.mapper.device({ name });
  }

  /** Plugs the disks into a new mapper and loads the tables of what was taken before. */
  async start(): Promise<void> {
    const disks = new FakeDisks();
    for (const [path, disk] of this.#disks) disks.add(disk, path);
    this.mapper = new Mapper({ opener: disks });
    await this.create('base', 'snapshot-origin /dev/origin');
    for (let i = 0; i < this.snapshots.length; i++) await this.create(`s${i}`, this.table(i));
  }

  table(i: number): string {
    const { chunks, store = 'P', features = '' } = this.options;
    return `snapshot /dev/origin /dev/cow${i} ${store} ${chunks[i]} ${features}`.trim();
  }

  async create(name: string, line: string): Promise<void> {
    await this.mapper.create(name);
    await this.load(name, line);
    await this.mapper.resume({ name });
  }

  async load(name: string, line: string): Promise<void> {
    const [type, ...args] = line.split(' ');
    await this.mapper.load({ name }, [{ start: 0, length: this.options.origin, type, args: args.join(' ') }]);
  }

  /** As LVM2 does it: with the origin suspended. */
  async takeSnapshot(): Promise<void> {
    const i = this.snapshots.length;
    await this.mapper.suspend({ name: 'base' });
    try {
      await this.create(`s${i}`, this.table(i));
    } catch (error) {
      await this.mapper.resume({ name: 'base' });
      throw error;
    }
    this.snapshots.push(new Image(this.origin.versions.map((_, sector) => this.origin.last(sector))));
    for (const versions of this.origin.versions) versions.splice(0, versions.length - 1);
    await this.mapper.resume({ name: 'base' });
  }

  #image(name: string): Image {
    return name === 'base' ? this.origin : this.snapshots[Number(name.slice(1))];
  }

  names(): string[] {
    return ['base', ...this.snapshots.map((_, i) => `s${i}`)];
  }

  /** Writes without waiting; overlapping writes to one image are not in flight together. */
  write(name: string, sector: number, count: number): void {
    const image = this.#image(name);
    for (let s = sector; s < sector + count; s++) if (image.busy.has(s)) return;
    const stamp = ++this.#stamp;
    const data = new Uint8Array(count * SECTOR);
    for (let i = 0; i < count; i++) fill(data, i, stamp);
    for (let s = sector; s < sector + count; s++) {
      image.busy.add(s);
      image.versions[s].push(stamp);
    }
    this.#note(name, sector, count);
    this.#run(async () => {
      try {
        await this.device(name).write(bytes(sector * SECTOR), data, 0, data.length);
      } catch (error) {
        if (name === 'base' || !(error instanceof DmError)) throw error;
        if (this.power.on && !(await this.#isDead(name))) throw error;
        // Refused or cut off: each sector is old or new, whatever is flushed, so it stays busy.
        return;
      }
      for (let s = sector; s < sector + count; s++) image.busy.delete(s);
    });
  }

  /** False if a snapshot that is invalid, or has become so, refuses. */
  async #alive(name: string, operation: () => void | Promise<void>): Promise<boolean> {
    try {
      await operation();
      return true;
    } catch (error) {
      if (name !== 'base' && error instanceof DmError && (await this.#isDead(name))) return false;
      throw error;
    }
  }

  async #isDead(name: string): Promise<boolean> {
    const [{ text }] = await this.mapper.status({ name });
    return text === 'Invalid' || text === 'Overflow';
  }

  #note(name: string, sector: number, count: number): void {
    this.log.push(`${this.power.count}: write ${name} ${sector}+${count} as ${this.#stamp}`);
    const touch = (image: Image, chunk: number) => {
      for (let c = Math.floor(sector / chunk); c * chunk < sector + count; c++) image.mapped.add(c);
    };
    if (name !== 'base') touch(this.#image(name), this.options.chunks[Number(name.slice(1))]);
    else for (const [i, image] of this.snapshots.entries()) touch(image, this.options.chunks[i]);
  }

  /** Waits for the flush. Afterwards nothing older than the last write acknowledged before it may be seen. */
  async flush(name: string): Promise<void> {
    const image = this.#image(name);
    const covered = image.versions.map((versions, s) => (image.busy.has(s) ? undefined : versions.at(-1)));
    this.log.push(`${this.power.count}: flush ${name}`);
    if (!(await this.#alive(name, () => this.device(name).flush()))) return;
    covered.forEach((stamp, s) => {
      const index = stamp === undefined ? -1 : image.versions[s].indexOf(stamp);
      if (index > 0) image.versions[s].splice(0, index);
    });
  }

  /** With `discard_zeroes_cow`: chunks with an exception, covered whole, read as zeroes. */
  async discard(name: string, sector: number, count: number): Promise<void> {
    await this.settle();
    const image = this.#image(name);
    const chunk = this.options.chunks[Number(name.slice(1))];
    await this.device(name).discard(bytes(sector * SECTOR), count * SECTOR);
    for (let c = Math.ceil(sector / chunk); (c + 1) * chunk <= sector + count; c++)
      if (image.mapped.has(c)) for (let s = c * chunk; s < (c + 1) * chunk; s++) image.versions[s].push(0);
    this.#partDiscards(name, sector, count, chunk);
  }

  /** Part of a mapped chunk is passed on to the COW device, which here zeroes. */
  #partDiscards(name: string, sector: number, count: number, chunk: number): void {
    const image = this.#image(name);
    for (let s = sector; s < sector + count; s++) {
      const c = Math.floor(s / chunk);
      const whole = c * chunk >= sector && (c + 1) * chunk <= sector + count;
      if (!whole && image.mapped.has(c)) image.versions[s].push(0);
    }
  }

  #run(work: () => Promise<void>): void {
    const run = work().finally(() => this.#running.delete(run));
    run.catch(() => {});
    this.#running.add(run);
  }

  /** Waits for every write in flight; rejects with the first that failed although the power was on. */
  async settle(): Promise<void> {
    while (this.#running.size > 0) {
      const results = await Promise.allSettled([...this.#running]);
      for (const result of results) if (result.status === 'rejected' && this.power.on) throw result.reason;
    }
  }

  /** Reads without waiting, beside whatever is in flight: never anything but a version of the image's own. */
  read(name: string, sector: number, count: number): void {
    const image = this.#image(name);
    const data = new Uint8Array(count * SECTOR);
    const before = Array.from({ length: count }, (_, i) => [...image.versions[sector + i]]);
    this.#run(async () => {
      const read = () => this.device(name).read(bytes(sector * SECTOR), data, 0, data.length);
      if (!(await this.#alive(name, read))) return;
      const view = new DataView(data.buffer);
      for (let i = 0; i < count; i++)
        expect([...before[i], ...image.versions[sector + i]], `${name}, sector ${sector + i}`).toContain(
          stampOf(view, i),
        );
    });
  }

  async content(name: string): Promise<DataView> {
    const data = new Uint8Array(this.options.origin * SECTOR);
    await this.device(name).read(bytes(0), data, 0, data.length);
    return new DataView(data.buffer);
  }

  /** With the power on: each image holds its last writes, and nothing else. */
  async expectExact(): Promise<void> {
    await this.settle();
    for (const name of this.names()) {
      if (await this.#isDead(name)) continue;
      const view = await this.content(name);
      for (let s = 0; s < this.options.origin; s++)
        if (stampOf(view, s) !== this.#image(name).last(s))
          expect(`${name} sector ${s}: ${stampOf(view, s)}`).toBe(`${name} sector ${s}: ${this.#image(name).last(s)}`);
    }
  }

  /**
   * After a power cut: starts anew from what the platters hold, compares every image with what it may hold, and goes on
   * from what was found. A snapshot may have become invalid if `mayBeInvalid`.
   */
  async recover(seed: number, mayBeInvalid = false): Promise<void> {
    await Promise.allSettled([...this.#running]);
    const platters = [...this.#disks].map(([path, disk]) => [path, disk.crash(seed)] as const);
    this.power = new PowerSupply({ seed, slow: this.options.slow });
    for (const [path, contents] of platters) this.#plug(path, contents.length / SECTOR, contents);
    await this.start();
    for (const name of this.names()) {
      if (await this.#isDead(name)) {
        expect(mayBeInvalid, `${name} is invalid`).toBe(true);
        continue;
      }
      this.#expectPossible(name, await this.content(name));
    }
    for (const image of [this.origin, ...this.snapshots]) image.busy.clear();
  }

  #expectPossible(name: string, view: DataView): void {
    const image = this.#image(name);
    for (let s = 0; s < this.options.origin; s++) {
      const found = stampOf(view, s);
      if (!image.versions[s].includes(found))
        expect(`${name} sector ${s} holds ${found}`).toBe(`one of ${image.versions[s].join(', ')}`);
      image.versions[s] = [found];
    }
  }

  async stop(): Promise<void> {
    await this.settle();
    await this.mapper.removeAll();
  }
}

/** An old disk, blank in its first four bytes: what is not written before it is read will show, as plausible exceptions. */
export function staleDisk(sectors: number, random: Prng): Uint8Array {
  const stale = new Uint8Array(sectors * SECTOR);
  const words = new Uint32Array(stale.buffer, 0, SECTOR / 4);
  for (let i = 0; i < words.length; i += 4) words.set([random.below(64), 0, 2 + random.below(60), 0], i);
  for (let filled = SECTOR; filled < stale.length; filled *= 2) stale.copyWithin(filled, 0, filled);
  stale.fill(0, 0, 4);
  return stale;
}

function fill(data: Uint8Array, sector: number, stamp: number): void {
  const view = new DataView(data.buffer);
  for (let at = 0; at < SECTOR; at += 4) view.setUint32(sector * SECTOR + at, stamp, true);
}
