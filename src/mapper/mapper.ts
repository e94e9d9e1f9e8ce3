/**
 * The mapper: names, uuids and numbers of the mapped devices, and their life from create to remove (Linux
 * `dm-ioctl.c`). Names and uuids are two indexes; the number is the identity of a device for its whole life.
 */
import type { BlockDevice, Mode } from '../device/block-device.ts';
import { Disks } from '../device/open.ts';
import { DmError } from '../errors.ts';
import type { TargetType } from '../targets/target.ts';
import { isMissed, whyBound } from './bound.ts';
import type {
  Control,
  CreateOptions,
  DeviceInfo,
  DeviceRef,
  Geometry,
  InactiveOption,
  LoadOptions,
  SuspendOptions,
  TargetSpec,
  TargetText,
  TargetVersion,
} from './control.ts';
import { byName, type Claims, DeviceIndex } from './device-index.ts';
import { infoOf } from './device-info.ts';
import { type DeviceOpener, Devices, type Lease } from './devices.ts';
import { claimMapped, type DeviceSource, type InterruptibleOptions, MappedDevice } from './mapped-device.ts';
import { badMessage, splitMessage, targetMessage } from './message.ts';
import { targetTypes } from './registry.ts';
import { restore } from './restore.ts';
import { type SavedDevice, savedOf } from './saved-device.ts';
import type { Table } from './table.ts';
import { destroyAll, suspendAll } from './together.ts';

/**
 * What has happened to a device: `table`: another table is live; `event`: the event number has risen; `change`: name,
 * uuid, geometry, deferred removal.
 */
export type ChangeKind = 'create' | 'table' | 'suspend' | 'resume' | 'change' | 'event' | 'remove';

export interface MapperOptions {
  /** Of all mapped devices. */
  major?: number;
  /** How disks that are not mapped devices are found and opened. */
  opener?: DeviceOpener;
  /** Newest first. */
  types?: readonly TargetType[];
  /**
   * Called after every change that a restart must find again. A call of the mapper settles after what this returns; it
   * must not fail.
   */
  onChange?(kind: ChangeKind, device: MappedDevice): void | Promise<void>;
  /** A target of `device` has no room left on the disk `below`, in the middle of a write. True: it is larger now. */
  enlarge?(device: MappedDevice, below: BlockDevice): boolean;
  /** Where names and numbers must be unique over several mappers. */
  claims?: Claims;
}

/** Someone who uses a mapped device: a connection, an attached node, a program. Counts in the open count. */
export interface OpenDevice {
  readonly device: MappedDevice;
  /** Idempotent. Settles when everything that only waited for this (deferred removal) is gone too. */
  close(): Promise<void>;
}

export class Mapper implements Control {
  readonly major: number;
  #types: readonly TargetType[];
  #devices: Devices;
  #index: DeviceIndex;
  #notify: NonNullable<MapperOptions['onChange']>;
  #claims: Claims | undefined;
  /** While all devices go together. */
  #quiet = false;
  /** Names of devices that come back or move away: nobody is told of what happens to them. */
  #silent = new Set<string>();
  #source: DeviceSource;

  constructor(options: MapperOptions = {}) {
    const { major = 254, opener = new Disks(), types = targetTypes, onChange = () => {}, enlarge, claims } = options;
    this.major = major;
    this.#types = types;
    this.#index = new DeviceIndex(major);
    this.#devices = new Devices(opener);
    this.#notify = onChange;
    this.#claims = claims;
    this.#source = {
      major,
      types: new Map(types.map((type) => [type.name, type])),
      resolve: (argument, directory) => this.#resolve(argument, directory),
      claim: (key, mode, user) => this.#claim(key, mode, user),
      event: (device) => void this.#onChange('event', device),
      enlarge: (device, below) => enlarge?.(device, below) ?? false,
      unused: (device) => this.#unused(device),
    };
  }

  async version(): Promise<[number, number, number]> {
    return [4, 47, 0];
  }

  async targets(): Promise<TargetVersion[]> {
    return this.#types.map(({ name, version: [major, minor, patch] }) => ({ name, version: [major, minor, patch] }));
  }

  async list(options?: InactiveOption): Promise<DeviceInfo[]> {
    return this.#index.sorted().map((device) => this.#info(device, options));
  }

  /** Stored names, in ascending byte order. */
  names(): string[] {
    return this.#index.sorted().map(({ storedName }) => storedName);
  }

  async info(ref: DeviceRef, options?: InactiveOption): Promise<DeviceInfo> {
    return this.#info(this.device(ref), options);
  }

  async create(name: string, options: CreateOptions = {}): Promise<DeviceInfo> {
    const { uuid = '' } = options;
    const minor = this.#claims
      ? await this.#claims.add(name, uuid, options.minor)
      : this.#index.freeMinor(options.minor);
    this.#index.checkName(name);
    this.#index.checkUuid(uuid);
    const device = new MappedDevice(this.#source, minor, name, uuid);
    if (options.readAhead !== undefined && options.readAhead >= 0) device.readAheadAsked = options.readAhead;
    device.readAheadMinimum = options.readAheadMinimum ?? false;
    device.unfinished = options.table !== undefined;
    this.#index.add(device);
    if (options.table) await this.#finish(device, options.table, options);
    else await this.#onChange('create', device);
    return this.#info(device);
  }

  async load(ref: DeviceRef, table: TargetSpec[], options?: LoadOptions): Promise<DeviceInfo> {
    const device = this.device(ref);
    await device.load(table, options);
    return this.#info(device);
  }

  async clear(ref: DeviceRef): Promise<DeviceInfo> {
    const device = this.device(ref);
    await device.clear();
    return this.#info(device);
  }

  async suspend(ref: DeviceRef, options: InterruptibleOptions = {}): Promise<DeviceInfo> {
    const device = this.device(ref);
    await device.suspend(options);
    await this.#onChange('suspend', device);
    return this.#info(device);
  }

  async resume(ref: DeviceRef, options: SuspendOptions & InterruptibleOptions = {}): Promise<DeviceInfo> {
    const device = this.device(ref);
    const before = device.liveTable;
    try {
      await device.resume(options);
    } finally {
      if (!device.deleting) await this.#onChange(device.liveTable === before ? 'resume' : 'table', device);
    }
    return this.#info(device);
  }

  async remove(ref: DeviceRef, { deferred = false }: { deferred?: boolean } = {}): Promise<void> {
    const device = this.device(ref);
    if (device.openCount === 0) return this.#remove(device);
    if (!deferred)
      throw new DmError(
        'DEVICE_OPEN',
        'EBUSY',
        `Cannot remove ${device.storedName}: it is open ${device.openCount} times`,
        {
          hint: this.#openHint(device),
        },
      );
    device.deferredRemove = true;
    await this.#onChange('change', device);
  }

  async removeAll({ deferred = false }: { deferred?: boolean } = {}): Promise<void> {
    for (let again = true; again; ) {
      again = false;
      for (const device of this.#index.sorted()) {
        if (device.deleting) continue;
        if (device.openCount === 0) {
          await this.#remove(device);
          again = true;
        } else if (deferred && !device.deferredRemove) {
          device.deferredRemove = true;
          await this.#onChange('change', device);
        }
      }
    }
  }

  async rename(ref: DeviceRef, newName: string): Promise<DeviceInfo> {
    this.#index.checkName(newName);
    const device = this.device(ref);
    if (this.#claims) {
      await this.#claims.rename(device.minor, newName);
      this.#checkThere(device);
    }
    this.#index.rename(device, newName);
    return this.#renamed(device);
  }

  async setUuid(ref: DeviceRef, uuid: string): Promise<DeviceInfo> {
    if (uuid === '') throw new DmError('UUID_INVALID', 'EINVAL', 'Cannot set an empty uuid');
    this.#index.checkUuid(uuid);
    const device = this.device(ref);
    if (device.uuid !== '')
      throw new DmError(
        'UUID_SET',
        'EINVAL',
        `Cannot set the uuid of ${device.storedName} to "${uuid}": it is "${device.uuid}" already, and stays so`,
      );
    if (this.#claims) {
      await this.#claims.setUuid(device.minor, uuid);
      this.#checkThere(device);
    }
    this.#index.setUuid(device, uuid);
    return this.#renamed(device);
  }

  async message(ref: DeviceRef, sector: number, text: string): Promise<string> {
    const device = this.device(ref);
    const words = splitMessage(text);
    if (words.length === 0) throw badMessage(device, 'it is empty');
    if (words[0].startsWith('@')) return this.#coreMessage(device, words);
    return targetMessage(device, sector, words);
  }

  async table(ref: DeviceRef, options?: InactiveOption): Promise<TargetText[]> {
    return this.#table(ref, options)?.text('table') ?? [];
  }

  async status(ref: DeviceRef, options?: InactiveOption & { noflush?: boolean }): Promise<TargetText[]> {
    if (!options?.noflush) await this.#table(ref, options)?.prestatus();
    // Asked anew: that table may have been closed meanwhile.
    return this.#table(ref, options)?.text('info') ?? [];
  }

  async measure(ref: DeviceRef, options?: InactiveOption): Promise<TargetText[]> {
    return this.#table(ref, options)?.text('measure') ?? [];
  }

  async wait(ref: DeviceRef, event: number, signal?: AbortSignal): Promise<DeviceInfo | undefined> {
    const device = this.device(ref);
    if (device.eventNumber === event) await device.woken(signal);
    return device.deleting ? undefined : this.#info(device);
  }

  async setGeometry(ref: DeviceRef, geometry: Geometry): Promise<void> {
    const device = this.device(ref);
    const [cylinders, heads, sectors, start] = geometry;
    const whole = geometry.every((value) => Number.isSafeInteger(value) && value >= 0);
    const fits = cylinders <= 65535 && heads <= 255 && sectors <= 255 && start <= cylinders * heads * sectors;
    if (!whole || !fits)
      throw new DmError(
        'GEOMETRY_INVALID',
        'EINVAL',
        `Cannot set the geometry ${geometry.join(' ')}: at most 65535 cylinders, 255 heads and sectors, and a start within`,
      );
    device.geometry = geometry;
    await this.#onChange('change', device);
  }

  async revert(ref: DeviceRef): Promise<DeviceInfo> {
    const device = this.device(ref);
    await device.revert();
    return this.#info(device);
  }

  /** The device itself, for I/O. ENXIO if there is none. Does not count as open: see `open`. */
  device(ref: DeviceRef): MappedDevice {
    return this.#index.get(ref);
  }

  /** Opens a device that has a live table: it is not removed until `close`. */
  open(ref: DeviceRef): OpenDevice {
    const device = this.device(ref);
    device.addHandle();
    let open = true;
    return {
      device,
      async close() {
        if (!open) return;
        open = false;
        await device.dropHandle();
      },
    };
  }

  /**
   * A table uses one of these disks, given by the identities that the opener tells; or one that could not be loaded after a
   * restart names one of them by one of these words.
   */
  holds(identities: readonly string[], words: readonly string[]): boolean {
    return identities.some((identity) => this.#devices.has(identity)) || isMissed(words, this.#index.all());
  }

  /** ENXIO if there is no such device. */
  save(ref: DeviceRef): SavedDevice {
    return savedOf(this.device(ref));
  }

  /**
   * Brings back what `save` told, of devices that share nothing with those that are there, without calling `onChange`. A
   * device whose table cannot be loaded is there without one, with a note that says why; `save` still tells that table, so
   * that the next restart tries again. `after`: what they come back from, in words.
   */
  async restore(saved: readonly SavedDevice[], after?: string): Promise<void> {
    await this.#silently(
      saved.map(({ name }) => name),
      () => restore(saved, this, this.#index, this.#source, after),
    );
  }

  /**
   * Why these devices cannot go on in another mapper, in words; undefined if they can: they share nothing with those that would
   * stay, what `save` tells is all there is to them, and their disks can be opened again.
   */
  async bound(names: readonly string[]): Promise<string | undefined> {
    const leaving = names.map((name) => this.device({ name }));
    return whyBound(leaving, this.#index.all(), this.#devices, this.#source.types);
  }

  /**
   * Lets go of devices that are to go on in another mapper, and resolves with what `save` would tell of them. For devices that
   * are not `bound`. Rejects with what could not be flushed, or when `signal` fires before it was, and they stay.
   */
  async leave(names: readonly string[], signal?: AbortSignal): Promise<SavedDevice[]> {
    const devices = names.map((name) => this.device({ name }));
    let left: SavedDevice[] = [];
    await this.#silently(names, async () => {
      await suspendAll(devices, signal);
      left = devices.map((device) => ({ ...savedOf(device), suspended: false }));
      for (const device of devices) this.#index.hide(device);
      // What there was to write is durable, so that it does not matter how they close.
      await destroyAll(devices, { flush: false });
      for (const device of devices) this.#index.freeMinorOf(device);
    });
    return left;
  }

  async #silently(names: readonly string[], work: () => Promise<void>): Promise<void> {
    for (const name of names) this.#silent.add(name);
    try {
      await work();
    } finally {
      for (const name of names) this.#silent.delete(name);
    }
  }

  /**
   * Ends the process's use of all devices, upper ones first: what completed is flushed, requests that are held fail with
   * ESHUTDOWN, every disk is closed. `onChange` is not called: the devices are to come back. Throws the first failure
   * after everything else has been closed.
   */
  async close(): Promise<void> {
    this.#quiet = true;
    const devices = this.#index.all();
    for (const device of devices) this.#index.hide(device);
    const failures = await destroyAll(devices, { flush: true });
    for (const device of devices) this.#index.freeMinorOf(device);
    if (failures.length > 0) throw failures[0];
  }

  /** The other half of `create`: what has no table then is removed again, unless another table has it by now. */
  async #finish(device: MappedDevice, table: TargetSpec[], { load, resume }: CreateOptions): Promise<void> {
    let call: 'load' | 'resume' = 'load';
    try {
      await device.load(table, load);
      call = 'resume';
      await device.resume(resume);
    } catch (error) {
      // What went wrong first is what the user must hear of.
      if (device.openCount === 0) await this.#remove(device).catch(() => {});
      else await this.#finished(device);
      if (error instanceof DmError) error.step = { call, major: this.major, minor: device.minor };
      throw error;
    }
    await this.#finished(device);
  }

  async #finished(device: MappedDevice): Promise<void> {
    device.unfinished = false;
    await this.#onChange('create', device);
    await this.#onChange('table', device);
  }

  async #onChange(kind: ChangeKind, device: MappedDevice): Promise<void> {
    if (this.#quiet || device.unfinished || this.#silent.has(device.storedName)) return;
    if (kind === 'remove' || !device.deleting) await this.#notify(kind, device);
  }

  /**
   * Opens a disk that is no mapped device as tables do, so that it is the same object for all of them. To read, and to
   * be released. EINVAL if `argument` names a mapped device: that is opened with `open`.
   */
  async lease(argument: string, directory?: string): Promise<Lease> {
    const key = await this.#resolve(argument, directory);
    if (key instanceof MappedDevice)
      throw new DmError(
        'MAPPED_DEVICE',
        'EINVAL',
        `Cannot take ${argument} for a disk: it is the mapped device ${key.storedName}`,
      );
    return this.#devices.lease(key as string, 'r');
  }

  #info(device: MappedDevice, options?: InactiveOption): DeviceInfo {
    return infoOf(device, this.major, options);
  }

  #table(ref: DeviceRef, { inactive = false }: InactiveOption = {}): Table | undefined {
    const device = this.device(ref);
    return inactive ? device.inactiveTable : device.liveTable;
  }

  /** The name is free from here on; the number when everything has been closed. */
  async #remove(device: MappedDevice): Promise<void> {
    device.deleting = true;
    this.#index.hide(device);
    this.#claims?.hide(device.minor);
    if (device.liveTable) device.event();
    else device.wake();
    try {
      await device.destroy();
    } finally {
      this.#index.freeMinorOf(device);
      this.#claims?.free(device.minor);
      await this.#onChange('remove', device);
    }
  }

  /** Throws ENXIO if it was removed meanwhile. */
  #checkThere(device: MappedDevice): void {
    if (device.deleting) this.device({ major: this.major, minor: device.minor });
  }

  async #unused(device: MappedDevice): Promise<void> {
    if (device.deferredRemove && !device.deleting) await this.#remove(device);
  }

  async #renamed(device: MappedDevice): Promise<DeviceInfo> {
    if (device.liveTable) device.event();
    else device.wake();
    await this.#onChange('change', device);
    return this.#info(device);
  }

  async #coreMessage(device: MappedDevice, words: readonly string[]): Promise<string> {
    if (words[0].toLowerCase() !== '@cancel_deferred_remove' || words.length > 1)
      throw badMessage(device, `the core does not know "${words.join(' ')}"`);
    device.deferredRemove = false;
    await this.#onChange('change', device);
    return '';
  }

  /** A mapped device is its own key, another disk its canonical name. */
  async #resolve(argument: string, directory?: string): Promise<unknown> {
    return this.#index.meant(argument) ?? this.#devices.identify(argument, directory);
  }

  async #claim(key: unknown, mode: Mode, user: MappedDevice): Promise<Lease> {
    if (key instanceof MappedDevice) return claimMapped(key, mode, user);
    return this.#devices.lease(key as string, mode);
  }

  #openHint(device: MappedDevice): string {
    const users = [...device.users].sort(byName).map((user) => user.storedName);
    return users.length > 0
      ? `first remove what lies above: ${users.join(' ')}`
      : 'close its connections, or use remove --deferred';
  }
}
