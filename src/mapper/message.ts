/** `dmsetup message` (Linux `dm-ioctl.c`, `target_message`). */
import { DmError } from '../errors.ts';
import { SECTOR } from '../units.ts';
import type { MappedDevice } from './mapped-device.ts';

/** As the kernel's `dm_split_args`: at white space; a backslash takes the next character literally. */
export function splitMessage(text: string): string[] {
  const words = text.match(/(?:\\[\s\S]|[^\s\\])+/g) ?? [];
  return words.map((word) => word.replace(/\\([\s\S])/g, '$1'));
}

/** To the live target at `sector`. Resolves with its reply. Throws MESSAGE_INVALID where none takes it. */
export async function targetMessage(device: MappedDevice, sector: number, words: readonly string[]): Promise<string> {
  const table = device.liveTable;
  if (!table) throw badMessage(device, 'it has no live table');
  if (!(sector >= 0 && sector * SECTOR < table.size))
    throw badMessage(device, `sector ${sector} lies beyond its ${table.size / SECTOR} sectors`);
  const { type, target } = table.targets[table.find(sector * SECTOR)];
  if (!target.message) throw badMessage(device, `its target ${type.name} takes no messages`);
  return table.using(() => target.message!(words));
}

export const badMessage = (device: MappedDevice, why: string) =>
  new DmError('MESSAGE_INVALID', 'EINVAL', `Cannot send a message to ${device.storedName}: ${why}`);
