export { DmError, type Errno, errnoText, type FailedStep } from '../errors.ts';
export type {
  Control,
  CreateOptions,
  Dependency,
  DeviceInfo,
  DeviceRef,
  Geometry,
  LoadOptions,
  SuspendOptions,
  TargetSpec,
  TargetText,
  TargetVersion,
} from '../mapper/control.ts';
export type { Attachment } from '../services/attach/attach-control.ts';
export { isDaemonGone } from '../services/daemon/control-client.ts';
export type { DaemonControl, DaemonStatus } from '../services/daemon/daemon-control.ts';
export { controlSocket, type Directories, directories, nbdSocket, nbdUri } from '../services/daemon/directories.ts';
export { hasState, savedSnapshots } from '../services/daemon/saved-state.ts';
export { READY_FD, runningDaemon, startDaemon } from '../services/daemon/start.ts';
export {
  type CowEventBody,
  type DeviceEvent,
  type DeviceEventBody,
  type EventBatch,
  type EventControl,
  type PoolEventBody,
  type WatchEvent,
  watchEvents,
} from '../services/events/event.ts';
export type { CowReport, Problem } from '../services/fork/cow-report.ts';
export type {
  Autoextend,
  Diff,
  DiffOptions,
  Dropped,
  Fork,
  ForkControl,
  ForkOptions,
  MergeOptions,
  MergeProgress,
  Volume,
} from '../services/fork/fork-control.ts';
export type { Inspection } from '../services/fork/inspect.ts';
export type { FilesMerge, MergeFilesOptions } from '../services/fork/merge-files.ts';
export type {
  OpenPoolOptions,
  Pool,
  PoolControl,
  PoolOptions,
  ThinVolume,
  VolumeSource,
} from '../services/pool/pool-control.ts';
export {
  type ConnectOptions,
  DeviceMapper,
  type OpenOptions,
  type RemoteMapper,
  type Served,
  type ServeOptions,
} from './device-mapper.ts';
export type { Disk } from './disk.ts';

/** The process that is the daemon; loads everything. */
export async function runDaemon(options: import('../services/daemon/run-daemon.ts').RunOptions): Promise<number> {
  return (await import('../services/daemon/run-daemon.ts')).runDaemon(options);
}

/** Merges a COW file into its image, both open nowhere else, in this process. */
export async function mergeFiles(
  image: string,
  cow: string,
  options?: import('../services/fork/merge-files.ts').MergeFilesOptions,
): Promise<import('../services/fork/merge-files.ts').FilesMerge> {
  return (await import('../services/fork/merge-files.ts')).mergeFiles(image, cow, options);
}

/** Says what a file or block device holds. */
export async function inspectFile(
  path: string,
  options?: { originSize?: number },
): Promise<import('../services/fork/inspect.ts').Inspection> {
  return (await import('../services/fork/inspect.ts')).inspectFile(path, options);
}

/** Opens the log of a log-writes target, to list it or to repeat it onto a disk. */
export async function openWriteLog(
  log: string,
  options?: { directory?: string },
): Promise<import('../services/log-writes/open-write-log.ts').WriteLogFile> {
  return (await import('../services/log-writes/open-write-log.ts')).openWriteLog(log, options);
}
export type { LoggedEntry, WriteLogFile } from '../services/log-writes/open-write-log.ts';
export type { TlsOptions } from '../services/nbd/tls.ts';
export type { Replayed, ReplayOptions } from '../stores/log-writes/replay.ts';

/** Opens the metadata of a thin pool, to check, list, dump or compare what it holds. */
export async function openThinMetadata(
  path: string,
  options?: import('../services/thin/metadata-file.ts').ThinMetadataOptions,
): Promise<import('../services/thin/metadata-file.ts').ThinMetadata> {
  return (await import('../services/thin/metadata-file.ts')).openThinMetadata(path, options);
}

/** Checks metadata of a thin pool, clears its needs_check flag and gives leaked blocks back, unless something is damaged. */
export async function mendThinMetadata(
  path: string,
  options?: { directory?: string },
): Promise<import('../stores/thin/mend.ts').Mended> {
  return (await import('../services/thin/metadata-file.ts')).mendThinMetadata(path, options);
}

/** Makes metadata of a thin pool from XML, as thin_restore does, on a file or disk that is there. */
export async function restoreThinMetadata(
  xml: string,
  path: string,
  options?: import('../stores/thin/restore.ts').RestoreOptions & { directory?: string },
): Promise<import('../stores/thin/restore.ts').Restored> {
  return (await import('../services/thin/metadata-file.ts')).restoreThinMetadata(xml, path, options);
}

/** Makes metadata of a thin pool from what can be read of damaged metadata, on another file or disk that is there. */
export async function repairThinMetadata(
  damaged: string,
  path: string,
  options?: import('../stores/thin/restore.ts').RestoreOptions & { directory?: string },
): Promise<import('../stores/thin/repair.ts').Repaired> {
  return (await import('../services/thin/metadata-file.ts')).repairThinMetadata(damaged, path, options);
}
export { metadataSize as thinMetadataSize } from '../formats/thin/size.ts';
export type { ThinDumpOptions, ThinMetadata, ThinMetadataOptions } from '../services/thin/metadata-file.ts';
export type {
  CheckOptions as ThinCheckOptions,
  CheckReport as ThinCheckReport,
  Finding as ThinFinding,
} from '../stores/thin/check.ts';
export type { DeltaRange as ThinDeltaRange } from '../stores/thin/delta.ts';
export type { Mended as ThinMended } from '../stores/thin/mend.ts';
export type { ThinDevice } from '../stores/thin/reader.ts';
export type { Repaired as ThinRepaired } from '../stores/thin/repair.ts';
export type { Restored as ThinRestored, RestoreOptions as ThinRestoreOptions } from '../stores/thin/restore.ts';
export type { ThinUsage } from '../stores/thin/usage.ts';
