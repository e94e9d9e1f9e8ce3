import { constants } from 'node:fs';
import { type FileHandle, open, readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { deviceNumber, locate } from '../../device/locate.ts';
import { fromSystem } from '../../errors.ts';
import { COW_STORE, recognise, SIGNATURE_BYTES } from '../../formats/signatures.ts';
import { bytes, SECTOR } from '../../units.ts';
import { type CowReport, inspectCow, type Readable } from './cow-report.ts';

export interface Inspection {
  path: string;
  /** Bytes. */
  size: number;
  kind: 'image' | 'store' | 'volume' | 'unknown';
  /** `snapshot COW store`, `qcow2`, `ext2, ext3 or ext4 file system`, …; absent when nothing is recognised. */
  format?: string;
  /** The beginning, where signatures lie, is all zeroes. */
  blank: boolean;
  cow?: CowReport;
}

/** Says what a file or block device holds. Reads only, and takes no lock: a store in use may change meanwhile. */
export async function inspectFile(path: string, { originSize }: { originSize?: number } = {}): Promise<Inspection> {
  const absolute = resolve(path);
  try {
    // What is no disk is told by its kind; opened without waiting, should a fifo have taken its place.
    await locate(absolute);
    const file = await open(absolute, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const size = await sizeOf(file);
      const start = Buffer.alloc(SIGNATURE_BYTES);
      const { bytesRead } = await file.read(start, 0, start.length, 0);
      const found = recognise(start.subarray(0, bytesRead));
      const inspection: Inspection = {
        path: absolute,
        size,
        kind: found?.kind ?? 'unknown',
        format: found?.name,
        blank: start.every((byte) => byte === 0),
      };
      if (found?.name === COW_STORE)
        inspection.cow = await inspectCow(
          reader(file, size),
          originSize === undefined ? undefined : { size: originSize },
        );
      return inspection;
    } finally {
      await file.close();
    }
  } catch (error) {
    throw fromSystem(error, `Cannot inspect ${absolute}`);
  }
}

/** A block device has no size in its inode. */
export async function sizeOf(file: FileHandle): Promise<number> {
  const stat = await file.stat({ bigint: true });
  if (!stat.isBlockDevice()) return Number(stat.size);
  return Number(await readFile(`/sys/dev/block/${deviceNumber(stat)}/size`, 'utf8')) * SECTOR;
}

/** Without the lock of a disk that is in use: who looks does no harm. */
export const reader = (file: FileHandle, size: number): Readable => ({
  size: bytes(Math.floor(size / SECTOR) * SECTOR),
  blockSize: SECTOR,
  async read(at, into, start, length) {
    for (let done = 0; done < length; ) {
      const { bytesRead } = await file.read(into, start + done, length - done, at + done);
      if (bytesRead === 0) throw new Error(`the file ends at ${at + done}`);
      done += bytesRead;
    }
  },
});
