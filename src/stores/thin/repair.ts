/** Makes metadata of a thin pool from what can be read of damaged metadata; counts, totals and unused space are made anew. */
import type { BlockDevice } from '../../device/block-device.ts';
import { dumpParts } from './dump.ts';
import { MetadataReader, type Readable } from './reader.ts';
import { type Restored, type RestoreOptions, restore } from './restore.ts';

export interface Repaired extends Restored {
  /** What could not be read and is not there any more, in words. */
  readonly lost: readonly string[];
  /** There was more than is listed. */
  readonly truncated: boolean;
}

/** Losses that are listed. */
const LOST_MAX = 1000;

/**
 * Reads `source` only. Its superblock has to be whole: where the trees are is not guessed. Rejects as `restore`, and with
 * FormatError (ENOTBLK, EILSEQ) for the superblock.
 */
export async function repair(source: Readable, device: BlockDevice, options: RestoreOptions = {}): Promise<Repaired> {
  let lost: string[] = [];
  let truncated = false;
  const note = (what: string) => {
    if (lost.length < LOST_MAX) lost.push(what);
    else truncated = true;
  };
  // It is read twice, and damaged both times.
  async function* xml(): AsyncGenerator<string> {
    lost = [];
    yield* dumpParts(await MetadataReader.open(source, { lost: note }), 'xml');
  }
  const done = await restore(device, xml, options);
  return { ...done, lost, truncated };
}
