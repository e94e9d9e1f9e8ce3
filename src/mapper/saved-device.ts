import type { TargetSpec } from './control.ts';

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
  geometry?: [cylinders: number, heads: number, sectors: number, start: number];
  note?: string;
}

/** Lower devices first. A table names those below it as `major:minor`. */
export function inLoadOrder(saved: readonly SavedDevice[], major: number): SavedDevice[] {
  const byNumber = new Map(saved.map((device) => [`${major}:${device.minor}`, device]));
  const ordered = new Set<SavedDevice>();
  const begun = new Set<SavedDevice>();
  const visit = (device: SavedDevice): void => {
    if (begun.has(device)) return;
    begun.add(device);
    for (const { args } of device.table ?? [])
      for (const word of args.split(/\s+/)) {
        const below = byNumber.get(word);
        if (below) visit(below);
      }
    ordered.add(device);
  };
  for (const device of saved) visit(device);
  return [...ordered];
}
