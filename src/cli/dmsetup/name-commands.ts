/** mangle and splitname. */
import { CommandFailure } from '../failure.ts';
import type { DeviceReport } from './device-report.ts';
import { mangle } from './mangle.ts';
import { OperationFailure, type Session } from './session.ts';

/** Brings stored names into the form that `auto` would have given them. Works on names as they are stored. */
export async function mangleNames(session: Session, args: readonly string[]): Promise<void> {
  const devices = await session.list();
  if (args.length > 0 || session.namedByOption) {
    for (const name of args.length > 0 ? args : [undefined]) {
      const info = devices.find(
        name === undefined
          ? (device) =>
              session.options.has('uuid')
                ? device.uuid === session.options.value('uuid')
                : device.minor === Number(session.options.value('minor'))
          : (device) => device.name === name,
      );
      if (!info) throw new CommandFailure();
      await mangleOne(session, info.name, info.uuid);
    }
    return;
  }
  if (devices.length === 0) session.print('No devices found\n');
  let failed = false;
  for (const { name, uuid } of devices) {
    try {
      await mangleOne(session, name, uuid);
    } catch (error) {
      if (!(error instanceof CommandFailure)) throw error;
      failed = true;
      if (error.message !== '') session.printError(`${error.message}\n`);
    }
  }
  if (failed) throw new CommandFailure();
}

async function mangleOne(session: Session, name: string, uuid: string): Promise<void> {
  const rightName = mangle(name, 'name', 'auto');
  if (uuid !== '' && mangle(uuid, 'UUID', 'auto') !== uuid)
    throw new CommandFailure(
      `${name}: ${uuid}: UUID in incorrect form. \nUnable to change device UUID. The device must be deactivated first.`,
    );
  if (rightName === name) {
    const what = uuid === '' ? 'name' : 'name and UUID';
    session.print(`${name}: ${uuid === '' ? '[no UUID]' : uuid}: ${what} already in correct form\n`);
    return;
  }
  session.print(`${name}: renaming to ${rightName}\n`);
  const device = { ref: { name }, name, uuid: '', number: '' };
  await session
    .call('rename', device, (control) => control.rename({ name }, rightName))
    .catch((error) => {
      if (error instanceof OperationFailure)
        throw new CommandFailure(`${error.message}\nUnable to rename device "${name}".`);
      throw error;
    });
}

export function splitname(args: readonly string[], report: DeviceReport): void {
  report.addName(args[0], args[1] ?? 'LVM');
}
