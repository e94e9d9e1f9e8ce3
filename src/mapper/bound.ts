/** What holds mapped devices where they are. */
import type { BlockDevice } from '../device/block-device.ts';
import { splitWords } from '../targets/arguments.ts';
import type { Devices } from './devices.ts';
import { type DeviceSource, MappedDevice } from './mapped-device.ts';
import { isVolatile } from './restore.ts';
import { savedOf } from './saved-device.ts';

/** Why `devices`, out of `all`, cannot go on in another mapper; see `Mapper.bound`. */
export async function whyBound(
  devices: readonly MappedDevice[],
  all: readonly MappedDevice[],
  disks: Devices,
  types: DeviceSource['types'],
): Promise<string | undefined> {
  const leaving = new Set(devices);
  const below = new Set<BlockDevice>(leaving);
  for (const device of leaving) {
    const { storedName, watched, suspended, liveTable } = device;
    if (watched) return `${storedName} is in use`;
    // Its last suspend may have left something that it could not write.
    if (suspended) return `${storedName} is suspended`;
    if (isVolatile(savedOf(device), types)) return `what ${storedName} holds is in memory only`;
    for (const lease of liveTable?.devices ?? []) below.add(lease.device);
  }
  for (const device of all) {
    const { storedName, inactiveTable, liveTable } = device;
    if (inactiveTable) return `${storedName} has a table that is not live yet`;
    if (leaving.has(device)) continue;
    if (below.has(device) || liveTable?.devices.some((lease) => below.has(lease.device)))
      return `${storedName} has a disk in common with them`;
  }
  for (const disk of below)
    if (!(disk instanceof MappedDevice) && !(await disks.isFound(disk)))
      return `${disk.name} could not be opened again: it was deleted, or another has its name`;
}

/** The table of one of `devices`, that could not be loaded after a restart, names a disk by one of these words. */
export function isMissed(words: readonly string[], devices: readonly MappedDevice[]): boolean {
  const known = new Set(words);
  return devices.some(({ lostTable }) =>
    lostTable?.some(({ args }) => splitWords(args).some((word) => known.has(word))),
  );
}
