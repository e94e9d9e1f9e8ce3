/**
 * What can be asked of a mapper, as plain data: the same calls in the process (`Mapper`) and over the daemon's control
 * socket, so that a command does not care which it talks to. Arguments and results survive JSON.
 *
 * Every call rejects with a DmError whose errno is the kernel's for that ioctl.
 */

/** Names a device one way: by stored name, by uuid, or by number. */
export type DeviceRef = { name: string } | { uuid: string } | { major: number; minor: number };

/** One line of table text, already split: what dmsetup sends to the kernel. */
export interface TargetSpec {
  /** Sectors. */
  start: number;
  length: number;
  type: string;
  /** Unsplit, a backslash as typed (a backslash-blank stands for a blank within a device path). */
  args: string;
}

/** One line of `dmsetup table` or `status`. */
export interface TargetText {
  start: number;
  length: number;
  type: string;
  text: string;
}

/** An underlying device of a table. Files and URIs have the number 0:0. */
export interface Dependency {
  major: number;
  minor: number;
  /** The mapped device's stored name, if it is one. */
  mapped?: string;
  /** Kernel name without /dev (`loop0`, `dm-3`), else the path or URI. */
  name: string;
}

export interface DeviceInfo {
  /** Stored form, that is, mangled. */
  name: string;
  uuid: string;
  major: number;
  minor: number;
  /** Bytes; 0 before the first table. */
  size: number;
  suspended: boolean;
  readOnly: boolean;
  live: boolean;
  inactive: boolean;
  /** Targets of the live table, or of the inactive one if that was asked for. */
  targetCount: number;
  openCount: number;
  eventNumber: number;
  deferredRemove: boolean;
  /** Sectors; absent until a table was loaded. */
  readAhead?: number;
  /** Of the table asked for, in order of `dmsetup deps`: the device opened last comes first. */
  deps: Dependency[];
  /** Names of mapped devices whose tables refer to this one, in listing order. */
  usedBy: string[];
  /** One or more words on the state that dmsetup has no place for, e.g. why a device came back unusable. */
  note?: string;
}

export interface CreateOptions {
  uuid?: string;
  /** The minor asked for; the major is always the mapper's own. */
  minor?: number;
  /** -1: auto, 0: none, N: sectors; `readAheadMinimum`: N is a minimum. */
  readAhead?: number;
  readAheadMinimum?: boolean;
  /** To be loaded and made live at once: the device is there with this table, or not at all. */
  table?: TargetSpec[];
  /** How the table is loaded and resumed. */
  load?: LoadOptions;
  resume?: SuspendOptions;
}

export interface LoadOptions {
  readOnly?: boolean;
  /** Absolute directory that relative paths in the table start from. */
  directory?: string;
}

/** For old partition tables. `start` in sectors. */
export type Geometry = [cylinders: number, heads: number, sectors: number, start: number];

export interface SuspendOptions {
  noflush?: boolean;
  nolockfs?: boolean;
}

export interface InactiveOption {
  inactive?: boolean;
}

export interface TargetVersion {
  name: string;
  version: [number, number, number];
}

export interface Control {
  /** Driver version, 4.47.0 or higher. */
  version(): Promise<[number, number, number]>;
  /** Newest registered first. */
  targets(): Promise<TargetVersion[]>;
  /** In ascending byte order of the stored name. */
  list(options?: InactiveOption): Promise<DeviceInfo[]>;
  /** ENXIO if there is no such device (every call that takes a DeviceRef). */
  info(device: DeviceRef, options?: InactiveOption): Promise<DeviceInfo>;
  /**
   * EBUSY: name or uuid in use. ENXIO: minor in use. EINVAL: `.`, `..`, `control`, empty name. With a table also what
   * `load` and `resume` reject with; the error's `step` says which, and the device is gone.
   */
  create(name: string, options?: CreateOptions): Promise<DeviceInfo>;
  /**
   * Builds a table, opens its devices and puts it into the inactive slot, in place of what was there. TableError, mostly
   * EINVAL: the kernel's words on what is wrong with a line; ENODEV, EBUSY, EACCES: a device cannot be opened.
   */
  load(device: DeviceRef, table: TargetSpec[], options?: LoadOptions): Promise<DeviceInfo>;
  /** Empties the inactive slot. */
  clear(device: DeviceRef): Promise<DeviceInfo>;
  /**
   * Resolves when no request is in flight and what the targets keep is durable; later requests wait. Rejects with what
   * the flush below answered; the device then goes on as before. What a target could not write of its own also rejects,
   * but the device is suspended.
   */
  suspend(device: DeviceRef, options?: SuspendOptions): Promise<DeviceInfo>;
  /**
   * Makes the inactive table live, if there is one (suspending the device before), and lets the requests that wait go on.
   * EINVAL: there is no table. What a target refuses leaves the device suspended.
   */
  resume(device: DeviceRef, options?: SuspendOptions): Promise<DeviceInfo>;
  /** EBUSY while open, unless `deferred`. */
  remove(device: DeviceRef, options?: { deferred?: boolean }): Promise<void>;
  /** Removes every device that is not open, again and again until nothing more goes; `deferred` marks the others. */
  removeAll(options?: { deferred?: boolean }): Promise<void>;
  /** EBUSY: the name is in use. */
  rename(device: DeviceRef, newName: string): Promise<DeviceInfo>;
  /** Once in a device's life. EBUSY: the uuid is in use. EINVAL: the device has one, or `uuid` is empty or above 128 bytes. */
  setUuid(device: DeviceRef, uuid: string): Promise<DeviceInfo>;
  /**
   * To the target at `sector`. `text` is split at blanks; a backslash takes the next character literally. Resolves with
   * the reply, or ''. EINVAL: nobody takes it.
   */
  message(device: DeviceRef, sector: number, text: string): Promise<string>;
  /** What loads the same table again, a line for each target; none without a table. */
  table(device: DeviceRef, options?: InactiveOption): Promise<TargetText[]>;
  /** The state of each target in the kernel's words. */
  status(device: DeviceRef, options?: InactiveOption & { noflush?: boolean }): Promise<TargetText[]>;
  /** What the kernel would have IMA measure of each target. */
  measure(device: DeviceRef, options?: InactiveOption): Promise<TargetText[]>;
  /**
   * Resolves when the event number differs from `event`, or the device is renamed or removed; then with its info, or
   * undefined when it is gone. `signal` (in-process only) ends the wait with EINTR.
   */
  wait(device: DeviceRef, event: number, signal?: AbortSignal): Promise<DeviceInfo | undefined>;
  /** EINVAL: more than 65535 cylinders, 255 heads or 255 sectors a track, or a start beyond all of them. */
  setGeometry(device: DeviceRef, geometry: Geometry): Promise<void>;
  /** Makes a snapshot equal to its origin again, without dropping connections. EINVAL: no live snapshot target. */
  revert(device: DeviceRef): Promise<DeviceInfo>;
}
