/** What the daemon knows of forks beyond their tables, and what of it a restart must find again. */
import type { SavedDevice } from '../../mapper/saved-device.ts';
import type { PoolRecord, VolumeRecord } from '../pool/records.ts';

/** What the tables do not say. Found by uuid, so that it follows a device through renames and restarts. */
export interface ForkRecord {
  uuid: string;
  role: 'fork' | 'origin';
  /** The image, as the device below names itself. */
  image: string;
  /** Absent when transient. */
  cow?: string;
  /** The fork made the COW file, so dropping it deletes the file. */
  owned?: boolean;
  /** When and by how much the COW file grows. `chunkSize` and `limit` in bytes; no limit but what can never overflow. */
  autoextend?: { threshold: number; percent: number; chunkSize: number; limit?: number };
  /** Being dropped: once the device is gone, so must be the file (unless it is kept), and the origin with the last fork. */
  dropping?: 'delete' | 'keep';
  /** Being merged: its device is gone, or will be after a restart, and the origin device has a `snapshot-merge` table. */
  merging?: Merging;
}

/** Of a fork that is being merged. */
export type MergeRecord = ForkRecord & { merging: Merging };

export interface Merging {
  /** Of the device that was. */
  name: string;
  /** As the table of the origin device has it. */
  cow: string;
  /** Bytes. */
  chunkSize: number;
  /** At the start. */
  exceptions: number;
  /** The COW file stays, emptied. */
  keep: boolean;
}

export type SavedRecord = ForkRecord | PoolRecord | VolumeRecord;

export const isForkRecord = (record: SavedRecord): record is ForkRecord =>
  record.role === 'fork' || record.role === 'origin';

/** What a restart must find again. */
export interface ForksState {
  devices: SavedDevice[];
  /** Of forks, pools and volumes. */
  forks: SavedRecord[];
}
