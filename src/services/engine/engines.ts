/**
 * The engines of a daemon. The first is on the main thread and has everything that is not known to share nothing: all
 * devices made with `dmsetup`. Forks of an image share nothing with forks of another, so those of further images
 * go to engines on threads of their own, which are started when they are needed (docs/decisions/0009-engines.md).
 *
 *     table or fork -> the disks and devices it names -> the engine that has one of them, else a new group
 *
 * Placing is done one at a time; what is placed and not yet there counts as being there. A disk in two engines would be a fault of this
 * module; its lock then refuses the second to open it.
 */
import { DmError } from '../../errors.ts';
import { Lock } from '../../lib/lock.ts';
import type { DeviceRef, TargetSpec } from '../../mapper/control.ts';
import type { ForkOptions } from '../fork/fork-control.ts';
import { cowPath, merging } from '../fork/forks.ts';
import type { ForksState } from '../fork/records.ts';
import type { DiskKeys, Engine } from './engine.ts';
import { groupsOf, meet, type Named, namedBy, wordsOf } from './placement.ts';
import type { Placed, Registry } from './registry.ts';

/** An engine that was started, and how to end its thread. */
export interface StartedEngine extends Engine {
  end(): Promise<void>;
}

export interface EnginesOptions {
  major: number;
  registry: Registry;
  /** On the main thread. */
  local: Engine;
  /** At most so many beside it. */
  max: number;
  /** Starts one more, with what it is to bring back. */
  start(number: number, state: ForksState): StartedEngine;
}

/** What a call that is under way may come to use. */
interface Claim {
  /** The name of the device that it is about, or makes. */
  own: string;
  /** That device, if it is there. */
  placed: Placed | undefined;
  minors: Set<number>;
  /** All the words that may be devices. */
  words: string[];
  disks: DiskKeys;
  engine: number;
}

/** How long calls that run, or what is still to be flushed, may hold up devices that have to move. */
const PATIENCE_MS = 2000;

/** These wait for something to happen, so that nobody waits for them. */
const LONG = new Set(['wait', 'mergeProgress']);

export class Engines {
  readonly #options: EnginesOptions;
  readonly #registry: Registry;
  readonly #engines: Engine[];
  readonly #started: StartedEngine[] = [];
  readonly #placing = new Lock();
  readonly #claims = new Set<Claim>();
  /** On their way from one engine to another. */
  readonly #moving = new Set<ForksState>();
  /** Settles when calls may go on, after something has moved. */
  #closed: Promise<void> | undefined;
  #running = 0;
  #idle: (() => void) | undefined;

  constructor(options: EnginesOptions) {
    this.#options = options;
    this.#registry = options.registry;
    this.#engines = [options.local];
  }

  get all(): readonly Engine[] {
    return this.#engines;
  }

  /** Those on threads of their own. */
  get started(): readonly StartedEngine[] {
    return this.#started;
  }

  /** The one that has the device; without such a device the first, which says so. */
  of(ref: DeviceRef): Engine {
    return this.#engines[this.#registry.find(ref)?.engine ?? 0];
  }

  /** A call about a device. */
  call<T>(ref: DeviceRef, call: string, args: readonly unknown[], signal?: AbortSignal): Promise<T> {
    return this.during(() => this.of(ref).call<T>(call, args, signal), LONG.has(call));
  }

  /** While `work` runs nothing moves. It is asked for when nothing does. `long`: it may take any time, and is not waited for. */
  async during<T>(work: () => Promise<T>, long = false): Promise<T> {
    while (this.#closed) await this.#closed;
    if (long) return work();
    this.#running++;
    try {
      return await work();
    } finally {
      this.#running--;
      if (this.#running === 0) this.#idle?.();
    }
  }

  /** Of all engines, in ascending byte order of the name. */
  async list<T extends { name: string }>(call: string, args: readonly unknown[]): Promise<T[]> {
    const lists = await this.during(() => Promise.all(this.#engines.map((engine) => engine.call<T[]>(call, args))));
    if (lists.length === 1) return lists[0];
    const named = lists.flat().map((entry) => ({ entry, bytes: Buffer.from(entry.name) }));
    return named.sort((a, b) => Buffer.compare(a.bytes, b.bytes)).map(({ entry }) => entry);
  }

  async each(call: string, args: readonly unknown[]): Promise<void> {
    await this.during(() => Promise.all(this.#engines.map((engine) => engine.call(call, args))));
  }

  /**
   * What a restart must find again. What moves, or is being brought back, is told as it was, until it has arrived with its
   * tables: without them a restart would take a fork for one that was never finished. The registry knows names and removals
   * before the engines tell of them.
   */
  async state(): Promise<ForksState> {
    const between = [...this.#moving];
    const states = await Promise.all(this.#engines.map((engine) => engine.state()));
    const devices = between.flatMap((moving) => moving.devices);
    const forks = between.flatMap((moving) => moving.forks);
    const [minors, uuids] = [new Set(devices.map(({ minor }) => minor)), new Set(forks.map(({ uuid }) => uuid))];
    for (const [engine, state] of states.entries()) {
      for (const device of state.devices) {
        const placed = this.#registry.placed(device.minor);
        if (minors.has(device.minor) || placed?.engine !== engine || placed.deleting) continue;
        devices.push({ ...device, name: placed.storedName });
      }
      forks.push(...state.forks.filter(({ uuid }) => !uuids.has(uuid)));
    }
    return { devices, forks };
  }

  /** A call about a fork, which may be one that is being merged and has no device. */
  ofFork<T>(name: string, call: string, args: readonly unknown[], signal?: AbortSignal): Promise<T> {
    const work = async () => (await this.#withFork(name)).call<T>(call, args, signal);
    return this.during(work, LONG.has(call));
  }

  async #withFork(name: string): Promise<Engine> {
    if (this.#engines.length === 1) return this.#engines[0];
    const known = await this.#mergesOf(name);
    const running = known.indexOf('running');
    if (running >= 0) return this.#engines[running];
    const placed = this.#registry.find({ name });
    if (placed) return this.#engines[placed.engine];
    return this.#engines[Math.max(0, known.indexOf('finished'))];
  }

  /** What each engine knows of a merge of a fork of that name. */
  #mergesOf(name: string): Promise<(string | undefined)[]> {
    return Promise.all(this.#engines.map((engine) => engine.call<string | undefined>('mergeOf', [name])));
  }

  /** Brings back what was saved, on as many engines as it takes. Resolves with what was done, in words. */
  async restore(state: ForksState): Promise<string[]> {
    const [local, ...others] = await this.#divide(state);
    const parts = [local];
    for (const part of others)
      if (this.#start(part)) parts.push(part);
      else {
        local.devices.push(...part.devices);
        local.forks.push(...part.forks);
      }
    // Until all is there again, what is saved is what was.
    this.#moving.add(state);
    await Promise.all(this.#engines.map((engine, number) => engine.call('restore', [parts[number]])));
    this.#moving.delete(state);
    const lines = this.#engines.map((engine, number) => engine.call<string[]>('recover', [parts[number].devices]));
    return (await Promise.all(lines)).flat();
  }

  /** Follows no merge any more, looks at nothing. */
  async stop(): Promise<void> {
    await Promise.all(this.#engines.map((engine) => engine.call('stop', [])));
  }

  /** Closes all devices and ends the threads. */
  async close(): Promise<void> {
    const closed = await Promise.allSettled(this.#engines.map((engine) => engine.call('close', [])));
    for (const engine of this.#started) await engine.end();
    for (const { reason } of closed.filter((outcome) => outcome.status === 'rejected')) throw reason;
  }

  /** Groups that share nothing. What has to be in the first engine comes first, so that it counts. */
  async #divide(state: ForksState): Promise<ForksState[]> {
    const { max, major } = this.#options;
    if (max === 0) return [state];
    const parts: ForksState[] = [{ devices: [], forks: [] }];
    const groups = await groupsOf(state, { major, look: true });
    for (const { isImage, devices, forks } of groups.sort((a, b) => Number(a.isImage) - Number(b.isImage))) {
      const part = isImage ? this.#leastLoaded((number) => parts[number]?.devices.length ?? 0) : 0;
      parts[part] ??= { devices: [], forks: [] };
      parts[part].devices.push(...devices);
      parts[part].forks.push(...forks);
    }
    return parts;
  }

  /** The call `load`, or a `create` with a table: then `device` is a name that is to be. */
  async load<T>(
    device: string | DeviceRef,
    table: readonly TargetSpec[],
    directory: string | undefined,
    call: string,
    args: readonly unknown[],
  ): Promise<T> {
    const { max } = this.#options;
    if (max === 0) return this.during(() => this.#engines[0].call(call, args));
    const named = await namedBy(wordsOf(table), directory);
    const placed = typeof device === 'string' ? undefined : this.#registry.find(device);
    const own = typeof device === 'string' ? device : (placed?.storedName ?? '');
    return this.#place({ own, placed, ...named }, false, call, args);
  }

  /** The call `fork`. */
  async fork<T>(image: string, name: string, options: ForkOptions, args: readonly unknown[]): Promise<T> {
    const { max } = this.#options;
    if (max === 0) return this.during(() => this.#engines[0].call('fork', args));
    // It keeps its name, and is found by it, on whichever thread.
    const known = await this.during(() => this.#mergesOf(name));
    if (known.includes('running')) throw merging(name, 'make');
    const named = await namedByFork(image, name, options);
    return this.#place({ own: name, placed: undefined, ...named }, true, 'fork', args);
  }

  /** `isImage`: nothing but its own commands is expected to name it. */
  async #place<T>(
    { own, placed, devices, disks }: Named & Pick<Claim, 'own' | 'placed'>,
    isImage: boolean,
    call: string,
    args: readonly unknown[],
  ): Promise<T> {
    const claim: Claim = { own, placed, minors: new Set(), words: devices, disks, engine: 0 };
    await this.#placing.run(async () => {
      // Nothing moves for a name that is taken.
      if (!placed) this.#registry.checkFree(own);
      const holders = await this.#holders(claim);
      const at = placed?.engine;
      if (holders.size > 1 || (holders.size === 1 && at !== undefined && !holders.has(at)))
        await this.#alone(claim, () => this.#gather(claim));
      else if (holders.size === 1) [claim.engine] = holders;
      else claim.engine = at ?? (isImage ? this.#leastLoaded() : 0);
      if (claim.engine === this.#engines.length && !this.#start({ devices: [], forks: [] })) claim.engine = 0;
      this.#claims.add(claim);
      this.#running++;
    });
    try {
      return await this.#engines[claim.engine].call<T>(call, args);
    } finally {
      this.#claims.delete(claim);
      this.#running--;
      if (this.#running === 0) this.#idle?.();
    }
  }

  /** Engines that have something of what the claim names. Its own device counts if it has a table. */
  async #holders(claim: Claim): Promise<Set<number>> {
    const holders = new Set<number>();
    claim.minors.clear();
    for (const word of claim.words) {
      const found = this.#registry.find(refOf(word));
      if (!found) continue;
      claim.minors.add(found.minor);
      holders.add(found.engine);
    }
    const { placed } = claim;
    if (placed && !placed.deleting) {
      const ref = { name: placed.storedName };
      if (await this.#engines[placed.engine].call<boolean>('isBound', [ref]).catch(() => true))
        holders.add(placed.engine);
    }
    for (const other of this.#claims) if (isShared(claim, other)) holders.add(other.engine);
    const held = await Promise.all(this.#engines.map((engine) => engine.call<boolean>('holds', [claim.disks])));
    for (const [engine, holds] of held.entries()) if (holds) holders.add(engine);
    return holders;
  }

  /** Runs `work` while no call runs. Throws ENGINES_SHARED (EBUSY) when those that do take too long. */
  async #alone(claim: Claim, work: () => Promise<void>): Promise<void> {
    let open = () => {};
    this.#closed = new Promise((resolve) => (open = resolve));
    try {
      let timer: NodeJS.Timeout | undefined;
      const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, PATIENCE_MS)));
      if (this.#running > 0) await Promise.race([new Promise<void>((resolve) => (this.#idle = resolve)), late]);
      clearTimeout(timer);
      this.#idle = undefined;
      if (this.#running > 0) throw shared(claim, 'other calls take too long');
      await work();
    } finally {
      this.#closed = undefined;
      open();
    }
  }

  /** Brings everything that the claim names into one engine, which becomes the claim's: the first, if that is among them. */
  async #gather(claim: Claim): Promise<void> {
    const holders = [...(await this.#holders(claim))].sort((a, b) => a - b);
    const engines = new Set([...holders, ...(claim.placed ? [claim.placed.engine] : [])]);
    let why = 'what was there has gone';
    for (const to of holders.length > 0 ? holders : engines) {
      const parts = new Map<number, ForksState>();
      why = '';
      for (const from of engines) {
        if (from === to) continue;
        const part = await this.#partOf(claim, from);
        why ||= typeof part === 'string' ? part : '';
        if (typeof part !== 'string') parts.set(from, part);
      }
      if (why !== '') continue;
      for (const [from, part] of parts)
        await this.#move(part, from, to).catch((error: Error) => {
          throw shared(claim, error.message);
        });
      claim.engine = to;
      return;
    }
    throw shared(claim, why);
  }

  /** What would have to leave the engine, or why it cannot. */
  async #partOf(claim: Claim, from: number): Promise<ForksState | string> {
    const { major } = this.#options;
    const engine = this.#engines[from];
    const part: ForksState = { devices: [], forks: [] };
    let held = await engine.call<boolean>('holds', [claim.disks]);
    for (const { devices, forks, disks } of await groupsOf(await engine.state(), { major, look: false })) {
      const isNamed = devices.some(({ minor }) => claim.minors.has(minor) || minor === claim.placed?.minor);
      const isMet = meet(disks, claim.disks);
      if (!isNamed && !isMet) continue;
      if (isMet) held = false;
      part.devices.push(...devices);
      part.forks.push(...forks);
    }
    if (held) return 'a disk is in use';
    const names = part.devices.map(({ name }) => name);
    const uuids = part.forks.map(({ uuid }) => uuid);
    return (await engine.call<string | undefined>('bound', [names, uuids])) ?? part;
  }

  /** At every moment `state` tells of the devices: as they were, or as they are. */
  async #move(part: ForksState, from: number, to: number): Promise<void> {
    const placed = part.devices.map(({ name }) => this.#registry.find({ name })!);
    const names = part.devices.map(({ name }) => name);
    const uuids = part.forks.map(({ uuid }) => uuid);
    this.#moving.add(part);
    try {
      // Of a disk that hangs nobody else need hear.
      await this.#engines[from].call('leave', [names, uuids], AbortSignal.timeout(PATIENCE_MS));
    } catch (error) {
      this.#moving.delete(part);
      throw error;
    }
    for (const device of placed) device.movesTo = to;
    // Should that fail, the next restart finds them.
    await this.#engines[to].call('join', [part]);
    this.#moving.delete(part);
  }

  /** The number of the engine with the fewest devices, perhaps the next one to be started. */
  #leastLoaded(count = (engine: number) => this.#registry.count(engine) + this.#claimed(engine)): number {
    let least = 0;
    for (let number = 1; number <= this.#options.max; number++) if (count(number) < count(least)) least = number;
    return least;
  }

  #claimed(engine: number): number {
    let count = 0;
    for (const claim of this.#claims) if (claim.engine === engine) count++;
    return count;
  }

  /** False: the system has no thread to give. */
  #start(state: ForksState): boolean {
    let engine: StartedEngine;
    try {
      engine = this.#options.start(this.#engines.length, state);
    } catch {
      return false;
    }
    this.#engines.push(engine);
    this.#started.push(engine);
    // Memory and the threads that wait for disks are the process's.
    for (const each of this.#engines) void each.call('share', [this.#engines.length]).catch(() => {});
    return true;
  }
}

/** `major:minor`, or a name. */
function refOf(word: string): DeviceRef {
  const number = /^(\d+):(\d+)$/.exec(word);
  return number ? { major: Number(number[1]), minor: Number(number[2]) } : { name: word };
}

/** The image, and the file that the fork would have. */
async function namedByFork(image: string, name: string, options: ForkOptions): Promise<Named> {
  const { directory } = options;
  const { disks } = await namedBy([image], directory);
  // The path of the COW file follows from that of the image with all links resolved.
  const cows = disks.words.map((word) => cowPath(word, name, options));
  const both = await namedBy([image, ...cows], directory);
  // No mapped device can be forked; the engine that has it says so.
  return { ...both, devices: (await namedBy([image])).devices };
}

function isShared(a: Claim, b: Claim): boolean {
  const names = (one: Claim, other: Claim) => other.words.includes(one.own);
  if (a.own === b.own || names(a, b) || names(b, a)) return true;
  for (const minor of a.minors) if (b.minors.has(minor)) return true;
  return meet(a.disks, b.disks);
}

const shared = ({ own, disks }: Claim, why: string) =>
  new DmError(
    'ENGINES_SHARED',
    'EBUSY',
    `Cannot load the table of ${own}: what it names (${disks.words.join(', ')}) is served on different threads, and ${why}`,
    {
      hint: 'end what uses it and repeat the command, or serve everything on one thread: dmkit down; DMKIT_ENGINES=0 dmkit up',
    },
  );
