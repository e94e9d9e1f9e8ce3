/** The tables that the device of an image has. */
import type { TargetSpec } from '../../mapper/control.ts';
import { deviceWord } from '../../targets/arguments.ts';
import { SECTOR } from '../../units.ts';

/** `size` in bytes. */
export const originTable = (image: string, size: number): TargetSpec => ({
  start: 0,
  length: size / SECTOR,
  type: 'snapshot-origin',
  args: deviceWord({ name: image }),
});

/** The table under which `cow` is merged into `image`. `size` of the device, `chunkSize` of the store, in bytes. */
export const mergeTable = (image: string, cow: string, size: number, chunkSize: number): TargetSpec => ({
  start: 0,
  length: size / SECTOR,
  type: 'snapshot-merge',
  args: `${deviceWord({ name: image })} ${deviceWord({ name: cow })} P ${chunkSize / SECTOR}`,
});
