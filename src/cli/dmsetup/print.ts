/** What several commands print of a device. */
import type { Dependency, DeviceInfo } from '../../api/index.ts';
import type { DeviceNameStyle } from './options.ts';
import type { Session } from './session.ts';

/** The largest size, 2^54 - 1, is no number that JavaScript has. */
export const sectors = (count: number) => (count === 2 ** 54 ? '18014398509481983' : String(count));

/** A device that never had a table has no kernel name. */
export const kernelName = (info: DeviceInfo) => (info.readAhead === undefined ? undefined : `dm-${info.minor}`);

/** The long form of `info`, with the empty line after it. */
export function infoBlock(session: Session, info: DeviceInfo): string {
  const line = (label: string, value: string | number) => `${label.padEnd(19)}${value}\n`;
  const tables = info.live ? (info.inactive ? 'LIVE & INACTIVE' : 'LIVE') : info.inactive ? 'INACTIVE' : 'None';
  const state =
    (info.suspended ? 'SUSPENDED' : 'ACTIVE') +
    (info.readOnly ? ' (READ-ONLY)' : '') +
    (info.deferredRemove ? ' (DEFERRED REMOVE)' : '');
  return (
    line('Name:', session.shown(info.name)) +
    line('State:', state) +
    (info.readAhead === undefined ? '' : line('Read Ahead:', info.readAhead)) +
    line('Tables present:', tables) +
    line('Open count:', info.openCount) +
    line('Event number:', info.eventNumber) +
    line('Major, minor:', `${info.major}, ${info.minor}`) +
    line('Number of targets:', info.targetCount) +
    (info.uuid === '' ? '' : `UUID: ${session.shown(info.uuid, 'UUID')}\n`) +
    // Where a table is live, every byte is the real dmsetup's.
    (info.note && !info.live ? line('Note:', info.note) : '') +
    '\n'
  );
}

export function dependencyName(session: Session, device: Dependency, style: DeviceNameStyle): string {
  if (style === 'devno') return `${device.major}, ${device.minor}`;
  return style === 'devname' && device.mapped !== undefined ? session.shown(device.mapped) : device.name;
}
