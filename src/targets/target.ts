/**
 * The kernel's `target_type` on one page. A new target is one file beside this one, one line in the registry, one page
 * in docs/targets and a pass of the conformance suite.
 *
 * Two planes. Control (`create`, `message`, suspend and resume) is asynchronous. Data (`read`, `write`, …) is
 * synchronous whenever the bytes are at hand and returns a promise only when there is something to wait for.
 *
 * The core calls in this order (Linux `dm.c`, `dm-table.c`):
 *
 *     load      create
 *     resume    [presuspend, I/O drains, postsuspend of the old table]  preresume  resume   [close of the old table]
 *     suspend   presuspend, I/O drains, postsuspend
 *     remove    [presuspend, I/O drains, postsuspend unless suspended]  close
 */
import type { BlockDevice, ChangedExtent, Extent, Maybe, Mode } from '../device/block-device.ts';
import type { Bytes, Sector } from '../units.ts';

export interface TargetType {
  /** The third word of a table line, at most 15 bytes. */
  readonly name: string;
  /** Scripts compare it: the kernel's own. */
  readonly version: readonly [major: number, minor: number, patch: number];
  /** May replace any table, even one of an immutable type. */
  readonly wildcard?: boolean;
  /** Nothing else may replace a live table of it, nor share one with it. */
  readonly immutable?: boolean;
  /** Alone in its table. */
  readonly singleton?: boolean;
  /** Refused in a read-only table: it writes by itself. */
  readonly writes?: boolean;
  /**
   * Says why a target with these arguments does not outlive the process that holds it (a transient exception store). The
   * mapper then does not load it again after a restart, and shows the text as the device's note.
   */
  volatile?(args: readonly string[]): string | undefined;
  /**
   * The device, as the arguments name it, to which a target with these arguments writes by itself once it is resumed. After
   * a restart it waits until every other device is back, and is not loaded if one over the same device is not: other
   * targets have to see these writes.
   */
  writesTo?(args: readonly string[]): string;
  /** Throws TableError with the kernel's words for what is wrong, or the error of a device that cannot be opened. */
  create(line: TableLine): Promise<Target>;
}

/** One line of a table, as a constructor sees it. */
export interface TableLine {
  readonly start: Sector;
  readonly length: Sector;
  /** The words after the type, a backslash-blank already undone. */
  readonly args: readonly string[];
  /** The table was loaded read-only. */
  readonly readOnly: boolean;
  /** The mapped device that owns the table. */
  readonly owner: BlockDevice;
  /**
   * Opens an underlying device. The same disk gives the same object to every target of the mapper, so identity of the
   * object is identity of the disk. The table gives devices back after `close`; a target never closes them. A read-only
   * table refuses writes, but its targets may need to write all the same (a snapshot makes copies for its origin).
   */
  open(device: string, mode: Mode): Promise<BlockDevice>;
  /** Raises the event number of the mapped device that owns the table. Callable at any time in the target's life. */
  event(): void;
  /**
   * Asks whoever owns the mapper for more room on a device that this line has opened, and on which none is left. True: it
   * is larger now. Callable at any time in the target's life.
   */
  enlarge(device: BlockDevice): boolean;
}

/** An area of an underlying device that a target uses. */
export interface DeviceRange {
  readonly device: BlockDevice;
  readonly start: Sector;
  readonly length: Sector;
}

/**
 * `info`: the words `dmsetup status` prints after the type. `table`: the words that load the same target again.
 * `measure`: what the kernel would have IMA measure (Linux `Documentation/admin-guide/device-mapper/dm-ima.rst`).
 */
export type StatusKind = 'info' | 'table' | 'measure';

/** Offsets are bytes from the target's own start. The core has cut requests at the target's ends and checked them. */
export interface Target {
  readonly ranges: readonly DeviceRange[];
  /** Minimum and optimal I/O in bytes, where a target has an opinion (`striped`: chunk, row). */
  readonly hints?: { readonly minimumIo: Bytes; readonly optimalIo: Bytes };
  /** What has happened to it that its status line has no words for. */
  readonly note?: string;
  /** Nothing will make it work again: a restart does not load it, and tells its note. */
  readonly spent?: boolean;
  /** Asked again at every use. False: the core refuses discards with EOPNOTSUPP. */
  readonly canDiscard: boolean;
  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe;
  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe;
  flush(): Maybe;
  discard(at: Bytes, length: number): Maybe;
  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe;
  extents(at: Bytes, length: number): Maybe<Extent[]>;
  /** Which parts differ from the origin; absent where there is none. */
  changed?(at: Bytes, length: number): Maybe<ChangedExtent[]>;
  /**
   * Before `status('info')`, unless it is asked for as things are (`--noflush`): brings about what it is to count.
   * Never rejects.
   */
  prestatus?(): Promise<void>;
  status(kind: StatusKind): string;
  /** Returns the reply, or an empty string. Absent: messages are refused with EINVAL. */
  message?(words: readonly string[]): Promise<string>;
  presuspend?(): void;
  presuspendUndo?(): void;
  /** Resolves when what goes through it although it does not come through its device has drained, too. */
  drained?(): Promise<void>;
  /** Its device is going: what waits for somebody to do something fails instead, now and from here on. */
  abandon?(): void;
  /** No I/O is in flight. What the target must make durable is on disk when this settles. */
  postsuspend?(): Promise<void>;
  /** Throws to refuse: the device then stays suspended with this table live. */
  preresume?(): Promise<void>;
  /** Must not fail. */
  resume?(): void;
  /** Makes a snapshot equal to its origin again. Called while the device is suspended. */
  revert?(): Promise<void>;
  /** Releases what the target holds. Devices from `TableLine.open` are given back by the table. */
  close(): Promise<void>;
}
