import type { Geometry, TargetSpec } from './control.ts';
import type { MappedDevice } from './mapped-device.ts';

/** What a restart must find again of a mapped device. Survives JSON. Inactive tables and held requests are not kept. */
export interface SavedDevice {
  /** Stored form. */
  name: string;
  uuid: string;
  minor: number;
  /** The live table as text that loads again; absent: there is none. */
  table?: TargetSpec[];
  readOnly: boolean;
  suspended: boolean;
  deferredRemove: boolean;
  eventNumber: number;
  /** Sectors, as asked for at create. */
  readAhead?: number;
  readAheadMinimum: boolean;
  geometry?: Geometry;
  note?: string;
}

/**
 * The live table, unless it is spent, or the one that could not be loaded after the last restart: the next one tries it
 * again.
 */
export function savedOf(device: MappedDevice): SavedDevice {
  const live = device.liveTable;
  const table = live ? live.text('table').map(({ text, ...line }) => ({ ...line, args: text })) : device.lostTable;
  return {
    name: device.storedName,
    uuid: device.uuid,
    minor: device.minor,
    table: live?.spent ? undefined : table,
    readOnly: live ? live.readOnly : device.lostReadOnly,
    suspended: device.staysSuspended,
    deferredRemove: device.deferredRemove,
    eventNumber: device.eventNumber,
    readAhead: device.readAheadAsked,
    readAheadMinimum: device.readAheadMinimum,
    geometry: device.geometry,
    note: device.note ?? (live?.spent ? live.note : undefined),
  };
}

/**
 * Lower devices first. A table names those below it as `major:minor`. Devices for which `isLate` and those above them
 * come after all others.
 */
export function inLoadOrder(
  saved: readonly SavedDevice[],
  major: number,
  isLate: (device: SavedDevice) => boolean = () => false,
): SavedDevice[] {
  const byNumber = new Map(saved.map((device) => [`${major}:${device.minor}`, device]));
  const ordered = new Set<SavedDevice>();
  const begun = new Set<SavedDevice>();
  const late = new Set<SavedDevice>();
  const visit = (device: SavedDevice): void => {
    if (begun.has(device)) return;
    begun.add(device);
    if (isLate(device)) late.add(device);
    for (const { args } of device.table ?? [])
      for (const word of args.split(/\s+/)) {
        const below = byNumber.get(word);
        if (!below) continue;
        visit(below);
        if (late.has(below)) late.add(device);
      }
    ordered.add(device);
  };
  for (const device of saved) visit(device);
  return [...[...ordered].filter((device) => !late.has(device)), ...[...ordered].filter((device) => late.has(device))];
}
