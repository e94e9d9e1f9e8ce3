/** Bringing back the mapped devices that there were before a restart. */
import { DmError } from '../errors.ts';
import { splitWords } from '../targets/arguments.ts';
import type { Control } from './control.ts';
import type { DeviceIndex } from './device-index.ts';
import type { DeviceSource } from './mapped-device.ts';
import { inLoadOrder, type SavedDevice } from './saved-device.ts';

type Types = DeviceSource['types'];

/** Makes the devices of `saved` in `mapper`, which has the index `index`; see `Mapper.restore`. */
export async function restore(
  saved: readonly SavedDevice[],
  mapper: Control,
  index: DeviceIndex,
  { major, types }: DeviceSource,
  after = 'a restart',
): Promise<void> {
  for (const { name, uuid, minor, readAhead, readAheadMinimum } of saved)
    await mapper.create(name, { uuid, minor, readAhead, readAheadMinimum });
  const ordered = inLoadOrder(saved, major, (device) => writtenBy(device, types).length > 0);
  for (const device of ordered) await restoreTable(device, index, types, after);
  // Upper ones first, and none before all are loaded: what is above reads from what is below.
  for (const { name, suspended } of ordered.reverse())
    if (suspended) await index.get({ name }).suspend({ noflush: true, nolockfs: true });
  for (const { name, deferredRemove } of saved)
    if (deferredRemove && index.named(name)) await mapper.remove({ name }, { deferred: true });
}

async function restoreTable(saved: SavedDevice, index: DeviceIndex, types: Types, after: string): Promise<void> {
  const device = index.get({ name: saved.name });
  device.eventNumber = saved.eventNumber;
  device.note = saved.note;
  const volatile = volatileNote(saved, types);
  if (volatile !== undefined) device.note = volatile;
  else if (saved.table)
    try {
      checkSeen(saved, index, types);
      await device.load(saved.table, { readOnly: saved.readOnly });
      await device.resume();
    } catch (error) {
      await device.clear();
      device.lostTable = saved.table;
      device.lostReadOnly = saved.readOnly;
      device.note = `table not loaded after ${after}: ${(error as Error).message}`;
    }
  device.geometry = saved.geometry;
}

/** What the targets of a saved device write to by themselves. */
function writtenBy({ table = [] }: SavedDevice, types: Types): string[] {
  return table.flatMap(({ type, args }) => types.get(type)?.writesTo?.(splitWords(args)) ?? []);
}

/** Throws if what the device writes to by itself is below another one that could not be loaded: that would miss it. */
function checkSeen(saved: SavedDevice, index: DeviceIndex, types: Types): void {
  for (const word of writtenBy(saved, types))
    for (const { lostTable, storedName } of index.sorted()) {
      if (storedName === saved.name || !lostTable?.some(({ args }) => splitWords(args).includes(word))) continue;
      throw new DmError(
        'RESTORE_UNSEEN',
        'EBUSY',
        `it would write to ${word}, and ${storedName}, which has to see that, could not be loaded`,
        { hint: `see why: dmkit ls; then remove ${storedName}, or restart: dmkit down; dmkit up` },
      );
    }
}

/** A restart finds it without what it holds now. */
export const isVolatile = (saved: SavedDevice, types: Types): boolean => volatileNote(saved, types) !== undefined;

function volatileNote({ table = [] }: SavedDevice, types: Types): string | undefined {
  for (const { type, args } of table) {
    const note = types.get(type)?.volatile?.(splitWords(args));
    if (note !== undefined) return note;
  }
}
