/** `dmkit dmsetup`: a drop-in for dmsetup(8), its output and exit status to the byte. */
import { isAbsolute } from 'node:path';
import { DmError } from '../../api/index.ts';
import type { CommandIo } from '../command-io.ts';
import { CommandFailure } from '../failure.ts';
import { fieldHelp } from '../report/field.ts';
import * as control from './control-commands.ts';
import { create, loadTable } from './create.ts';
import { DeviceReport } from './device-report.ts';
import { GROUPS } from './info-fields.ts';
import * as list from './list-commands.ts';
import { mangleNames, splitname } from './name-commands.ts';
import { parseOptions } from './options.ts';
import { byName, Session, type Sleep } from './session.ts';
import * as udev from './udev.ts';
import { STATISTICS_USAGE, USAGE } from './usage.ts';

/** Scripts compare these: the version whose behaviour is reproduced. */
const LIBRARY_VERSION = '1.02.185 (2022-05-18)';

interface Command {
  /** Number of arguments. */
  readonly least: number;
  readonly most: number;
  run(session: Session, args: readonly string[], report: DeviceReport | undefined): Promise<void> | void;
}

const ANY = Number.POSITIVE_INFINITY;
const command = (least: number, most: number, run: Command['run']): Command => ({ least, most, run });
const nothing = () => {};

const COMMANDS: Readonly<Record<string, Command>> = {
  help: command(0, 0, help),
  create: command(0, 2, create),
  remove: command(0, ANY, control.remove),
  remove_all: command(0, 0, control.removeAll),
  suspend: command(0, ANY, control.suspend),
  resume: command(0, ANY, control.resume),
  load: command(0, 2, loadTable),
  clear: command(0, ANY, control.clear),
  reload: command(0, 2, loadTable),
  wipe_table: command(0, ANY, control.wipeTable),
  rename: command(1, 2, control.rename),
  measure: command(0, ANY, list.measure),
  message: command(2, ANY, control.message),
  ls: command(0, 0, list.ls),
  info: command(0, ANY, list.info),
  deps: command(0, ANY, list.deps),
  stats: command(1, ANY, statistics),
  status: command(0, ANY, list.status),
  table: command(0, ANY, list.table),
  wait: command(0, 2, control.wait),
  // A device has its path from the moment it has its name, and what attaches it to a node keeps the node.
  mknodes: command(0, ANY, nothing),
  mangle: command(0, ANY, mangleNames),
  udevcreatecookie: command(0, 0, nothing),
  udevreleasecookie: command(0, 1, udev.udevReleaseCookie),
  udevflags: command(1, 1, udev.udevFlags),
  udevcomplete: command(1, 1, udev.udevComplete),
  udevcomplete_all: command(0, 1, udev.udevCompleteAll),
  udevcookies: command(0, 0, udev.udevCookies),
  'target-version': command(1, ANY, targetVersion),
  targets: command(0, 0, targets),
  version: command(0, 0, version),
  setgeometry: command(5, 5, control.setGeometry),
  splitname: command(1, 2, (_session, args, report) => splitname(args, report!)),
};

const realSleep: Sleep = (ms) => new Promise((resume) => setTimeout(resume, ms));

/** Runs one command line, without the program's name, and resolves with its exit status. */
export async function dmsetup(argv: readonly string[], io: CommandIo, sleep = realSleep): Promise<number> {
  try {
    return await run(argv, io, sleep);
  } catch (error) {
    // The mapper that cannot be reached, or a device that went while we looked.
    const failure = error instanceof DmError ? new CommandFailure(unreachable(error)) : error;
    if (!(failure instanceof CommandFailure)) throw error;
    if (failure.message !== '') io.stderr.write(`${failure.message}\n`);
    if (failure.last) io.stderr.write('Command failed.\n');
    return 1;
  }
}

const unreachable = ({ message, hint }: DmError) => (hint ? `${message}\n  hint: ${hint}` : message);

/** As called by the name `dmstats`. */
export const dmstats = (argv: readonly string[], io: CommandIo) => dmsetup(['stats', ...argv], io);

/** As called by the name `devmap_name`, with `MAJ MIN` or `MAJ:MIN`. */
export function devmapName(argv: readonly string[], io: CommandIo): Promise<number> {
  const [major, minor] = argv.length === 1 ? argv[0].split(':') : argv;
  if (argv.length > 2 || !/^\d+$/.test(major ?? '') || !/^\d+$/.test(minor ?? '')) {
    io.stderr.write('Usage: devmap_name <major> <minor>\n');
    return Promise.resolve(1);
  }
  return dmsetup(['info', '-c', '--noheadings', '-o', 'name', '-j', major, '-m', minor], io);
}

async function run(argv: readonly string[], io: CommandIo, sleep: Sleep): Promise<number> {
  const { DM_DEV_DIR } = io.env;
  if (DM_DEV_DIR && !isAbsolute(DM_DEV_DIR))
    throw new CommandFailure('Invalid DM_DEV_DIR environment variable value.', false);
  const options = parseOptions(argv, io.env);
  const session = new Session(io, options, sleep);
  if (options.has('help')) {
    help(session);
    return 0;
  }
  if (options.has('version')) {
    await version(session);
    return 0;
  }
  const [name, ...args] = options.operands;
  const chosen = name !== undefined && Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  if (!chosen || args.length < chosen.least || args.length > chosen.most) {
    const problem = name === undefined ? '' : chosen ? 'Incorrect number of arguments.\n' : 'Unknown command.\n';
    io.stderr.write(problem + (name === 'stats' ? STATISTICS_USAGE : USAGE));
    return 1;
  }
  const isReport = name === 'splitname' || (name === 'info' && options.has('columns'));
  const report = isReport ? DeviceReport.from(session, name === 'info' ? 'info' : 'splitname') : undefined;
  if (report === 'help') return 0;
  await repeat(
    session,
    async () => {
      try {
        await chosen.run(session, args, report);
      } finally {
        report?.output();
      }
    },
    report !== undefined,
  );
  return 0;
}

/** --count and --interval. Reports wait between their turns, and leave an empty line. */
async function repeat(session: Session, turn: () => Promise<void>, isReport: boolean): Promise<void> {
  const { count, intervalSeconds } = session.options;
  for (let i = 0; i < count; i++) {
    if (isReport && i > 0) {
      session.print('\n');
      await session.sleep(intervalSeconds * 1000);
    }
    await turn();
  }
}

function help(session: Session): void {
  session.printError(USAGE + (session.options.has('columns') ? fieldHelp(GROUPS) : ''));
}

function statistics(session: Session, [name]: readonly string[]): void {
  if (name === 'help') {
    session.printError(STATISTICS_USAGE);
    return;
  }
  throw new CommandFailure(`Unknown stats command.\n${STATISTICS_USAGE.trimEnd()}\n`);
}

async function version(session: Session): Promise<void> {
  session.print(`Library version:   ${LIBRARY_VERSION}\n`);
  const driver = await session.call('version', byName(''), (mapper) => mapper.version());
  session.print(`Driver version:    ${driver.join('.')}\n`);
}

const targetLine = (name: string, version: readonly number[]) => `${name.padEnd(16)} v${version.join('.')}\n`;

async function targets(session: Session): Promise<void> {
  const types = await session.call('versions', byName(''), (mapper) => mapper.targets());
  for (const { name, version } of types) session.print(targetLine(name, version));
}

async function targetVersion(session: Session, names: readonly string[]): Promise<void> {
  const types = await session.call('target-version', byName(''), (mapper) => mapper.targets());
  for (const name of names) {
    const type = types.find((candidate) => candidate.name === name);
    if (!type) throw new CommandFailure(`device-mapper: target-version ioctl on ${name}  failed: Invalid argument`);
    session.print(targetLine(name, type.version));
  }
}
