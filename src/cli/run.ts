/** From the words of a command line to an exit status. */

import { DeviceMapper, DmError } from '../api/index.ts';
import {
  helpText,
  nearest,
  readArguments,
  type ShortCommand,
  type ShortIo,
  UsageError,
  usageLine,
} from './short/command.ts';
import { COMMANDS } from './short/commands.ts';
import { THIN_TOOLS, THIN_TOOLS_VERSION } from './thin/tools.ts';

/** 0: done. 1: failed. 2: the command line is wrong. `program`: the name we were called by. */
export async function run(program: string, argv: readonly string[], io: ShortIo): Promise<number> {
  if (program === 'dmsetup' || program === 'devmap_name' || program === 'dmstats') return runDmsetup(program, argv, io);
  if (Object.hasOwn(THIN_TOOLS, program)) return runThinTool(program, argv, io);
  // `dmkit help fork` is `dmkit fork --help`.
  const [name, ...rest] = joined(argv[0] === 'help' && argv[1] !== undefined ? [...argv.slice(1), '--help'] : argv);
  if (name !== undefined && isDmsetup(name)) return runDmsetup(name, rest, io);
  if (name === undefined || name === 'help' || name === '--help' || name === '-h') {
    (name === undefined ? io.stderr : io.stdout).write(overview());
    return name === undefined ? 2 : 0;
  }
  if (name === '--version') {
    const { version } = await import('./version.ts');
    io.stdout.write(`dmkit ${version()}\n`);
    return 0;
  }
  const [first, second] = name.split(' ');
  const isGroup = Object.keys(COMMANDS).some((known) => known.startsWith(`${first} `));
  const group = () => list((known) => known.startsWith(`${first} `));
  if (isGroup && second === undefined && (rest.length === 0 || rest[0] === '--help' || rest[0] === '-h')) {
    (rest.length === 0 ? io.stderr : io.stdout).write(group());
    return rest.length === 0 ? 2 : 0;
  }
  if (!Object.hasOwn(COMMANDS, name)) {
    const known = [...Object.keys(COMMANDS), 'dmsetup'];
    // `dmkit pool ls`, `dmkit pool drop`: of all devices alike.
    const close = nearest(name, known) ?? (isGroup && second ? known.find((word) => word === second) : undefined);
    io.stderr.write(`dmkit: there is no command ${JSON.stringify(name)}\n`);
    io.stderr.write(close ? `did you mean: dmkit ${close}\n` : isGroup ? group() : 'dmkit help lists what there is\n');
    return 2;
  }
  const { command } = await COMMANDS[name].load();
  return runShort(command, rest, io);
}

/** Commands on pools and their metadata have names of two words. */
const joined = ([first, second, ...rest]: readonly string[]): readonly string[] =>
  (first === 'thin' || first === 'pool') && second !== undefined && !second.startsWith('-')
    ? [`${first} ${second}`, ...rest]
    : [first, second, ...rest].filter((word) => word !== undefined);

/** Every failure of theirs is 1. */
async function runThinTool(program: string, argv: readonly string[], io: ShortIo): Promise<number> {
  if (argv.includes('-V') || argv.includes('--version')) {
    io.stdout.write(`${THIN_TOOLS_VERSION}\n`);
    return 0;
  }
  const [name, ...options] = THIN_TOOLS[program];
  const { command } = await COMMANDS[name].load();
  return Math.min(1, await runShort(command, [...options, ...argv], io));
}

async function runShort(command: ShortCommand, argv: readonly string[], io: ShortIo): Promise<number> {
  try {
    const call = readArguments(command, argv, io);
    if (call) return (await command.run(call)) ?? 0;
    io.stdout.write(helpText(command));
    return 0;
  } catch (error) {
    if (error instanceof UsageError) {
      io.stderr.write(`dmkit ${command.name}: ${error.message}\n${error.hint ?? usageLine(command)}\n`);
      return 2;
    }
    if (!(error instanceof DmError)) throw error;
    tell(error, io);
    return 1;
  }
}

const DMSETUP_NAMES = { dmsetup: 'dmsetup', dmstats: 'dmstats', devmap_name: 'devmapName' } as const;
type DmsetupName = keyof typeof DMSETUP_NAMES;
const isDmsetup = (name: string): name is DmsetupName => Object.hasOwn(DMSETUP_NAMES, name);

async function runDmsetup(name: DmsetupName, argv: readonly string[], io: ShortIo): Promise<number> {
  const door = await import('./dmsetup/dmsetup.ts');
  // Where nothing was ever created no daemon is started to say so: an empty mapper answers the same.
  const control = async () =>
    (await io.existing()) ?? (argv.includes('create') ? io.control() : await DeviceMapper.open());
  try {
    // Not copied: to look at `signal` is to ask for it.
    return await door[DMSETUP_NAMES[name]](argv, Object.create(io, { control: { value: control } }));
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    tell(error, io);
    return 1;
  }
}

function tell(error: DmError, io: ShortIo): void {
  io.stderr.write(`dmkit: ${error.message}\n`);
  if (error.hint) io.stderr.write(`hint: ${error.hint.replaceAll('\n', '\n      ')}\n`);
}

const WIDTH = Math.max(...Object.keys(COMMANDS).map((name) => name.length), 'dmsetup'.length);

const list = (isWanted = (_name: string) => true) =>
  Object.entries(COMMANDS)
    .filter(([name]) => isWanted(name))
    .map(([name, { summary }]) => `  ${name.padEnd(WIDTH)}  ${summary}\n`)
    .join('');

function overview(): string {
  return `dmkit: forks and snapshots of disk images in the Linux kernel's own formats, served over NBD

  dmkit fork disk.img dev     a writable copy of disk.img, called dev
  dmkit ls                    what there is, and where

${list()}  ${'dmsetup'.padEnd(WIDTH)}  all of it as Linux administrators know it: dmkit dmsetup help

dmkit COMMAND --help says more. Exit status: 0 done, 1 failed, 2 wrong command line.
`;
}
