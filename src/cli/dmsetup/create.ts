/** create, load and reload: devices and tables from text. */
import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { type DeviceInfo, DmError, type TargetSpec } from '../../api/index.ts';
import { CommandFailure } from '../failure.ts';
import { parseConcise } from './concise.ts';
import { leadingInteger } from './options.ts';
import { infoBlock } from './print.ts';
import { type Given, OperationFailure, type Session } from './session.ts';
import { parseTable } from './table-text.ts';

interface NewDevice {
  /** As typed. */
  readonly name: string;
  readonly uuid: string | undefined;
  readonly number: { readonly major: number; readonly minor: number } | undefined;
  readonly readOnly: boolean;
}

export async function create(session: Session, args: readonly string[]): Promise<void> {
  const { options } = session;
  if (options.has('concise')) return createConcise(session, args);
  if (args.length === 0) throw new CommandFailure('Please provide a name for the new device.');
  const number = options.has('major')
    ? { major: leadingInteger(options.value('major')!), minor: leadingInteger(options.value('minor')!) }
    : undefined;
  await createOne(
    session,
    { name: args[0], uuid: options.value('uuid'), number, readOnly: options.has('readonly') },
    async () => (options.has('notable') ? [] : await tableGiven(session, args[1])),
  );
}

async function createConcise(session: Session, args: readonly string[]): Promise<void> {
  const { options } = session;
  if (['table', 'notable', 'minor', 'uuid', 'inactive'].some((key) => options.has(key)))
    throw new CommandFailure('--concise is incompatible with --[no]table, --minor, --uuid and --inactive.');
  if (args.length > 1) throw new CommandFailure('dmsetup create --concise takes at most one argument');
  for (const device of parseConcise(args[0] ?? (await session.io.stdin()))) {
    const { name, uuid, minor, readOnly, table } = device;
    await createOne(
      session,
      {
        name,
        uuid: uuid === '' ? undefined : uuid,
        number: minor === '' ? undefined : { major: await majorShown(session), minor: leadingInteger(minor) },
        readOnly,
      },
      async () => parseTable(table, ''),
    );
  }
}

/** A concise device names a minor alone. Only the line of an error shows the major: there is a device that has it. */
const majorShown = async (session: Session) => (await session.list())[0]?.major ?? 254;

/** Each of the kernel's three steps fails with a line of its own. */
async function createOne(session: Session, wanted: NewDevice, readTable: () => Promise<TargetSpec[]>): Promise<void> {
  const { options } = session;
  if (Buffer.byteLength(wanted.name) <= 127 && wanted.name.includes('/')) throw nameWithSlash(wanted.name);
  const name = session.storedName(wanted.name);
  const uuid = wanted.uuid === undefined ? '' : session.stored(wanted.uuid, 'UUID');
  const table = await readTable();
  const { number } = wanted;
  if (number && number.major <= 0)
    throw new CommandFailure("Missing major number for persistent device.\nCouldn't create ioctl argument.");
  const asked: Given = { ref: { name }, name, uuid, number: number ? `(${number.major}:${number.minor})` : '' };
  const { readAhead } = options;
  const made = {
    ...(uuid !== '' && { uuid }),
    ...(number && { minor: number.minor }),
    ...(readAhead && { readAhead: readAhead.sectors, readAheadMinimum: readAhead.minimum }),
    ...(table.length > 0 && {
      table,
      load: loadOptions(session, wanted.readOnly),
      resume: session.suspendOptions,
    }),
  };
  const info = await session.call('create', asked, async (control) => {
    try {
      return await control.create(name, made);
    } catch (error) {
      if (!(error instanceof DmError) || !error.step) throw error;
      const { call, major, minor } = error.step;
      const device: Given = { ref: { name }, name, uuid: '', number: `(${major}:${minor})` };
      throw new OperationFailure(call === 'load' ? 'reload' : call, device, error);
    }
  });
  if (options.verbose > 0) session.print(infoBlock(session, info));
}

export const nameWithSlash = (name: string) => new CommandFailure(`Name "${name}" invalid. It contains "/".`);

export async function loadTable(session: Session, args: readonly string[]): Promise<void> {
  const { options } = session;
  if (options.has('notable')) throw new CommandFailure('--notable only available when creating new device.');
  let name: string | undefined;
  let file: string | undefined;
  if (session.namedByOption && args.length < 2) [file] = args;
  else [name, file] = args;
  if (name === undefined && !session.namedByOption) throw new CommandFailure('Please specify device.');
  const device = await session.device(name);
  const table = await tableGiven(session, file);
  const info = await load(session, device, table, options.has('readonly'));
  if (options.verbose > 0) session.print(infoBlock(session, info));
}

function load(session: Session, device: Given, table: TargetSpec[], readOnly: boolean): Promise<DeviceInfo> {
  return session.call('reload', device, (control) => control.load(device.ref, table, loadOptions(session, readOnly)));
}

const loadOptions = (session: Session, readOnly: boolean) => ({
  ...(readOnly && { readOnly }),
  directory: session.io.cwd,
});

/** --table wins over the file, the file over standard input. */
async function tableGiven(session: Session, file: string | undefined): Promise<TargetSpec[]> {
  const text = session.options.value('table');
  if (text !== undefined) return parseTable(text, '');
  if (file === undefined) return parseTable(await session.io.stdin(), 'on stdin');
  let read: string;
  try {
    read = await readFile(resolve(session.io.cwd, file), 'utf8');
  } catch {
    throw new CommandFailure(`Couldn't open '${file}' for reading.`);
  }
  return parseTable(read, file);
}

/** An `error` target over the whole size: everything below is released. Each part that fails says so; none stops. */
export async function wipe(
  session: Session,
  device: Given,
  suspend: { noflush: boolean; nolockfs: boolean },
): Promise<void> {
  let length = 0;
  try {
    const table = await session.call('table', device, (control) => control.table(device.ref));
    for (const target of table) length += target.length;
  } catch (error) {
    if (!(error instanceof CommandFailure)) throw error;
    session.printError(`${error.message}\n`);
  }
  await load(session, device, [{ start: 0, length, type: 'error', args: '' }], false);
  try {
    await session.call('resume', device, (control) => control.resume(device.ref, suspend));
  } catch (error) {
    const control = await session.control();
    await control.clear(device.ref).catch(() => {});
    throw error;
  }
}
