/** The devices and the store of a merge, found again by what the record says. */
import { DmError } from '../../errors.ts';
import type { TargetSpec } from '../../mapper/control.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { Mapper } from '../../mapper/mapper.ts';
import { splitWords } from '../../targets/arguments.ts';
import type { Images } from './images.ts';
import { exceptionsIn } from './merge-status.ts';
import type { MergeRecord } from './records.ts';

type Store = Pick<MergeRecord['merging'], 'cow' | 'chunkSize'>;

/** The device that merges the record's store, would if its table could be loaded, or did. */
export function deviceOf(images: Images, { image, merging: { cow } }: MergeRecord): MappedDevice | undefined {
  let plain: MappedDevice | undefined;
  for (const device of images.devices()) {
    if (isOver(device, image, cow)) return device;
    if (typeOf(device) === 'snapshot-origin' && isOver(device, image)) plain ??= device;
  }
  return plain;
}

/** Exceptions in the list of a store. */
export async function exceptionsOn(mapper: Mapper, { cow, chunkSize }: Store): Promise<number> {
  const lease = await mapper.lease(cow);
  try {
    return await exceptionsIn(lease.device, chunkSize);
  } finally {
    await lease.release();
  }
}

/** A file that is gone was deleted for being empty. */
export async function isEmpty(mapper: Mapper, record: MergeRecord): Promise<boolean> {
  try {
    return (await exceptionsOn(mapper, record.merging)) === 0;
  } catch (error) {
    if (error instanceof DmError && error.code === 'DEVICE_NOT_FOUND') return true;
    throw error;
  }
}

export async function sizeOf(mapper: Mapper, image: string): Promise<number> {
  const lease = await mapper.lease(image);
  try {
    return lease.device.size;
  } finally {
    await lease.release();
  }
}

/** The one line of the live table, or of the one that could not be loaded after a restart. */
export function lineOf({ liveTable, lostTable = [] }: MappedDevice): TargetSpec | undefined {
  if (!liveTable) return lostTable.length === 1 ? lostTable[0] : undefined;
  if (liveTable.targetCount > 1) return undefined;
  const [{ text, ...line }] = liveTable.text('table');
  return { ...line, args: text };
}

/** The device has a table over the image; if `cow` is given, a merge of that, or the snapshot by which somebody paused it. */
export function isOver(device: MappedDevice, image: string, cow?: string): boolean {
  const line = lineOf(device);
  const words = splitWords(line?.args ?? '');
  if (words[0] !== image) return false;
  return cow === undefined || (words[1] === cow && /^snapshot(-merge)?$/.test(line!.type));
}

/** Of the live table's first target. */
export const typeOf = (device: MappedDevice | undefined) => device?.liveTable?.targets[0]?.type.name;
