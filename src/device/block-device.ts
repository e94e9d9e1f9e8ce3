/**
 * The contract every disk below a target keeps: a file, a kernel block device, an NBD export, memory, a simulated disk,
 * and a mapped device itself.
 */
import type { Bytes } from '../units.ts';

/**
 * *Nothing to wait for* when the data was at hand, a promise only when there is. Callers test for the promise; they do
 * not await blindly: `const wait = device.read(…); if (wait) …`.
 */
export type Maybe<T = void> = T | Promise<T>;

/** To read, or to read and write. */
export type Mode = 'r' | 'rw';

/** A stretch of a device, as NBD's `base:allocation` sees it. */
export interface Extent {
  length: Bytes;
  /** No space is allocated below. */
  hole: boolean;
  /** Reads as zeroes. */
  zero: boolean;
}

/** A stretch of a snapshot that has an exception (`changed`) or still shows its origin. */
export interface ChangedExtent {
  length: Bytes;
  changed: boolean;
}

/**
 * Offsets and lengths are bytes and multiples of 512 that lie inside the device; whoever takes requests from a client
 * checks that first. An operation fails by throwing or rejecting with a DmError that carries an errno.
 *
 * Overlapping requests in flight have no order among each other. `flush` covers every write that had completed (not
 * merely started) before it was called.
 *
 * The buffer passed to `read` or `write` belongs to the device until the operation completes.
 */
export interface BlockDevice {
  /** What `dmsetup table` prints: `major:minor` where there is one, else the canonical path or URI. */
  readonly name: string;
  /** Absolute, symlinks followed; absent for what no path leads to. */
  readonly path?: string;
  /** Asked again at every use: files and mapped devices grow and shrink. */
  readonly size: Bytes;
  /** Logical block size, 512 or 4096. */
  readonly blockSize: number;
  readonly readOnly: boolean;
  /** `discard` does something; without it, it is refused with EOPNOTSUPP. */
  readonly canDiscard: boolean;
  /**
   * Makes a disk that was opened for reading writable, in place and with I/O in flight. Absent where the mode is fixed.
   * A disk whose owner forbids writing stays `readOnly`, as one opened to write does. Rejects, and stays as it is, when
   * the disk is in use elsewhere or has gone.
   */
  allowWrites?(): Promise<void>;
  /**
   * Makes the device `size` bytes large, sparse, at once. Absent where somebody else decides on its size. Throws what the
   * system said (ENOSPC, EFBIG, …), and the size is then as it was.
   */
  extend?(size: Bytes): void;
  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe;
  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe;
  /**
   * As reading from another device and writing it here, but the bytes take a shorter way, and are on their way to the disk
   * before a flush is asked for. Resolves with false when there is no such way, or something failed on it: the caller reads
   * and writes then. Absent where there never is one.
   */
  copyFrom?(source: BlockDevice, from: Bytes, at: Bytes, length: number): Promise<boolean>;
  flush(): Maybe;
  /** Afterwards the range reads as old data or zeroes, whichever the device likes. */
  discard(at: Bytes, length: number): Maybe;
  /** Afterwards the range reads as zeroes. With `mayUnmap` the device may give the space back, else it stays allocated. */
  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe;
  /** Consecutive extents from `at`: at least one, at most a few thousand, possibly ending before `at + length`. */
  extents(at: Bytes, length: number): Maybe<Extent[]>;
  /** Flushes nothing. Called once, after the last operation has completed. */
  close(): Promise<void>;
}
