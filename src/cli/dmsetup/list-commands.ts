/** Commands that show what is there: ls, info, deps, table, status, measure. */
import type { DeviceInfo, TargetText } from '../../api/index.ts';
import { CommandFailure } from '../failure.ts';
import { printConcise } from './concise.ts';
import { nodePath } from './device-path.ts';
import type { DeviceReport } from './device-report.ts';
import { eachDevice, listDevices } from './devices.ts';
import { dependencyName, infoBlock, kernelName, sectors } from './print.ts';
import { byName, type Given, type Session } from './session.ts';
import { drawTree } from './tree.ts';

export async function ls(session: Session): Promise<void> {
  const { options } = session;
  // Neither names nor the tree know of inactive tables.
  const devices = await listDevices(session, { inactive: false });
  const target = options.value('target');
  const command = options.value('exec');
  if (target !== undefined || command !== undefined) return lsFiltered(session, devices, target, command);
  if (options.tree) {
    session.print(drawTree(session, devices, options.tree, session.io.columns ?? 80));
    return;
  }
  const label = (info: DeviceInfo) => {
    const name = options.nameStyle === 'devno' ? undefined : kernelName(info);
    if (name === undefined) return `${info.major}:${info.minor}`;
    return options.nameStyle === 'devname' ? session.shown(info.name) : name;
  };
  for (const info of devices) session.print(`${session.shown(info.name)}\t(${label(info)})\n`);
}

async function lsFiltered(
  session: Session,
  devices: readonly DeviceInfo[],
  type: string | undefined,
  command: string | undefined,
): Promise<void> {
  for (const info of devices) {
    if (type !== undefined) {
      const table = await session.call('table', byName(info.name), (control) =>
        control.table({ name: info.name }, session.inactive),
      );
      if (!table.some((target) => target.type === type)) continue;
    }
    if (command !== undefined) {
      const argv = command.split(' ').filter((word) => word !== '');
      if (!session.io.exec || argv.length === 0) throw new CommandFailure(`Cannot run "${command}".`);
      try {
        await session.io.exec([...argv, nodePath(session.io.env, info.name)]);
      } catch (error) {
        // Nor does it matter whether the command could be run; but one wants to know.
        session.printError(`Cannot run ${argv[0]}: ${error instanceof Error ? error.message : error}\n`);
      }
      if (session.options.verbose === 0) continue;
    }
    session.print(`${session.shown(info.name)}\t(${info.major}, ${info.minor})\n`);
  }
}

/** `report`: of `info -c`. */
export async function info(session: Session, args: readonly string[], report?: DeviceReport): Promise<void> {
  let devices: ReadonlyMap<string, DeviceInfo> | undefined;
  await eachDevice(session, args, { all: true }, async (device, _several, known) => {
    const info = known ?? (await session.info(device));
    if (!report) {
      session.print(infoBlock(session, info));
      return;
    }
    devices ??= new Map((await session.list()).map((other) => [other.name, other]));
    report.addDevice(info, devices);
  });
}

/** The info block instead of the name, with -v; and then an empty line after each of several devices. */
async function withHeader(
  session: Session,
  device: Given,
  several: boolean,
  known: DeviceInfo | undefined,
  body: (prefix: string) => string,
): Promise<void> {
  if (session.options.verbose > 0) {
    session.print(infoBlock(session, known ?? (await session.info(device))) + body('') + (several ? '\n' : ''));
    return;
  }
  // Several devices always have names: -u, -j and -m name one.
  session.print(body(several ? `${session.shown(device.name)}: ` : ''));
}

export function deps(session: Session, args: readonly string[]): Promise<void> {
  return eachDevice(session, args, { all: true, select: true }, async (device, several, known) => {
    const info = known ?? (await session.call('deps', device, (control) => control.info(device.ref, session.inactive)));
    const names = info.deps.map((dependency) => ` (${dependencyName(session, dependency, session.options.nameStyle)})`);
    await withHeader(
      session,
      device,
      several,
      info,
      (prefix) => `${prefix}${info.deps.length} dependencies\t:${names.join('')}\n`,
    );
  });
}

export async function table(session: Session, args: readonly string[]): Promise<void> {
  if (!session.options.has('concise'))
    return targetLines(session, args, (device) =>
      session.call('table', device, (control) => control.table(device.ref, session.inactive)),
    );
  const printed: string[] = [];
  const wanted = session.options.value('target');
  try {
    await eachDevice(session, args, { all: true, select: true }, async (device, _several, known) => {
      const lines = await session.call('table', device, (control) => control.table(device.ref, session.inactive));
      const shown = wanted === undefined ? lines : lines.filter(({ type }) => type === wanted);
      if (wanted !== undefined && shown.length === 0) return;
      const info = known ?? (await session.info(device));
      printed.push(printConcise(session.shown(info.name), session.shown(info.uuid, 'UUID'), info, shown));
    });
  } finally {
    if (printed.length > 0) session.print(`${printed.join(';')}\n`);
  }
}

export function status(session: Session, args: readonly string[]): Promise<void> {
  const { noflush } = session.suspendOptions;
  const options = { ...session.inactive, ...(noflush && { noflush }) };
  return targetLines(session, args, (device) =>
    session.callExisting('status', device, (control) => control.status(device.ref, options)),
  );
}

export function measure(session: Session, args: readonly string[]): Promise<void> {
  return targetLines(session, args, (device) =>
    session.callExisting('status', device, (control) => control.measure(device.ref, session.inactive)),
  );
}

/** A line a target; one empty line for a device without a table. */
function targetLines(
  session: Session,
  args: readonly string[],
  read: (device: Given) => Promise<TargetText[]>,
): Promise<void> {
  const wanted = session.options.value('target');
  return eachDevice(session, args, { all: true, select: true }, async (device, several, known) => {
    const lines = await read(device);
    const shown = wanted === undefined ? lines : lines.filter(({ type }) => type === wanted);
    if (wanted !== undefined && shown.length === 0) return;
    await withHeader(session, device, several, known, (prefix) =>
      shown.length === 0
        ? `${prefix}\n`
        : shown
            .map(({ start, length, type, text }) => `${prefix}${start} ${sectors(length)} ${type} ${text}\n`)
            .join(''),
    );
  });
}
