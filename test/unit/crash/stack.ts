/**
 * An origin and its snapshots on simulated disks, driven by a seed, beside a model of what each must show. Every write
 * fills its sectors with a stamp of its own, so that one look at a sector tells which write it came from.
 *
 *     base    snapshot-origin, or the snapshot that is being merged into the origin     /dev/origin
 *     s0 …    snapshots                                                                 /dev/cow0 …
 */
import { type Operation, type Outcome, Platter, PowerSupply, SimulatedDisk } from '../../../src/device/simulated.ts';
import { DmError, type Errno } from '../../../src/errors.ts';
import { type Prng, prng } from '../../../src/lib/prng.ts';
import type { MappedDevice } from '../../../src/mapper/mapped-device.ts';
import { Mapper } from '../../../src/mapper/mapper.ts';
import { FakeDisks } from '../../../src/testing/fake-disks.ts';
import { bytes, SECTOR } from '../../../src/units.ts';
import { Fault } from './faults.ts';
import { Image } from './image.ts';
import { Model, slotOf } from './model.ts';
import { fill, staleDisk, stampOf, stampsOf, wordsOf } from './stamps.ts';
import type { VirtualTime } from './virtual-time.ts';

export interface StackOptions {
  seed: number;
  /** Sectors of the origin. */
  origin: number;
  /** Chunk sizes of the snapshots, in sectors. */
  chunks: number[];
  /** Sectors of each COW device; enough for every exception if absent. */
  cow?: number;
  /** Table words before and behind the chunk size. */
  store?: string;
  features?: string;
  /** Chance that an operation of a disk completes later. */
  slow?: number;
}

/** What a power cut left, and what of it is right. */
export interface Crash {
  /** The operation in the middle of which the power went. */
  readonly cut: number;
  readonly options: StackOptions;
  readonly model: Model;
  /** The last one given. */
  readonly stamp: number;
  /** By path. */
  readonly platters: ReadonlyMap<string, Platter>;
  /** Disks that had given injected errors. */
  readonly hurt: ReadonlySet<string>;
}

export interface Surroundings {
  time: VirtualTime;
  /** Receives what happens, line by line. */
  log?: ((line: string) => void) | undefined;
  /** Called in the middle of every operation that changes a disk. */
  cut?: ((operation: Operation) => void) | undefined;
}

const ORIGIN = '/dev/origin';
const cowPath = (slot: number) => `/dev/cow${slot}`;

export const turn = () => new Promise<void>((go) => setImmediate(go));

export class Stack {
  readonly options: StackOptions;
  readonly random: Prng;
  readonly power: PowerSupply;
  readonly model: Model;
  readonly time: VirtualTime;
  mapper!: Mapper;
  /** Injected; undefined after `repair`. */
  fault: Fault | undefined;
  /** Disks that gave an injected error. */
  readonly #hurt: Set<string>;
  readonly #disks = new Map<string, SimulatedDisk>();
  readonly #running = new Set<Promise<void>>();
  readonly #log: Surroundings['log'];
  readonly #buffer: Uint8Array;
  #failure: unknown;
  #stopping = false;
  #stamp = 1000;

  /** On new disks, or on what a crash left. */
  constructor(options: StackOptions, { time, log, cut }: Surroundings, crash?: Crash) {
    this.options = options;
    this.random = prng(crash ? options.seed * 7919 + crash.cut : options.seed);
    this.#hurt = new Set(crash?.hurt);
    this.time = time;
    this.#buffer = new Uint8Array(options.origin * SECTOR);
    this.#log = log;
    const observe = (operation: Operation) => {
      if (log) log(described(operation));
      try {
        if (cut && operation.kind !== 'read') cut(operation);
      } catch (error) {
        // Not an answer of the disk.
        this.#failure ??= error;
      }
    };
    this.power = new PowerSupply({
      seed: this.random.below(2 ** 31),
      slow: options.slow,
      observe: log || cut ? observe : undefined,
    });
    if (crash) {
      this.model = crash.model;
      this.#stamp = crash.stamp;
      for (const [path, platter] of crash.platters) this.#plug(path, platter);
    } else {
      const { origin, chunks } = options;
      const stamps = Array.from({ length: origin }, (_, sector) => sector + 1);
      this.model = new Model(
        Image.of(stamps),
        chunks.map(() => undefined),
      );
      const contents = new Uint8Array(origin * SECTOR);
      for (const [sector, stamp] of stamps.entries()) fill(contents, sector, stamp);
      this.#plug(ORIGIN, Platter.of(contents));
      chunks.forEach((chunk, slot) => {
        const size = options.cow ?? (4 + 2 * Math.ceil(origin / chunk)) * chunk;
        this.#plug(cowPath(slot), Platter.of(staleDisk(size, this.random)));
      });
    }
  }

  #plug(path: string, platter: Platter): void {
    const fault: SimulatedDisk['fault'] = (kind, at, length) => this.#hit(path, kind, at, length);
    const options = { name: path, power: this.power, contents: platter, fault, tears: true };
    this.#disks.set(path, new SimulatedDisk(platter.sectors.length * SECTOR, options));
  }

  #hit(path: string, kind: Operation['kind'], at: number, length: number): Errno | undefined {
    if (!this.fault?.hits(path, kind, at, length)) return undefined;
    this.#hurt.add(path);
    return this.fault.errno;
  }

  note(line: string): void {
    this.#log?.(line);
  }

  disk(path: string): SimulatedDisk {
    return this.#disks.get(path)!;
  }

  cow(slot: number): SimulatedDisk {
    return this.disk(cowPath(slot));
  }

  device(name: string): MappedDevice {
    return this.mapper.device({ name });
  }

  names(): string[] {
    return this.model.names();
  }

  /** The words of `dmsetup status`, at once. */
  status(name: string): string {
    return this.#target(name).status('info');
  }

  #target(name: string) {
    return this.device(name).liveTable!.targets[0].target;
  }

  isInvalid(name: string): boolean {
    return this.status(name) === 'Invalid';
  }

  /** Plugs the disks into a new mapper and loads the tables; a merge begins when the other snapshots are there. */
  async start(): Promise<void> {
    const disks = new FakeDisks();
    for (const [path, disk] of this.#disks) disks.add(disk, path);
    this.mapper = new Mapper({ opener: disks });
    for (const slot of this.model.taken()) await this.create(`s${slot}`, this.table(slot));
    await this.create('base', this.baseTable());
  }

  /** A merge ends before the other snapshots go. */
  async stop(): Promise<void> {
    await this.settle();
    this.#forgetSpoiled(this.model);
    this.#stopping = true;
    await this.mapper.remove({ name: 'base' });
    await this.mapper.removeAll();
    this.#stopping = false;
    this.time.forget();
  }

  table(slot: number, type = 'snapshot'): string {
    const { chunks, store = 'P', features = '' } = this.options;
    return `${type} ${ORIGIN} ${cowPath(slot)} ${store} ${chunks[slot]} ${features}`.trim();
  }

  baseTable(type = this.model.table): string {
    return type === 'snapshot-origin' ? `snapshot-origin ${ORIGIN}` : this.table(this.model.merging!, type);
  }

  async create(name: string, line: string): Promise<void> {
    await this.mapper.create(name);
    await this.load(name, line);
    await this.mapper.resume({ name });
  }

  async load(name: string, line: string): Promise<void> {
    this.note(`load ${name}: ${line}`);
    const [type, ...args] = line.split(' ');
    await this.mapper.load({ name }, [{ start: 0, length: this.options.origin, type, args: args.join(' ') }]);
  }

  /** Suspends, which flushes. False if an injected error is in the way; the device is then resumed. */
  suspend(name: string): Promise<boolean> {
    this.note(`suspend ${name}`);
    return this.flushing(name, async () => void (await this.mapper.suspend({ name })));
  }

  async resume(name: string): Promise<void> {
    this.note(`resume ${name}`);
    await this.mapper.resume({ name });
  }

  flush(name: string): Promise<boolean> {
    this.note(`flush ${name}`);
    return this.flushing(name, async () => void (await this.device(name).flush()));
  }

  /** Runs what includes a flush. Afterwards nothing older than the last write acknowledged before it may be seen. */
  async flushing(name: string, run: () => Promise<void>): Promise<boolean> {
    const image = this.model.image(name);
    const covered = image.covered();
    try {
      await run();
    } catch (error) {
      if (!this.isExcused(name, error)) throw error;
      return false;
    }
    if (!this.isInvalid(name)) image.flushed(covered);
    return true;
  }

  /** Whether `error` is the right answer of `name` as things are. */
  isExcused(name: string, error: unknown): boolean {
    if (!(error instanceof DmError)) return false;
    const { fault, model } = this;
    const below = [ORIGIN];
    const slot = name === 'base' ? model.merging : slotOf(name);
    if (slot !== undefined) {
      below.push(cowPath(slot));
      const status = this.status(name);
      if (error.errno === 'EIO' && status === 'Invalid') return true;
      if (error.errno === 'EIO' && status === 'Overflow' && !(name === 'base' && model.table === 'snapshot-merge'))
        return true;
    }
    // No place would keep a write to the chunks in whose middle the merge has ended.
    if (name === 'base' && this.isStuck && error.errno === 'EIO') return true;
    if (!fault || !below.includes(fault.disk)) return false;
    return error.errno === fault.errno || (slot !== undefined && error.errno === 'EIO');
  }

  /** A disk begins to give errors. */
  inject(): void {
    const { merging } = this.model;
    const others = this.model.taken().map(cowPath);
    // Most errors of a merge are its own.
    const paths = merging === undefined ? [ORIGIN, ...others] : [ORIGIN, cowPath(merging)];
    const path = this.random.pick(this.random.chance(0.3) ? [...paths, ...others] : paths);
    this.fault = new Fault(this.random, path, this.disk(path).size / SECTOR);
    this.note(`fault of ${this.fault}`);
  }

  /** The disks work again; what failed may not have been told yet. */
  mend(): void {
    if (this.fault) this.note('repaired');
    this.fault = undefined;
  }

  async repair(): Promise<void> {
    if (!this.fault) return;
    await this.settle();
    this.mend();
    for (let i = 0; i < 4; i++) await turn();
    await this.settle();
    if (this.isStuck && this.random.chance(0.7)) await this.goOn();
  }

  /** An error has ended the merge, and it goes on after a resume, or with another table. */
  get isStuck(): boolean {
    return this.#target('base').note !== undefined;
  }

  async goOn(): Promise<void> {
    await this.suspend('base');
    await this.resume('base');
  }

  /** A snapshot is lost only where its store was full or failed, a merge fails only where one of its disks did. */
  checkStates(): void {
    const { model, options } = this;
    for (const name of this.names()) {
      const slot = name === 'base' ? model.merging : slotOf(name);
      const text = this.status(name);
      if (slot === undefined ? text === '' : /^\d+\/\d+ \d+$/.test(text)) continue;
      const hurt = slot !== undefined && (this.#hurt.has(ORIGIN) || this.#hurt.has(cowPath(slot)));
      const full = slot !== undefined && options.cow !== undefined;
      if (text === 'Invalid' && name !== 'base' && (hurt || full)) continue;
      if (text === 'Overflow' && full && options.store === 'PO') continue;
      if (text === 'Merge failed' && model.table === 'snapshot-merge' && hurt) continue;
      throw new Error(`${name} has the state "${text}"`);
    }
  }

  /** Writes without waiting, zeroes if so told; overlapping writes to one image are not in flight together. */
  write(name: string, sector: number, count: number, zeroes = false): void {
    const { model } = this;
    const image = model.image(name);
    for (let s = sector; s < sector + count; s++) if (image.busy.has(s)) return;
    const stamp = zeroes ? 0 : ++this.#stamp;
    const data = new Uint8Array(count * SECTOR);
    for (let i = 0; i < count; i++) fill(data, i, stamp);
    // A snapshot that is being made equal to its origin may get this write or not.
    const images = name === 'base' ? [image, ...model.reverted.values()] : [image];
    for (const each of images) for (let s = sector; s < sector + count; s++) each.begin(s, stamp);
    this.#touch(name, sector, count);
    const words = `${zeroes ? 'zero' : 'write'} ${name} ${sector}+${count}${zeroes ? '' : ` as ${stamp}`}`;
    this.note(words);
    this.#run(async () => {
      const device = this.device(name);
      let ok = true;
      try {
        if (zeroes) await device.writeZeroes(bytes(sector * SECTOR), data.length, true);
        else await device.write(bytes(sector * SECTOR), data, 0, data.length);
        this.note(`done: ${words}`);
      } catch (error) {
        if (!this.isExcused(name, error)) throw error;
        ok = false;
        this.note(`refused: ${words}: ${(error as DmError).errno}`);
      }
      for (let s = sector; s < sector + count; s++) image.end(s, ok);
    });
  }

  #touch(name: string, sector: number, count: number): void {
    for (const slot of name === 'base' ? this.model.taken() : [slotOf(name)]) {
      const chunk = this.options.chunks[slot];
      const { mapped } = this.model.slots[slot]!;
      for (let c = Math.floor(sector / chunk); c * chunk < sector + count; c++) mapped.add(c);
    }
  }

  /** What was written to the origin has its copies, unless an error is in the way. */
  async drain(): Promise<void> {
    for (const slot of this.model.taken()) await this.mapper.status({ name: `s${slot}` });
  }

  /** With `discard_zeroes_cow`: chunks with an exception, covered whole, read as zeroes; so do, here, parts of one. */
  async discard(name: string, sector: number, count: number): Promise<void> {
    await this.settle();
    await this.drain();
    const image = this.model.image(name);
    const chunk = this.options.chunks[slotOf(name)];
    this.note(`discard ${name} ${sector}+${count}`);
    await this.device(name).discard(bytes(sector * SECTOR), count * SECTOR);
    for (let s = sector; s < sector + count; s++) {
      if (!image.mapped.has(Math.floor(s / chunk))) continue;
      image.begin(s, 0);
      image.end(s, true);
    }
  }

  /** Reads without waiting, beside whatever is in flight: what is certain, or a write since. */
  read(name: string, sector: number, count: number): void {
    const image = this.model.image(name);
    const data = new Uint8Array(count * SECTOR);
    const before = image.covered().slice(sector, sector + count);
    this.#run(async () => {
      try {
        await this.device(name).read(bytes(sector * SECTOR), data, 0, data.length);
      } catch (error) {
        if (!this.isExcused(name, error)) throw error;
        return;
      }
      const words = wordsOf(data);
      for (let i = 0; i < count; i++) {
        const found = stampOf(words, i);
        const possible = image.possible(sector + i);
        // Flushed meanwhile, an older one may be gone from the list; zeroes may be in it twice.
        if (found === before[i] || possible.lastIndexOf(found) >= Math.max(0, possible.indexOf(before[i]))) continue;
        throw new Error(`read ${name}: sector ${sector + i} holds ${found}, not ${before[i]} or later of ${possible}`);
      }
    });
  }

  #run(work: () => Promise<void>): void {
    const run = work()
      .catch((error) => {
        this.#failure ??= error;
      })
      .then(() => void this.#running.delete(run));
    this.#running.add(run);
  }

  /** Waits for every request in flight; throws the first thing that was wrong. */
  async settle(): Promise<void> {
    while (this.#running.size > 0) await Promise.all(this.#running);
    if (this.#failure) throw this.#failure;
  }

  /** The stamps that a reader of the device finds. */
  async content(name: string): Promise<number[]> {
    await this.device(name).read(bytes(0), this.#buffer, 0, this.#buffer.length);
    return stampsOf(this.#buffer);
  }

  /** The same of the origin's disk. */
  raw(): number[] {
    const data = new Uint8Array(this.#buffer.length);
    this.disk(ORIGIN).peek(0, this.options.origin, data);
    return stampsOf(data);
  }

  /** With everything settled: what `base` shows is on the origin's own disk. */
  expectOnOrigin(): void {
    const raw = this.raw();
    const wrong = raw.findIndex((stamp, s) => !this.model.base.isLive(s, stamp));
    if (wrong < 0) return;
    throw new Error(`the origin's sector ${wrong} holds ${raw[wrong]}, expected ${this.model.base.last(wrong)}`);
  }

  /** With everything settled: each image holds its last writes, and nothing else. */
  async expectExact(): Promise<void> {
    await this.settle();
    this.checkStates();
    for (const name of this.names()) {
      if (this.isInvalid(name)) continue;
      const image = this.model.image(name);
      const stamps = await this.content(name);
      const s = stamps.findIndex((stamp, s) => !image.isLive(s, stamp));
      if (s < 0) continue;
      throw new Error(`${name}: sector ${s} holds ${stamps[s]}, expected ${image.last(s)} (of ${image.possible(s)})`);
    }
  }

  /** What a power cut in the middle of the operation `cut` leaves; `outcomes` receives what became of what was not flushed. */
  crash(cut: number, outcomes?: Map<string, Outcome[]>): Crash {
    const model = this.model.clone();
    this.#forgetSpoiled(model);
    const platters = new Map<string, Platter>();
    let seed = (this.options.seed * 10_007 + cut) * 8;
    for (const [path, disk] of this.#disks) {
      const list: Outcome[] | undefined = outcomes && [];
      platters.set(path, disk.afterCrash(seed++, list));
      if (list) outcomes?.set(path, list);
    }
    return { cut, options: this.options, model, stamp: this.#stamp, platters, hurt: new Set(this.#hurt) };
  }

  /** An invalid snapshot on a disk that failed may not have got its header that says so: nothing is known of its store. */
  #forgetSpoiled(model: Model): void {
    for (const slot of model.taken())
      if (this.#hurt.has(cowPath(slot)) && !this.#stopping && this.isInvalid(`s${slot}`)) model.drop(slot);
  }

  /** Started from what a crash left: compares every image with what it may hold, and goes on from what is there. */
  async expectPossible(): Promise<void> {
    const { model } = this;
    this.checkStates();
    for (const name of this.names()) {
      if (this.isInvalid(name)) continue;
      const stamps = await this.content(name);
      const image = model.image(name);
      const other = name === 'base' ? undefined : model.reverted.get(slotOf(name));
      const wrong = (image: Image) => stamps.findIndex((stamp, s) => !image.isPossible(s, stamp));
      const s = wrong(image);
      if (s >= 0 && (!other || wrong(other) >= 0)) {
        const list = other ? `; reverted: ${other.possible(s).join(', ')}` : '';
        throw new Error(`${name}: sector ${s} holds ${stamps[s]}, not one of ${image.possible(s).join(', ')}${list}`);
      }
      stamps.forEach((stamp, sector) => {
        image.found(sector, stamp);
      });
    }
    model.reverted.clear();
  }
}

function described({ number, disk, kind, at, length, errno }: Operation): string {
  const range = kind === 'flush' ? '' : ` ${at / SECTOR}+${length / SECTOR}`;
  const end = errno ? `: ${errno}` : '';
  return `    ${kind === 'read' ? '   ' : `#${number}`} ${disk} ${kind}${range}${end}`;
}
