/** What can be asked about forks, as plain data: the same in the process and over the control socket. */

export interface ForkOptions {
  /** Bytes; a power of two, 4096 or more. 16 KiB unless the COW file says otherwise. */
  chunkSize?: number;
  /** The COW file. Unless given, `NAME.cow` beside an image that is a file, else in `directory`. */
  cow?: string;
  /** Bytes the COW store may grow to. Unless given, enough for a fork that differs from its origin everywhere. */
  cowSize?: number;
  /** Lets a COW file that begins with `cowSize` grow. */
  autoextend?: Autoextend;
  /** The changes live as long as the daemon; the COW file has no name and leaves nothing behind. */
  transient?: boolean;
  /** Take the bytes as they are although they look like another image format. */
  raw?: boolean;
  /** Absolute directory that relative paths start from. */
  directory?: string;
}

/** As LVM's snapshot_autoextend_threshold and snapshot_autoextend_percent. */
export interface Autoextend {
  /** Percent of the COW file that are used when it grows, 1 to 100. It grows in any case before the fork overflows. */
  threshold: number;
  /** Of its size, 1 to 1000; again until it is used below the threshold. */
  percent: number;
  /** Bytes it never grows beyond. Unless given, what the fork takes that differs from its origin everywhere. */
  limit?: number;
}

export interface Fork {
  name: string;
  /** Canonical path or URI of the image. */
  image: string;
  /** The mapped device through which the image may be written while forks exist. */
  origin: string;
  originReadOnly: boolean;
  /** Absent when transient. */
  cow?: string;
  /** Bytes. */
  size: number;
  chunkSize: number;
  /** A COW store of an earlier time was opened again: its changes are there. */
  reopened: boolean;
  /** NBD URIs; absent where nothing is served. */
  uri?: string;
  originUri?: string;
}

/** One row of `dmkit ls`. */
export interface Volume {
  name: string;
  /** Targets of the live table, each once: `snapshot`, `snapshot-origin`, `linear`. Empty without a table. */
  type: string;
  /** The device or file a snapshot or an origin is made from; `POOL/VOLUME` for what a volume was made from. */
  origin?: string;
  /** COW store of a snapshot. */
  cow?: string;
  /** Bytes. */
  size: number;
  /** Bytes of the COW store; absent where the status line has no numbers. */
  cowSize?: number;
  /** Of a fork whose COW file grows. */
  autoextend?: Autoextend;
  /** Bytes of a snapshot's exceptions, or that a volume has mapped, or that a pool has given out; absent where the status line has no numbers. */
  used?: number;
  /** `active`, `suspended`, `merging NAME 42%`, `Invalid`, `Overflow`, `Merge failed`, `full`, `needs check`, `Fail`, `no table`. */
  state: string;
  /** Of a volume: its pool, and the number of its thin device there. */
  pool?: string;
  id?: number;
  /** Bytes of a pool's metadata, and what of it is used. */
  metadataSize?: number;
  metadataUsed?: number;
  /** A part of a pool, not to be used by itself. */
  internal?: boolean;
  readOnly: boolean;
  openCount: number;
  uri?: string;
  /** The path of the block device, if attached. */
  attached?: string;
  note?: string;
}

export interface DiffOptions {
  /** Bytes; where to go on: `next` of the answer before. */
  start?: number;
}

export interface Diff {
  name: string;
  origin: string;
  /** Bytes. */
  size: number;
  chunkSize: number;
  /** Of a volume: its pool. Chunks are its blocks then, and exceptions those that are mapped elsewhere on one side. */
  pool?: string;
  /** Of the part looked at. A chunk has an exception once it was written, on either side. */
  exceptions: number;
  exceptionBytes: number;
  /** Bytes of sectors whose contents really differ now. */
  differingBytes: number;
  /** Those sectors, in order, neighbours joined. */
  ranges: { start: number; length: number }[];
  /** Bytes; absent when the whole device was looked at. */
  next?: number;
}

export interface Dropped {
  name: string;
  /** The COW file that was deleted, or that stays because the fork did not make it or `keepCow` was given. */
  deleted?: string;
  kept?: string;
  /** The origin device, removed with the last fork of its image. */
  originRemoved?: string;
  /** Of a pool: its files, and whether they are gone. */
  files?: { path: string; deleted: boolean }[];
  /** Of a volume: its thin device, and whether it is gone. */
  thin?: { pool: string; id: number; size: number; deleted: boolean };
  /** The image, a mix of old and new: a merge into it had failed, and was given up. The COW file has the rest. */
  halfMerged?: string;
}

export interface MergeOptions {
  /** The COW file stays, emptied, although the fork made it. */
  keep?: boolean;
  /** Although the origin device is open: its clients see its contents change. */
  force?: boolean;
}

/** How far the merge of a fork is. */
export interface MergeProgress {
  /** Of the fork. */
  name: string;
  image: string;
  /** The origin device, which shows what the fork held. */
  origin: string;
  cow: string;
  /** `failed`: it stopped, nothing is lost, and `merge` goes on. `lost`: the store was invalid, the image is as it was. */
  state: 'merging' | 'failed' | 'lost' | 'done';
  /** Bytes. */
  chunkSize: number;
  /** Chunks that the fork had changed, and how many of them are in the image. */
  total: number;
  merged: number;
  /** Rises whenever something has changed: for `since`. */
  version: number;
  /** Why it failed; while it is `merging`, what holds it up and is tried again; if it is done, what could not be tidied up. */
  error?: string;
  hint?: string;
  /** As with `Dropped`, when it is done. */
  deleted?: string;
  kept?: string;
  originRemoved?: string;
}

export interface ForkControl {
  /** EEXIST: the COW file exists and is none of this fork. EBUSY: name in use. EINVAL: no raw image. */
  fork(image: string, name: string, options?: ForkOptions): Promise<Fork>;
  /** In ascending byte order of the name. */
  volumes(): Promise<Volume[]>;
  /** EINVAL: no snapshot. Look at `next` and call again. */
  diff(name: string, options?: DiffOptions): Promise<Diff>;
  /** EBUSY while open. EINVAL: no snapshot. */
  drop(name: string, options?: { keepCow?: boolean }): Promise<Dropped>;
  /**
   * Begins to put what a fork changed into its image, or joins a merge that runs; one that failed goes on. The fork's
   * device is gone when this resolves, and the origin device shows what it held. EBUSY: the fork is open, or the origin
   * is and `force` was not given. EROFS: the image cannot be written. EINVAL: no snapshot, or none that can be merged.
   */
  merge(name: string, options?: MergeOptions): Promise<MergeProgress>;
  /**
   * Of a merge that runs, or of one that has ended not long ago. Given the `version` of the answer before, it resolves
   * when something has changed, or after some seconds. ENXIO: none is known. EINTR: `signal` (in-process only) fired.
   */
  mergeProgress(name: string, options?: { since?: number }, signal?: AbortSignal): Promise<MergeProgress>;
}
