/**
 * Makes events of what happens to mapped devices. What the mapper says is told at once. How full a COW store is, whether
 * it overflowed, how far a merge is, nobody says, as in the kernel: it is looked at every second, as long as somebody wants to
 * know it.
 */
import type { BlockDevice } from '../../device/block-device.ts';
import type { Clock } from '../../lib/clock.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { ChangeKind, Mapper } from '../../mapper/mapper.ts';
import type { Target } from '../../targets/target.ts';
import { type PoolStatus, percent, statusOf, WARN_AT } from '../pool/pool-status.ts';
import type { EventBatch, EventControl } from './event.ts';
import type { EventLog } from './event-log.ts';
import { type Fill, fillOf, percentOf } from './fill.ts';

/** Between two looks. */
const EVERY_MS = 1000;
/** Someone who took events is expected back for this long. */
const LINGER_MS = 10_000;
/** Percent between two events. */
const STEP = 5;

/** What a status line says in place of numbers. */
const EVENT_OF: Readonly<Record<string, 'invalid' | 'overflow' | 'merge-failed'>> = {
  Invalid: 'invalid',
  Overflow: 'overflow',
  'Merge failed': 'merge-failed',
};

export interface MonitorOptions {
  mapper: Mapper;
  log: Pick<EventLog, 'emit' | 'waiting' | 'events'>;
  /** Told of every snapshot at each look. */
  filled?(device: MappedDevice, cow: BlockDevice, fill: Fill): void;
  /** Told of every pool at each look, and of every step of 5 percent above which its users are warned. */
  pooled?(device: MappedDevice, status: PoolStatus): void;
  warn?(device: MappedDevice, part: 'data' | 'metadata', percent: number): void;
  /** Looks are needed though nobody watches. */
  needed?(): boolean;
  /** Its timers must not keep the process alive. */
  clock?: Clock;
}

/** What was last told of a device. */
interface Known {
  name: string;
  eventNumber: number;
  /** The change that the mapper is about to tell was told as a rename. */
  renamed: boolean;
}

/** What was last seen of a snapshot or a merge. */
interface Seen {
  /** Invalid, Overflow, Merge failed; '' where there are numbers. */
  state: string;
  percent: number;
  /** Bytes that a merge had to do when it was first seen. */
  toMerge: number;
}

/** What was last seen of a pool: percent. */
interface SeenPool {
  state: ReturnType<typeof stateOf>;
  data: number;
  metadata: number;
}

export class Monitor implements EventControl {
  readonly #mapper: Mapper;
  readonly #log: MonitorOptions['log'];
  readonly #filled: NonNullable<MonitorOptions['filled']>;
  readonly #pooled: NonNullable<MonitorOptions['pooled']>;
  readonly #warn: NonNullable<MonitorOptions['warn']>;
  readonly #needed: () => boolean;
  readonly #clock: Clock;
  readonly #devices = new Map<MappedDevice, Known>();
  #seen = new WeakMap<Target, Seen>();
  #pools = new WeakMap<MappedDevice, SeenPool>();
  /** Cancels the next look; absent while none is needed. */
  #next: (() => void) | undefined;
  #lastTaken = Number.NEGATIVE_INFINITY;
  #closed = false;

  constructor(options: MonitorOptions) {
    const { mapper, log, needed = () => false, clock = backgroundClock } = options;
    this.#mapper = mapper;
    this.#log = log;
    this.#filled = options.filled ?? (() => {});
    this.#pooled = options.pooled ?? (() => {});
    this.#warn = options.warn ?? (() => {});
    this.#needed = needed;
    this.#clock = clock;
  }

  /** With the devices that are there, of which nothing was told; also when some have come or gone untold. */
  begin(): void {
    for (const device of this.#devices.keys()) if (device.deleting) this.#devices.delete(device);
    for (const name of this.#mapper.names()) this.#knownOf(this.#mapper.device({ name }));
    this.#wake();
  }

  close(): void {
    this.#closed = true;
    this.#next?.();
    this.#next = undefined;
  }

  async events(after?: number, signal?: AbortSignal): Promise<EventBatch> {
    this.taken();
    try {
      return await this.#log.events(after, signal);
    } finally {
      this.taken();
    }
  }

  /** Somebody takes events, or did until now. */
  taken(): void {
    this.#lastTaken = this.#clock.now();
    this.#wake();
  }

  /** What the mapper calls at every change. */
  changed(kind: ChangeKind, device: MappedDevice): void {
    const known = this.#knownOf(device);
    const renamed = known.name !== device.storedName;
    if (renamed) this.#log.emit(device, { event: 'rename', from: known.name });
    known.name = device.storedName;
    const raised = known.eventNumber !== device.eventNumber;
    known.eventNumber = device.eventNumber;
    if (raised) this.#log.emit(device, { event: 'table-event', number: device.eventNumber });
    if (kind === 'event') {
      known.renamed = renamed;
      if (this.#next) this.#look(device);
    } else if (kind !== 'change') {
      this.#log.emit(device, { event: kind });
      if (kind === 'remove') this.#devices.delete(device);
      // What has become of a merge cannot be seen any more when another table has taken its place.
      else if (kind === 'suspend' && this.#next) this.#look(device);
      else if (kind === 'table') {
        if (this.#next) this.#look(device, true);
        else this.#wake();
      }
    } else {
      if (!renamed && !known.renamed) this.#log.emit(device, { event: 'change' });
      known.renamed = false;
    }
  }

  /** A COW device is full. What that came to can be seen when the write that found it so has ended. */
  full(device: MappedDevice): void {
    if (this.#next) queueMicrotask(() => this.#look(device));
  }

  #knownOf(device: MappedDevice): Known {
    let known = this.#devices.get(device);
    if (!known) {
      known = { name: device.storedName, eventNumber: device.eventNumber, renamed: false };
      this.#devices.set(device, known);
    }
    return known;
  }

  get #isNeeded(): boolean {
    if (this.#closed) return false;
    return this.#log.waiting > 0 || this.#clock.now() - this.#lastTaken < LINGER_MS || this.#needed();
  }

  /** Begins to look, if it is needed now and was not before: what is there already is no event. */
  #wake(): void {
    if (this.#next || !this.#isNeeded) return;
    this.#seen = new WeakMap();
    this.#pools = new WeakMap();
    for (const device of this.#devices.keys()) this.#look(device);
    this.#next = this.#clock.after(EVERY_MS, this.#lookAgain);
  }

  readonly #lookAgain = (): void => {
    this.#next = undefined;
    for (const device of this.#devices.keys()) this.#look(device);
    if (this.#isNeeded) this.#next = this.#clock.after(EVERY_MS, this.#lookAgain);
  };

  /** `fresh`: its table became live just now. */
  #look(device: MappedDevice, fresh = false): void {
    for (const { type, target } of device.liveTable?.targets ?? [])
      if (type.name === 'snapshot') this.#lookAtSnapshot(device, target);
      else if (type.name === 'snapshot-merge') this.#lookAtMerge(device, target, fresh);
      else if (type.name === 'thin-pool') this.#lookAtPool(device);
  }

  #lookAtSnapshot(device: MappedDevice, target: Target): void {
    const text = target.status('info');
    const { device: cow } = target.ranges[1];
    const fill = fillOf(text);
    const percent = fill ? stepOf(percentOf(fill)) : 0;
    const seen = this.#seen.get(target);
    this.#seen.set(target, { state: fill ? '' : text, percent, toMerge: 0 });
    if (fill) {
      if (seen && percent > seen.percent)
        this.#log.emit(device, { event: 'fill', cow: cow.name, percent, used: fill.allocated, size: fill.total });
      this.#filled(device, cow, fill);
    } else if (seen && seen.state !== text) this.#tellState(device, cow.name, text);
  }

  #lookAtMerge(device: MappedDevice, target: Target, fresh: boolean): void {
    const text = target.status('info');
    const cow = target.ranges[1].device.name;
    const fill = fillOf(text);
    const seen = this.#seen.get(target);
    if (!fill) {
      this.#seen.set(target, { state: text, percent: 0, toMerge: seen?.toMerge ?? 0 });
      if (seen && seen.state !== text) this.#tellState(device, cow, text);
      return;
    }
    const left = fill.allocated - fill.metadata;
    const toMerge = Math.max(seen?.toMerge ?? 0, left);
    const percent = left === 0 ? 100 : stepOf((100 * (toMerge - left)) / toMerge);
    this.#seen.set(target, { state: '', percent, toMerge });
    // As one that began and ended between two looks.
    if (!seen && !(fresh && left === 0)) return;
    if (percent <= (seen?.percent ?? 0)) return;
    this.#log.emit(device, left === 0 ? { event: 'merge-done', cow } : { event: 'merge', cow, percent, left });
  }

  #lookAtPool(device: MappedDevice): void {
    const status = statusOf(device);
    const seen = this.#pools.get(device);
    const state = stateOf(status);
    const now: SeenPool = { state, data: 0, metadata: 0 };
    this.#pools.set(device, now);
    if (seen && seen.state !== state) this.#log.emit(device, { event: 'pool-state', state });
    if (!status) return;
    for (const part of ['data', 'metadata'] as const) {
      const [used, size] =
        part === 'data' ? [status.dataUsed, status.dataSize] : [status.metadataUsed, status.metadataSize];
      const reached = stepOf(percent(used, size));
      now[part] = reached;
      if (!seen || reached <= seen[part]) continue;
      this.#log.emit(device, { event: 'pool-fill', part, percent: reached, used, size });
      if (reached >= WARN_AT) this.#warn(device, part, reached);
    }
    this.#pooled(device, status);
  }

  #tellState(device: MappedDevice, cow: string, text: string): void {
    const event = EVENT_OF[text];
    if (event) this.#log.emit(device, { event, cow });
  }
}

function stateOf(status: PoolStatus | undefined) {
  if (!status) return 'failed';
  if (status.needsCheck) return 'needs check';
  return status.mode === 'rw' ? 'active' : status.mode === 'ro' ? 'read-only' : 'full';
}

const stepOf = (percent: number) => Math.floor(percent / STEP) * STEP;

/** Its timers end with the process. */
const backgroundClock: Clock = {
  now: () => performance.now(),
  after(ms, call) {
    const timer = setTimeout(call, ms);
    timer.unref();
    return () => clearTimeout(timer);
  },
};
