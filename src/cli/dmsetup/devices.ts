/** Which devices a command runs on. */
import type { DeviceInfo } from '../../api/index.ts';
import { CommandFailure } from '../failure.ts';
import { selectionOf } from './device-report.ts';
import { deviceRow } from './info-fields.ts';
import { byName, type Given, type Session } from './session.ts';

/** `several`: lines need the device's name in front. `info`: where it is known already. */
export type DeviceCommand = (device: Given, several: boolean, info?: DeviceInfo) => Promise<void>;

export interface EachOptions {
  /** Without arguments: all devices, rather than an error. */
  readonly all?: boolean;
  /** Whether -S chooses among them. */
  readonly select?: boolean;
}

/**
 * In order over the devices named, stopping at the first failure; or over the one that -u or -j and -m name; or over all,
 * where a failure does not stop the others.
 */
export async function eachDevice(
  session: Session,
  names: readonly string[],
  { all = false, select = false }: EachOptions,
  run: DeviceCommand,
): Promise<void> {
  if (select && session.options.value('select')) return eachSelected(session, names, run);
  if (names.length > 0) {
    for (const name of names) await run(await session.device(name), names.length > 1);
    return;
  }
  if (session.namedByOption || !all) return run(await session.device(undefined), false);
  await eachListed(session, run);
}

async function eachListed(session: Session, run: DeviceCommand): Promise<void> {
  const devices = await listDevices(session);
  let failed = false;
  for (const info of devices) {
    try {
      await run(byName(info.name), true, info);
    } catch (error) {
      if (!(error instanceof CommandFailure)) throw error;
      failed = true;
      if (error.message !== '') session.printError(`${error.message}\n`);
    }
  }
  if (failed) throw new CommandFailure();
}

async function eachSelected(session: Session, names: readonly string[], run: DeviceCommand): Promise<void> {
  const selection = selectionOf(session);
  if (selection === 'help' || selection === undefined) return;
  const devices = await listDevices(session);
  const index = new Map(devices.map((info) => [info.name, info]));
  const candidates = [];
  if (names.length === 0) candidates.push(...devices);
  for (const name of names) {
    const given = await session.device(name);
    candidates.push((given.name && index.get(given.name)) || (await session.info(given)));
  }
  for (const info of candidates)
    if (selection(deviceRow(session, info, index))) await run(byName(info.name), true, info);
}

/** All devices; says so when there is none. Throws for a stored name that cannot be shown. */
export async function listDevices(session: Session, options = session.inactive): Promise<DeviceInfo[]> {
  const devices = await session.list(options);
  if (devices.length === 0) session.print('No devices found\n');
  for (const { name } of devices) session.shown(name);
  return devices;
}
