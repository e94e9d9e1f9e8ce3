import type { BlockDevice } from '../device/block-device.ts';
import type { Dependency, DeviceInfo, InactiveOption } from './control.ts';
import { byName } from './device-index.ts';
import { MappedDevice } from './mapped-device.ts';

/** What `dmsetup info` tells of a device of this major. */
export function infoOf(device: MappedDevice, major: number, { inactive = false }: InactiveOption = {}): DeviceInfo {
  const table = inactive ? device.inactiveTable : device.liveTable;
  return {
    name: device.storedName,
    uuid: device.uuid,
    major,
    minor: device.minor,
    size: device.size,
    suspended: device.suspended,
    readOnly: table?.readOnly ?? false,
    live: device.liveTable !== undefined,
    inactive: device.inactiveTable !== undefined,
    targetCount: table?.targetCount ?? 0,
    openCount: device.openCount,
    eventNumber: device.eventNumber,
    deferredRemove: device.deferredRemove,
    readAhead: device.loaded ? device.readAhead : undefined,
    deps: (table?.devices ?? []).map((below) => dependency(below.device, major)).reverse(),
    usedBy: [...device.users].sort(byName).map((user) => user.storedName),
    note: device.note ?? device.liveTable?.note,
  };
}

function dependency(below: BlockDevice, major: number): Dependency {
  if (below instanceof MappedDevice)
    return { major, minor: below.minor, mapped: below.storedName, name: `dm-${below.minor}` };
  const number = /^(\d+):(\d+)$/.exec(below.name);
  if (!number) return { major: 0, minor: 0, name: below.name };
  const name = below.path?.replace(/^\/dev\//, '') ?? below.name;
  return { major: Number(number[1]), minor: Number(number[2]), name };
}
