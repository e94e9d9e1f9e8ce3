/** What the tables of pools and volumes do not say, found by uuid as with forks. */

export interface PoolRecord {
  uuid: string;
  role: 'pool';
  /** Canonical path of the data, and of the metadata unless it lies before the data. */
  data: string;
  metadata?: string;
  /** Files that were made with the pool and go with it. */
  owned: string[];
  /** When and by how much it grows. `limit`: bytes of data. */
  autoextend?: { threshold: number; percent: number; limit: number };
  /** Being dropped: once the device is gone, so must be the files, unless they are kept. */
  dropping?: 'delete' | 'keep';
}

export interface VolumeRecord {
  uuid: string;
  role: 'volume';
  /** Minor number of the pool's device, and its uuid, empty if it has none. */
  pool: number;
  poolUuid: string;
  /** Of the thin device. */
  id: number;
  /** uuid of the volume it was made from. */
  origin?: string;
  /** The thin device was made with it, and goes with it if the making is cut short. */
  owned: boolean;
  /** Being dropped: once the device is gone, so must be the thin device. */
  dropping?: 'delete' | 'keep';
}

/** What uuids of pools and volumes begin with. */
export const POOL_UUID = 'dmkit-pool-';
export const VOLUME_UUID = 'dmkit-volume-';
