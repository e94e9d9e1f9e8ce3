import { open } from 'node:fs/promises';
import { resolve } from 'node:path';
import { localBackend } from '../../device/open.ts';
import { fromSystem } from '../../errors.ts';
import { recognise, SIGNATURE_BYTES } from '../../formats/signatures.ts';
import { type CowReport, inspectCow } from './cow-report.ts';

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
  const start = Buffer.alloc(SIGNATURE_BYTES);
  let size: number;
  let length: number;
  try {
    const file = await open(absolute, 'r');
    try {
      length = (await file.read(start, 0, start.length, 0)).bytesRead;
      size = (await file.stat()).size;
    } finally {
      await file.close();
    }
  } catch (error) {
    throw fromSystem(error, `Cannot inspect ${absolute}`);
  }
  const found = recognise(start.subarray(0, length));
  const inspection: Inspection = {
    path: absolute,
    size,
    kind: found?.kind ?? 'unknown',
    format: found?.name,
    blank: start.every((byte) => byte === 0),
  };
  if (found?.name === 'snapshot COW store') {
    const device = await localBackend.open(absolute, 'r');
    try {
      inspection.size = device.size;
      inspection.cow = await inspectCow(device, originSize === undefined ? undefined : { size: originSize });
    } finally {
      await device.close();
    }
  }
  return inspection;
}
