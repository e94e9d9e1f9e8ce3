/** What can be asked about pools, as plain data: the same in the process and over the control socket. */
import type { Autoextend } from '../fork/fork-control.ts';

export interface OpenPoolOptions {
  /** Of the mapped device. Unless given, the file's name without its ending. */
  name?: string;
  /** The file or disk of the metadata. Unless given, it lies before the data. */
  metadata?: string;
  /** Lets the pool grow: `threshold` percent of its data that are used, `limit` bytes of data. */
  autoextend?: Autoextend;
  /** Absolute directory that relative paths start from. */
  directory?: string;
}

export interface PoolOptions extends OpenPoolOptions {
  /** Bytes of data; rounded up to whole blocks. Unless given, the whole disk, if it is one. */
  size?: number;
  /** Bytes; a multiple of 64 KiB, at most 1 GiB. 64 KiB unless given. */
  blockSize?: number;
}

export interface Pool {
  name: string;
  /** Canonical paths. `metadata`: absent if it lies before the data. */
  data: string;
  metadata?: string;
  /** Bytes. */
  size: number;
  metadataSize: number;
  blockSize: number;
  /** Thin devices that it has already, for `createVolume` with their numbers. `mapped`: bytes. */
  thins: { id: number; mapped: number }[];
}

/** What a volume is made from. */
export type VolumeSource =
  /** Nothing: it reads as zeroes, and has `size` bytes. */
  | { size: number }
  /** A volume of the pool, as it is now. */
  | { volume: string }
  /** An image, which the volume shows where it was not written. It must not change any more. `size`: that of the image unless given. */
  | { image: string; raw?: boolean; size?: number; directory?: string }
  /** A thin device of the pool that no volume shows. */
  | { id: number; size: number };

export interface ThinVolume {
  name: string;
  pool: string;
  /** Of the thin device. */
  id: number;
  /** Bytes. */
  size: number;
  /** `POOL/VOLUME`, or the path or URI of an image. */
  origin?: string;
  /** Absent where nothing is served. */
  uri?: string;
  /** What its user should know of the pool. */
  note?: string;
}

export interface PoolControl {
  /**
   * A pool over a file that is made, or over a blank disk. EEXIST: there is such a file. EBUSY: name in use. EINVAL: no such sizes, or
   * a disk that holds something.
   */
  createPool(data: string, options?: PoolOptions): Promise<Pool>;
  /** A pool that is there already. EINVAL: none is. EBUSY: name or file in use. */
  openPool(data: string, options?: OpenPoolOptions): Promise<Pool>;
  /** Gives a pool more data, in bytes. EINVAL: less than it has. */
  extendPool(name: string, size: number): Promise<Pool>;
  /** EBUSY: name in use, or the image is written to. EINVAL: no pool, or nothing to make a volume from. */
  createVolume(pool: string, name: string, source: VolumeSource): Promise<ThinVolume>;
}
