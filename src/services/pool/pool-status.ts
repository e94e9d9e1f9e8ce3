/** What the status line of a pool says. */

import { BLOCK_BYTES } from '../../formats/pdata/block.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import { parseNumber, splitWords } from '../../targets/arguments.ts';
import { SECTOR } from '../../units.ts';

/** Sizes in bytes. */
export interface PoolStatus {
  readonly mode: 'rw' | 'ro' | 'out_of_data_space';
  readonly needsCheck: boolean;
  readonly blockSize: number;
  readonly dataUsed: number;
  readonly dataSize: number;
  readonly metadataUsed: number;
  readonly metadataSize: number;
}

/** From here on its users are warned. Percent. */
export const WARN_AT = 80;

const LINE = /^\d+ (\d+)\/(\d+) (\d+)\/(\d+) \S+ (rw|ro|out_of_data_space) \S+ \S+ (needs_check|-) /;

/** Undefined: the device is no pool, or has failed. Nothing is committed for it. */
export function statusOf(device: MappedDevice): PoolStatus | undefined {
  const [table] = device.liveTable?.text('table') ?? [];
  if (table?.type !== 'thin-pool') return undefined;
  const found = LINE.exec(device.liveTable!.text('info')[0].text);
  if (!found) return undefined;
  const [metadataUsed, metadataSize, dataUsed, dataSize] = found.slice(1, 5).map(Number);
  const blockSize = parseNumber(splitWords(table.text)[2])! * SECTOR;
  return {
    mode: found[5] as PoolStatus['mode'],
    needsCheck: found[6] === 'needs_check',
    blockSize,
    dataUsed: dataUsed * blockSize,
    dataSize: dataSize * blockSize,
    metadataUsed: metadataUsed * BLOCK_BYTES,
    metadataSize: metadataSize * BLOCK_BYTES,
  };
}

export const percent = (used: number, size: number) => Math.min(100, (100 * used) / size);

/** What its users should know; undefined if there is nothing. `path`: of the file that has it. */
export function warningOf(name: string, status: PoolStatus | undefined, path: string): string | undefined {
  const check = `dmkit down; dmkit thin check --clear-needs-check-flag ${path}; dmkit up`;
  if (!status) return `the pool ${name} has failed: look at dmkit.log, then: ${check}`;
  const { mode, needsCheck, dataUsed, dataSize, metadataUsed, metadataSize } = status;
  if (needsCheck)
    return `${name} can only be read: its metadata could not be written. When there is room and its disk is well: ${check}`;
  if (mode === 'ro') return `the metadata of ${name} is full or cannot be written: nothing can be changed`;
  const grow = `dmkit pool extend ${name} --size …`;
  if (mode === 'out_of_data_space') return `${name} is full, and writes to it wait for a minute, then fail: ${grow}`;
  const [data, metadata] = [percent(dataUsed, dataSize), percent(metadataUsed, metadataSize)].map(Math.floor);
  if (data >= WARN_AT) return `${name} is ${data}% full: ${grow}`;
  if (metadata >= WARN_AT) return `the metadata of ${name} is ${metadata}% full: drop what is not needed`;
}
