/** The options of dmsetup. Those a command has no use for are accepted and ignored, whatever the command. */
import { CommandFailure } from '../failure.ts';
import { getopt, type LongOption } from '../getopt.ts';
import type { ManglingMode } from './mangle.ts';
import { parseTreeOptions, type TreeOptions } from './tree-options.ts';

const flag = (...names: string[]): LongOption[] => names.map((name) => ({ name }));
const valued = (...names: string[]): LongOption[] => names.map((name) => ({ name, value: 'required' as const }));

/** In the order in which an ambiguous prefix lists its possibilities. */
const LONG: readonly LongOption[] = [
  ...flag('readonly'),
  ...valued('alias'),
  ...flag('alldevices', 'allprograms', 'allregions', 'area'),
  ...valued('areas', 'areasize', 'bounds'),
  ...flag('checks', 'clear', 'columns', 'concise'),
  ...valued('count'),
  ...flag('deferred'),
  ...valued('select', 'exec'),
  ...flag('filemap'),
  ...valued('follow'),
  ...flag('force', 'foreground'),
  ...valued('gid'),
  ...flag('group'),
  ...valued('groupid'),
  ...flag('help', 'histogram', 'inactive'),
  ...valued('interval', 'length', 'manglename', 'major', 'minor', 'mode'),
  ...flag('nameprefixes', 'nogroup', 'noflush', 'noheadings', 'nolockfs', 'noopencount', 'nosuffix', 'notable'),
  ...flag('notimesuffix', 'nomonitor'),
  ...valued('udevcookie'),
  ...flag('noudevrules', 'noudevsync'),
  ...valued('options'),
  ...flag('precise'),
  ...valued('programid'),
  ...flag('raw'),
  ...valued('readahead'),
  ...flag('region'),
  ...valued('regions', 'regionid'),
  ...flag('relative', 'retry', 'rows', 'segments'),
  ...valued('separator'),
  ...flag('setuuid', 'showkeys'),
  ...valued('sort', 'start', 'table', 'target'),
  ...flag('tree'),
  ...valued('uid', 'units', 'uuid'),
  ...flag('unbuffered', 'unquoted'),
  ...valued('userdata'),
  // The real one wants an argument here and throws it away; nobody means that.
  { name: 'verbose', value: 'optional' },
  ...flag('verifyudev', 'version', 'yes', 'addnodeonresume', 'addnodeoncreate'),
];

const SHORT = {
  c: { key: 'columns' },
  C: { key: 'columns' },
  f: { key: 'force' },
  G: { key: 'gid', value: true },
  h: { key: 'help' },
  j: { key: 'major', value: true },
  m: { key: 'minor', value: true },
  M: { key: 'mode', value: true },
  n: { key: 'notable' },
  o: { key: 'options', value: true },
  O: { key: 'sort', value: true },
  r: { key: 'readonly' },
  S: { key: 'select', value: true },
  u: { key: 'uuid', value: true },
  U: { key: 'uid', value: true },
  v: { key: 'verbose' },
  y: { key: 'yes' },
} as const;

export type DeviceNameStyle = 'devno' | 'devname' | 'blkdevname';

export interface Options {
  readonly operands: string[];
  has(key: string): boolean;
  /** The value of the last option of that key. */
  value(key: string): string | undefined;
  readonly mangling: ManglingMode;
  readonly verbose: number;
  readonly count: number;
  readonly intervalSeconds: number;
  /** What `-o` says of the names in parentheses of ls and deps. */
  readonly nameStyle: DeviceNameStyle;
  readonly tree?: TreeOptions;
  readonly readAhead?: { readonly sectors: number; readonly minimum: boolean };
}

/** strtol or atoi: the number at the front of the text, 0 if there is none. */
export const leadingInteger = (text: string) => Number.parseInt(/^\s*[+-]?\d+/.exec(text)?.[0] ?? '0', 10);

const NAME_STYLES: readonly DeviceNameStyle[] = ['devno', 'blkdevname', 'devname'];

/** Throws a CommandFailure with everything that is to be printed. */
export function parseOptions(argv: readonly string[], env: Record<string, string | undefined>): Options {
  try {
    return interpret(argv, env);
  } catch (error) {
    if (!(error instanceof CommandFailure)) throw error;
    throw new CommandFailure(`${error.message}\nCouldn't process command line.`, false);
  }
}

function interpret(argv: readonly string[], env: Record<string, string | undefined>): Options {
  const { options, operands } = getopt('dmsetup', argv, { long: LONG, short: SHORT });
  const values = new Map(options.map(({ key, value }) => [key, value]));
  const value = (key: string) => values.get(key);
  const has = (key: string) => values.has(key);
  const columns = has('columns') || operands[0] === 'splitname' || operands[0] === 'stats';

  const mode = value('mode');
  if (mode !== undefined && !/^[0-7]+$/.test(mode)) throw new CommandFailure(`Invalid argument for --mode: ${mode}. `);
  const count = has('count') ? leadingInteger(value('count')!) : 1;
  if (count < 0) throw new CommandFailure('Count must be zero or greater.');
  const interval = has('interval') ? leadingInteger(value('interval')!) : 1;
  if (interval <= 0) throw new CommandFailure('Interval must be a positive integer.');
  const readAhead = parseReadAhead(value('readahead'));
  const mangling = manglingMode(value('manglename'), env);
  if (has('major') !== has('minor')) throw new CommandFailure('Please specify both major number and minor number.');
  if (has('table') && has('notable')) throw new CommandFailure('--table and --notable are incompatible.');
  if (has('addnodeonresume') && has('addnodeoncreate'))
    throw new CommandFailure('--addnodeonresume and --addnodeoncreate are incompatible.');

  const list = value('options');
  const tree = has('tree') ? parseTreeOptions(list, env) : undefined;
  let nameStyle: DeviceNameStyle = 'devno';
  if (list !== undefined && !columns && !tree) {
    for (const word of list.split(',')) {
      const found = NAME_STYLES.find((style) => style === word);
      if (!found) throw new CommandFailure(`Option not recognised: ${word}.`);
      nameStyle = found;
    }
  }
  return {
    operands,
    has,
    value,
    mangling,
    verbose: options.filter(({ key }) => key === 'verbose').length,
    count: count === 0 || (has('interval') && !has('count')) ? Number.POSITIVE_INFINITY : count,
    intervalSeconds: interval,
    nameStyle,
    tree,
    readAhead,
  };
}

function manglingMode(option: string | undefined, env: Record<string, string | undefined>): ManglingMode {
  const named = (text: string | undefined) =>
    (['auto', 'hex', 'none'] as const).find((mode) => mode === text?.toLowerCase());
  if (option !== undefined) {
    const mode = named(option);
    if (!mode) throw new CommandFailure('Unknown name mangling mode.');
    return mode;
  }
  return named(env.DM_DEFAULT_NAME_MANGLING_MODE) ?? 'auto';
}

function parseReadAhead(text: string | undefined): Options['readAhead'] {
  if (text === undefined || text === 'auto') return undefined;
  if (text === 'none') return { sectors: 0, minimum: false };
  const sectors = leadingInteger(text);
  if (sectors < -1) throw new CommandFailure(`Negative read ahead value (${text}) is not understood.`);
  // The kernel keeps it in pages of 4 KiB.
  return sectors === -1 ? undefined : { sectors: sectors - (sectors % 8), minimum: text.startsWith('+') };
}
