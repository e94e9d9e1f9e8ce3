/**
 * A mapped device: its tables, its suspend and resume, who has it open (Linux `dm.c`, `dm-ioctl.c`).
 *
 *     (live?, inactive?, suspended?)
 *     load     fills the inactive slot      suspend  presuspend, hold, drain, flush, postsuspend
 *     clear    empties it                   resume   [suspend, swap]  preresume, resume, let the held requests go
 *
 * Suspend, resume, revert and the end of the device exclude one another; so do two loads. Everything else reads the
 * state as it is and never waits.
 */
import type { BlockDevice, Mode } from '../device/block-device.ts';
import { DmError } from '../errors.ts';
import { Lock } from '../lib/lock.ts';
import type { TargetType } from '../targets/target.ts';
import { SECTOR } from '../units.ts';
import type { Geometry, LoadOptions, SuspendOptions, TargetSpec } from './control.ts';
import type { Lease } from './devices.ts';
import { IoPath } from './io-path.ts';
import { Table } from './table.ts';

/** What a mapped device needs of the mapper. */
export interface DeviceSource {
  readonly major: number;
  readonly types: ReadonlyMap<string, TargetType>;
  resolve(argument: string, directory?: string): Promise<unknown>;
  /** Claims what `resolve` found for a table of `user`. */
  claim(key: unknown, mode: Mode, user: MappedDevice): Promise<Lease>;
  /** The event number has risen. */
  event(device: MappedDevice): void;
  /** A target of the device has no room left on `below`. True: it is larger now. */
  enlarge(device: MappedDevice, below: BlockDevice): boolean;
  /** The last opener has left. */
  unused(device: MappedDevice): Promise<void>;
}

export interface InterruptibleOptions extends SuspendOptions {
  /** Ends the wait for requests in flight; the device is then as before, and the call fails with EINTR. */
  signal?: AbortSignal;
}

export class MappedDevice extends IoPath {
  readonly minor: number;
  /** Stored form. */
  storedName: string;
  uuid: string;
  eventNumber = 0;
  deferredRemove = false;
  /** Between the beginning and the end of its `create`: no call finds it, and no restart brings it back. */
  unfinished = false;
  /** No new openers; the name is free again. */
  deleting = false;
  geometry: Geometry | undefined;
  /** Sectors; undefined: from the limits. */
  readAheadAsked: number | undefined;
  readAheadMinimum = false;
  note: string | undefined;
  /** What could not be loaded after a restart, until another table is live. */
  lostTable: TargetSpec[] | undefined;
  lostReadOnly = false;
  /** A table was loaded once, so that the device can be opened by other tables. */
  loaded = false;
  #source: DeviceSource;
  #inactive: Table | undefined;
  #suspended = false;
  /** A suspended device becomes active again without anybody asking for it. */
  #passing = false;
  #lock = new Lock();
  #loading = new Lock();
  #handles = 0;
  /** The tables above, as one claim for each mode: how many of the user's tables hold it. */
  #users = new Map<MappedDevice, Record<Mode, number>>();
  #waiters = new Set<() => void>();

  constructor(source: DeviceSource, minor: number, name: string, uuid: string) {
    super(`${source.major}:${minor}`);
    this.#source = source;
    this.minor = minor;
    this.storedName = name;
    this.uuid = uuid;
  }

  get suspended(): boolean {
    return this.#suspended;
  }

  /** Until somebody resumes it. Not for a moment only, which a restart cuts short: nobody would know of it then. */
  get staysSuspended(): boolean {
    return this.#suspended && !this.#passing;
  }

  get liveTable(): Table | undefined {
    return this.live;
  }

  get inactiveTable(): Table | undefined {
    return this.#inactive;
  }

  /** Sectors. */
  get readAhead(): number {
    const automatic = Math.max(256, (2 * this.hints.optimalIo) / SECTOR);
    if (this.readAheadAsked === undefined) return automatic;
    return this.readAheadMinimum ? Math.max(automatic, this.readAheadAsked) : this.readAheadAsked;
  }

  /** Builds a table and puts it into the inactive slot. */
  load(specs: readonly TargetSpec[], { readOnly = false, directory }: LoadOptions = {}): Promise<void> {
    return this.#loading.run(async () => {
      const table = await Table.build(specs, {
        types: this.#source.types,
        readOnly,
        owner: this,
        event: () => this.event(),
        enlarge: (below) => this.#source.enlarge(this, below),
        resolve: (argument) => this.#source.resolve(argument, directory),
        claim: (key, mode) => this.#source.claim(key, mode, this),
      });
      try {
        if (this.deleting) throw gone(this);
        table.checkReplaces(this.live?.immutableType);
        if (!this.loaded) table.limits(this.limits);
      } catch (error) {
        await table.close();
        throw error;
      }
      this.loaded = true;
      const replaced = this.#inactive;
      this.#inactive = table;
      await replaced?.close();
    });
  }

  async clear(): Promise<void> {
    const cleared = this.#inactive;
    this.#inactive = undefined;
    await cleared?.close();
  }

  suspend(options: InterruptibleOptions = {}): Promise<void> {
    return this.#lock.run(async () => {
      if (this.deleting) throw gone(this);
      await this.#suspend(options);
    });
  }

  resume(options: InterruptibleOptions = {}): Promise<void> {
    return this.#lock.run(async () => {
      if (this.deleting) throw gone(this);
      await this.#passingly(async () => {
        const replaced = this.#inactive ? await this.#swap(options) : undefined;
        try {
          await this.#resume();
        } finally {
          // After the new targets have resumed: they may take over from the old ones.
          await replaced?.close();
        }
      });
    });
  }

  /** Makes the live targets that have an origin equal to it again. A suspended device stays so. */
  revert(): Promise<void> {
    return this.#lock.run(async () => {
      const targets = this.live?.targets.filter(({ target }) => target.revert) ?? [];
      if (targets.length === 0)
        throw new DmError('NO_SNAPSHOT', 'EINVAL', `Cannot revert ${this.storedName}: it has no live snapshot target`, {
          hint: `look at: dmkit dmsetup table ${this.storedName}`,
        });
      const wasSuspended = this.#suspended;
      await this.#passingly(async () => {
        // What is to be forgotten need not be durable first: a COW store that is full is a reason to revert, not against it.
        await this.#suspend({ noflush: true }).catch((error) => {
          if (!this.#suspended) throw error;
        });
        try {
          for (const { target } of targets) await target.revert!();
        } finally {
          if (!wasSuspended) await this.#resume();
        }
      });
    });
  }

  /** For work that leaves the device as active as it is now. */
  async #passingly(work: () => Promise<void>): Promise<void> {
    this.#passing = !this.#suspended;
    try {
      await work();
    } finally {
      this.#passing = false;
    }
  }

  /** Ends the device, which is marked `deleting`. Requests still held fail. `flush`: as a suspend does. */
  destroy({ flush = false } = {}): Promise<void> {
    return this.#lock.run(async () => {
      const failures: unknown[] = [];
      const attempt = (step: Promise<void>) => step.catch((error) => failures.push(error));
      await this.#loading.run(() => attempt(this.clear()));
      this.live?.abandon();
      if (flush) await attempt(this.#suspend({}));
      // Again without a flush where that has failed.
      await attempt(this.#suspend({ nolockfs: true }));
      const last = this.live;
      this.setLive(undefined);
      this.#suspended = false;
      this.release();
      await attempt(last?.close() ?? Promise.resolve());
      if (failures.length > 0) throw failures[0];
    });
  }

  /** Raises the event number and wakes who waits for it. */
  event(): void {
    this.eventNumber = (this.eventNumber + 1) >>> 0;
    this.wake();
    this.#source.event(this);
  }

  wake(): void {
    for (const waiter of this.#waiters) waiter();
    this.#waiters.clear();
  }

  /** Resolves at the next `wake`. Rejects with EINTR when `signal` fires first. */
  woken(signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(interrupted(`wait for an event of ${this.storedName}`));
      const abort = () => {
        this.#waiters.delete(waiter);
        reject(interrupted(`wait for an event of ${this.storedName}`));
      };
      const waiter = () => {
        signal?.removeEventListener('abort', abort);
        resolve();
      };
      this.#waiters.add(waiter);
      signal?.addEventListener('abort', abort, { once: true });
    });
  }

  /** Handles, and mapped devices above: one for each, and one more for each further mode. */
  get openCount(): number {
    let count = this.#handles;
    for (const { r, rw } of this.#users.values()) count += (r > 0 ? 1 : 0) + (rw > 0 ? 1 : 0);
    return count;
  }

  /** Somebody who is no table has it open, or waits for its next event. */
  get watched(): boolean {
    return this.#handles > 0 || this.#waiters.size > 0;
  }

  /** Mapped devices whose tables refer to this one. */
  get users(): Iterable<MappedDevice> {
    return this.#users.keys();
  }

  addHandle(): void {
    if (this.deleting || !this.live) throw noDevice(this);
    this.#handles++;
  }

  dropHandle(): Promise<void> {
    this.#handles--;
    return this.#dropped();
  }

  /** A table of `user` holds this device. Throws ENXIO before the first table, EINVAL for a loop. */
  addUser(user: MappedDevice, mode: Mode): void {
    if (this.deleting || !this.loaded) throw noDevice(this);
    if (user.isBelow(this))
      throw new DmError(
        'DEVICE_LOOP',
        'EINVAL',
        `Cannot put ${user.storedName} over ${this.storedName}: it would lead back to itself`,
        { hint: 'look at: dmkit dmsetup ls --tree' },
      );
    let modes = this.#users.get(user);
    if (!modes) this.#users.set(user, (modes = { r: 0, rw: 0 }));
    modes[mode]++;
  }

  dropUser(user: MappedDevice, mode: Mode): Promise<void> {
    const modes = this.#users.get(user)!;
    modes[mode]--;
    if (modes.r + modes.rw === 0) this.#users.delete(user);
    return this.#dropped();
  }

  /** This device is `other`, or one of the tables of `other`, live, inactive or being built, leads to it. */
  isBelow(other: MappedDevice): boolean {
    const above = new Set<MappedDevice>([this]);
    for (const device of above) for (const user of device.#users.keys()) above.add(user);
    return above.has(other);
  }

  async #dropped(): Promise<void> {
    if (this.openCount === 0) await this.#source.unused(this);
  }

  /** Throws EINTR, or what the flush threw; the device is then active as before. */
  async #suspend({ noflush = false, nolockfs = false, signal }: InterruptibleOptions): Promise<void> {
    if (this.#suspended) return;
    const table = this.live;
    table?.presuspend();
    this.hold();
    try {
      await this.drain(signal);
      if (table) await until(table.drained(), signal);
      if (!noflush && !nolockfs && !signal?.aborted) {
        // The flush may be stuck below. It counts as a request, so that after an interruption it is still waited for.
        const flushed = this.flushLive();
        flushed.catch(() => {});
        await this.drain(signal);
        if (!signal?.aborted) await flushed;
      }
      if (signal?.aborted) throw interrupted(`suspend ${this.storedName}`);
    } catch (error) {
      this.release();
      table?.presuspendUndo();
      throw error;
    }
    this.#suspended = true;
    await table?.postsuspend();
  }

  /** Moves the inactive table to live. Resolves with the table it replaces. The device is suspended afterwards. */
  async #swap(options: InterruptibleOptions): Promise<Table | undefined> {
    const next = this.#inactive!;
    this.#inactive = undefined;
    try {
      await this.#suspend(options);
    } catch (error) {
      // Back into the slot, unless another load has filled it meanwhile.
      if (this.#inactive) await next.close();
      else this.#inactive = next;
      throw error;
    }
    const previous = this.live;
    const size = this.size;
    try {
      this.setLive(next, next.limits(this.limits));
    } catch (error) {
      await next.close();
      throw error;
    }
    if (this.size !== size) this.geometry = undefined;
    this.note = undefined;
    this.lostTable = undefined;
    return previous;
  }

  async #resume(): Promise<void> {
    if (!this.#suspended) return;
    const table = this.live;
    if (!table)
      throw new DmError('NO_TABLE', 'EINVAL', `Cannot resume ${this.storedName}: it has no table`, {
        hint: `load one first: dmkit dmsetup load ${this.storedName} --table '…'`,
      });
    await table.preresume();
    table.resume();
    this.#suspended = false;
    this.release();
  }
}

/** Waits for `wait`, or until `signal` fires: the caller asks which. */
async function until(wait: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (!signal) return wait;
  await new Promise<void>((resolve) => {
    const done = () => {
      signal.removeEventListener('abort', done);
      resolve();
    };
    if (signal.aborted) done();
    else signal.addEventListener('abort', done);
    wait.then(done, done);
  });
}

/** The claim of a table of `user` on another mapped device. */
export function claimMapped(device: MappedDevice, mode: Mode, user: MappedDevice): Lease {
  device.addUser(user, mode);
  let claimed = mode;
  return {
    device,
    get mode() {
      return claimed;
    },
    async upgrade() {
      if (claimed === 'rw') return;
      device.addUser(user, 'rw');
      claimed = 'rw';
      await device.dropUser(user, 'r');
    },
    release: () => device.dropUser(user, claimed),
  };
}

const interrupted = (attempted: string) =>
  new DmError('INTERRUPTED', 'EINTR', `Cannot ${attempted}: interrupted before it was done`);

const noDevice = (device: MappedDevice) =>
  new DmError('NO_DEVICE', 'ENXIO', `Cannot open ${device.storedName} (${device.name}): it has no table yet`, {
    hint: `load one and resume it: dmkit dmsetup load ${device.storedName} --table '…'`,
  });

const gone = (device: MappedDevice) =>
  new DmError('NO_DEVICE', 'ENXIO', `Cannot find ${device.storedName} (${device.name}): it was removed`);
