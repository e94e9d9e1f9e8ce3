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
  /** EBUSY: name or uuid in use. ENXIO: minor in use. EINVAL: `.`, `..`, `control`, empty name. */
  create(name: string, options?: CreateOptions): Promise<DeviceInfo>;
  load(device: DeviceRef, table: TargetSpec[], options?: LoadOptions): Promise<DeviceInfo>;
  clear(device: DeviceRef): Promise<DeviceInfo>;
  suspend(device: DeviceRef, options?: SuspendOptions): Promise<DeviceInfo>;
  resume(device: DeviceRef, options?: SuspendOptions): Promise<DeviceInfo>;
  /** EBUSY while open, unless `deferred`. */
  remove(device: DeviceRef, options?: { deferred?: boolean }): Promise<void>;
  /** Removes every device that is not open, again and again until nothing more goes; `deferred` marks the others. */
  removeAll(options?: { deferred?: boolean }): Promise<void>;
  rename(device: DeviceRef, newName: string): Promise<DeviceInfo>;
  setUuid(device: DeviceRef, uuid: string): Promise<DeviceInfo>;
  /** `text` is split at blanks; a backslash takes the next character literally. Resolves with the reply, or ''. */
  message(device: DeviceRef, sector: number, text: string): Promise<string>;
  table(device: DeviceRef, options?: InactiveOption): Promise<TargetText[]>;
  status(device: DeviceRef, options?: InactiveOption & { noflush?: boolean }): Promise<TargetText[]>;
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
