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
import { type Clock, systemClock } from '../../lib/clock.ts';
import { Lock } from '../../lib/lock.ts';
import type { DeviceRef, TargetSpec } from '../../mapper/control.ts';
import type { ForkOptions } from '../fork/fork-control.ts';
import { merging } from '../fork/forks.ts';
import { cowPath } from '../fork/make-fork.ts';
import { checkName } from '../fork/names.ts';
import type { ForksState } from '../fork/records.ts';
import type { OpenPoolOptions, VolumeSource } from '../pool/pool-control.ts';
import { nameOf } from '../pool/pools.ts';
import type { DiskKeys, Engine } from './engine.ts';
import { Gate } from './gate.ts';
import { Moves, type Part } from './moves.ts';
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
  /** Starts one more, with what it is to bring back. Resolves when it answers. */
  start(number: number, state: ForksState): Promise<StartedEngine>;
  clock?: Clock;
}

/** What a call that is under way may come to use. */
interface Claim {
  /** What it is to do, in words. */
  attempted: string;
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

/** These wait for something to happen, so that nobody waits for them. */
const LONG = new Set(['wait', 'mergeProgress']);

export class Engines {
  readonly #options: EnginesOptions;
  readonly #registry: Registry;
  readonly #engines: Engine[];
  readonly #started: StartedEngine[] = [];
  readonly #placing = new Lock();
  readonly #claims = new Set<Claim>();
  readonly #gate: Gate;
  readonly #moves: Moves;
  /** Those who make or merge a fork of that name, and how many they are. */
  readonly #turns = new Map<string, { lock: Lock; count: number }>();

  constructor(options: EnginesOptions) {
    this.#options = options;
    this.#registry = options.registry;
    this.#engines = [options.local];
    this.#gate = new Gate(options.clock ?? systemClock);
    this.#moves = new Moves(options.registry);
  }

  get all(): readonly Engine[] {
    return this.#engines;
  }

  /** Those on threads of their own. */
  get started(): readonly StartedEngine[] {
    return this.#started;
  }

  /** The one that has the device; without such a device the first, which says so. Throws ENGINES_MOVING (EBUSY). */
  of(ref: DeviceRef): Engine {
    const placed = this.#registry.find(ref);
    if (placed) this.#moves.check(placed);
    return this.#engines[placed?.engine ?? 0];
  }

  /** A call about a device. */
  call<T>(ref: DeviceRef, call: string, args: readonly unknown[], signal?: AbortSignal): Promise<T> {
    return this.during(() => this.of(ref).call<T>(call, args, signal), LONG.has(call), signal);
  }

  /**
   * While `work` runs nothing moves. It is asked for when nothing does. `long`: it may take any time, and is not waited for; nor is
   * it carried out when `signal` fires before it has begun, as all else is though its client has gone.
   */
  during<T>(work: () => Promise<T>, long = false, signal?: AbortSignal): Promise<T> {
    return long ? this.#gate.aside(work, signal) : this.#gate.through(work);
  }

  /** Of all engines, in ascending byte order of the name. */
  async list<T extends { name: string }>(call: string, args: readonly unknown[]): Promise<T[]> {
    const lists = await this.during(() => Promise.all(this.#engines.map((engine) => engine.call<T[]>(call, args))));
    if (lists.length === 1) return lists[0];
    const named = lists.flat().map((entry) => ({ entry, bytes: Buffer.from(entry.name) }));
    return named.sort((a, b) => Buffer.compare(a.bytes, b.bytes)).map(({ entry }) => entry);
  }

  /** Throws ENGINES_MOVING (EBUSY) while a device is on its way. */
  async each(call: string, args: readonly unknown[]): Promise<void> {
    await this.during(async () => {
      this.#moves.check();
      await Promise.all(this.#engines.map((engine) => engine.call(call, args)));
    });
  }

  /** What a restart must find again. */
  state(): Promise<ForksState> {
    return this.#moves.stateOf(this.#engines);
  }

  /** A call about a fork, which may be one that is being merged and has no device. */
  ofFork<T>(name: string, call: string, args: readonly unknown[], signal?: AbortSignal): Promise<T> {
    const work = () =>
      this.during(async () => (await this.#withFork(name, call)).call<T>(call, args, signal), LONG.has(call), signal);
    return call === 'merge' ? this.#inTurn(name, work) : work();
  }

  async #withFork(name: string, call: string): Promise<Engine> {
    if (this.#engines.length === 1) return this.#engines[0];
    const known = await this.#mergesOf(name);
    const running = known.indexOf('running');
    if (running >= 0) return this.#engines[running];
    const placed = this.#registry.find({ name });
    const finished = known.indexOf('finished');
    // Who has followed a merge hears of its end, though another fork has the name by now.
    const isFollowed = call === 'mergeProgress' && finished >= 0 && known[placed?.engine ?? 0] === undefined;
    return placed && !isFollowed ? this.of({ name }) : this.#engines[Math.max(0, finished)];
  }

  /** Makes and merges of forks of one name come one after the other, in whichever engines: they look for each other first. */
  async #inTurn<T>(name: string, work: () => Promise<T>): Promise<T> {
    const turn = this.#turns.get(name) ?? { lock: new Lock(), count: 0 };
    this.#turns.set(name, turn);
    turn.count++;
    try {
      return await turn.lock.run(work);
    } finally {
      if (--turn.count === 0) this.#turns.delete(name);
    }
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
      if (await this.#start(part)) parts.push(part);
      else {
        local.devices.push(...part.devices);
        local.forks.push(...part.forks);
      }
    await this.#moves.restoring(state, () =>
      Promise.all(this.#engines.map((engine, number) => engine.call('restore', [parts[number]]))),
    );
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
    const placed = typeof device === 'string' ? undefined : this.#registry.find(device);
    const own = typeof device === 'string' ? device : placed?.storedName;
    // Without such a device the first says so.
    if (this.#options.max === 0 || own === undefined) return this.during(() => this.#engines[0].call(call, args));
    const named = await namedBy(wordsOf(table), directory);
    return this.#place({ attempted: `load the table of ${own}`, own, placed, ...named }, false, call, args);
  }

  /** The call `fork`. */
  fork<T>(image: string, name: string, options: ForkOptions, args: readonly unknown[]): Promise<T> {
    if (this.#options.max === 0) return this.during(() => this.#engines[0].call('fork', args));
    const work = async () => {
      checkName(name);
      // It keeps its name, and is found by it, on whichever thread.
      const known = await this.during(() => this.#mergesOf(name));
      if (known.includes('running')) throw merging(name, 'make');
      const named = await namedByFork(image, name, options);
      const claim = { attempted: `fork ${image} as ${name}`, own: name, placed: undefined, ...named };
      return this.#place<T>(claim, true, 'fork', args);
    };
    return this.#inTurn(name, work);
  }

  /** The call `createPool` or `openPool`. */
  pool<T>(data: string, options: OpenPoolOptions, call: string, args: readonly unknown[]): Promise<T> {
    if (this.#options.max === 0) return this.during(() => this.#engines[0].call(call, args));
    const own = options.name ?? nameOf(data);
    const work = async () => {
      checkName(own);
      const disks = options.metadata === undefined ? [data] : [data, options.metadata];
      const { disks: named } = await namedBy(disks, options.directory);
      const attempted = `make the pool ${own}`;
      return this.#place<T>({ attempted, own, placed: undefined, devices: [], disks: named }, false, call, args);
    };
    return this.#inTurn(own, work);
  }

  /** The call `createVolume`. */
  volume<T>(pool: string, name: string, source: VolumeSource, args: readonly unknown[]): Promise<T> {
    if (this.#options.max === 0) return this.during(() => this.#engines[0].call('createVolume', args));
    const work = async () => {
      checkName(name);
      const known = await this.during(() => this.#mergesOf(name));
      if (known.includes('running')) throw merging(name, 'make');
      const { disks } = await namedBy(
        'image' in source ? [source.image] : [],
        'image' in source ? source.directory : undefined,
      );
      const claim = { attempted: `make the volume ${name}`, own: name, placed: undefined, devices: [pool], disks };
      return this.#place<T>(claim, false, 'createVolume', args);
    };
    return this.#inTurn(name, work);
  }

  /** `isImage`: nothing but its own commands is expected to name it. */
  async #place<T>(
    { attempted, own, placed, devices, disks }: Named & Pick<Claim, 'attempted' | 'own' | 'placed'>,
    isImage: boolean,
    call: string,
    args: readonly unknown[],
  ): Promise<T> {
    const claim: Claim = { attempted, own, placed, minors: new Set(), words: devices, disks, engine: 0 };
    let done: Promise<T> | undefined;
    await this.#placing.run(async () => {
      // Nothing moves for a name that is taken.
      if (!placed) this.#registry.checkFree(own);
      const holders = await this.#holders(claim);
      const at = placed?.engine;
      if (holders.size > 1 || (holders.size === 1 && at !== undefined && !holders.has(at)))
        await this.#gate.alone(
          (soon) => this.#gather(claim, soon),
          (why) => shared(claim, why),
        );
      else if (holders.size === 1) [claim.engine] = holders;
      else claim.engine = at ?? (isImage ? this.#leastLoaded() : 0);
      if (claim.engine === this.#engines.length && !(await this.#start({ devices: [], forks: [] }))) claim.engine = 0;
      this.#claims.add(claim);
      done = this.#gate.inside(() => this.#engines[claim.engine].call<T>(call, args));
      // Whoever waits for it handles it.
      done.catch(() => {});
    });
    try {
      return await done!;
    } finally {
      this.#claims.delete(claim);
    }
  }

  /** Engines that have something of what the claim names. Its own device counts if it has a table. */
  async #holders(claim: Claim): Promise<Set<number>> {
    const holders = new Set<number>();
    claim.minors.clear();
    this.#moves.checkDisks(claim.disks);
    for (const word of claim.words) {
      const found = this.#registry.find(refOf(word));
      if (!found) continue;
      this.#moves.check(found);
      claim.minors.add(found.minor);
      holders.add(found.engine);
    }
    const { placed } = claim;
    if (placed && !placed.deleting) {
      this.#moves.check(placed);
      const ref = { name: placed.storedName };
      if (await this.#engines[placed.engine].call<boolean>('isBound', [ref]).catch(() => true))
        holders.add(placed.engine);
    }
    for (const other of this.#claims) if (isShared(claim, other)) holders.add(other.engine);
    const held = await Promise.all(this.#engines.map((engine) => engine.call<boolean>('holds', [claim.disks])));
    for (const [engine, holds] of held.entries()) if (holds) holders.add(engine);
    return holders;
  }

  /** Brings everything that the claim names into one engine, which becomes the claim's: the first, if that is among them. */
  async #gather(claim: Claim, soon: AbortSignal): Promise<void> {
    const holders = [...(await this.#holders(claim))].sort((a, b) => a - b);
    const engines = new Set([...holders, ...(claim.placed ? [claim.placed.engine] : [])]);
    let why = '';
    for (const to of holders.length > 0 ? holders : engines) {
      const parts = new Map<number, Part>();
      why = '';
      for (const from of engines) {
        if (from === to) continue;
        const part = await this.#partOf(claim, from);
        why ||= typeof part === 'string' ? part : '';
        if (typeof part !== 'string') parts.set(from, part);
      }
      if (why !== '') continue;
      for (const [from, part] of parts) {
        if (soon.aborted) throw shared(claim, SLOW);
        await this.#moves.move(part, this.#engines[from], this.#engines[to], to, soon).catch((error: DmError) => {
          throw error.code === 'ENGINES_LOST' ? error : shared(claim, soon.aborted ? SLOW : error.message);
        });
      }
      claim.engine = to;
      return;
    }
    // Else what was there has gone meanwhile.
    if (why !== '') throw shared(claim, why);
  }

  /** What would have to leave the engine, or why it cannot. */
  async #partOf(claim: Claim, from: number): Promise<Part | string> {
    const { major } = this.#options;
    const engine = this.#engines[from];
    const part: Part = { state: { devices: [], forks: [] }, disks: { identities: [], words: [] } };
    let held = await engine.call<boolean>('holds', [claim.disks]);
    const state = await engine.call<ForksState>('state', []);
    for (const { devices, forks, disks } of await groupsOf(state, { major, look: false })) {
      const isNamed = devices.some(({ minor }) => claim.minors.has(minor) || minor === claim.placed?.minor);
      const isMet = meet(disks, claim.disks);
      if (!isNamed && !isMet) continue;
      if (isMet) held = false;
      part.state.devices.push(...devices);
      part.state.forks.push(...forks);
      part.disks.words.push(...disks.words);
    }
    if (held) return 'a disk is in use';
    const names = part.state.devices.map(({ name }) => name);
    const uuids = part.state.forks.map(({ uuid }) => uuid);
    // What is gone by now need not be there.
    const bound = engine.call<string | undefined>('bound', [names, uuids]).catch((error: Error) => error.message);
    return (await bound) ?? part;
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
  async #start(state: ForksState): Promise<boolean> {
    let engine: StartedEngine;
    try {
      engine = await this.#options.start(this.#engines.length, state);
    } catch {
      return false;
    }
    this.#engines.push(engine);
    this.#started.push(engine);
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

const SLOW = 'what has yet to be written there takes too long';

const shared = ({ attempted }: Claim, why: string) =>
  new DmError(
    'ENGINES_SHARED',
    'EBUSY',
    `Cannot ${attempted}: what it names is served on different threads, and ${why}`,
    {
      hint: 'end what uses it and repeat the command, or serve everything on one thread: dmkit down; DMKIT_ENGINES=0 dmkit up',
    },
  );
