/** The short way: what a command is, how its arguments are read, how its failures are told. */
import { parseArgs } from 'node:util';
import type { DaemonControl } from '../../api/index.ts';
import type { CommandIo } from '../command-io.ts';

export interface ShortIo extends CommandIo {
  /** The daemon, started if it does not run. */
  control(): Promise<DaemonControl>;
  /** The daemon if it runs, or if it has devices to bring back: then it is started. */
  existing(): Promise<DaemonControl | undefined>;
  /** stderr is a terminal: long work may show how far it is. */
  readonly progress?: boolean;
}

export interface Option {
  /** Absent: the option is a flag. In the usage as `--chunk SIZE`. */
  readonly value?: string;
  readonly short?: string;
  /** May be given several times: the values, separated by commas. */
  readonly many?: true;
  readonly help: string;
}

export interface Call<Options extends string = string> {
  readonly operands: string[];
  /** What was given; a flag has the value ''. */
  readonly options: Partial<Record<Options, string>>;
  readonly io: ShortIo;
}

export interface ShortCommand<Options extends string = string> {
  readonly name: string;
  /** `IMAGE NAME`; words in brackets need not be there, and the last may stand for several: `[NAME…]`. */
  readonly operands: string;
  readonly summary: string;
  /** What else there is to know, in lines. */
  readonly help?: string;
  readonly options?: Readonly<Record<Options, Option>>;
  /** Resolves with the exit status; 0 if with nothing. */
  run(call: Call<Options>): Promise<number | void>;
}

/** Wrong arguments: exit status 2 and the usage line. */
export class UsageError extends Error {
  /** A line that knows better, instead of the usage. */
  readonly hint: string | undefined;

  constructor(message: string, hint?: string) {
    super(message);
    this.hint = hint;
  }
}

/** As the commands are written: the options of each by name. */
export const define = <Options extends string>(command: ShortCommand<Options>): ShortCommand =>
  command as unknown as ShortCommand;

const HELP: Option = { short: 'h', help: 'print this' };

const allOptions = (command: ShortCommand): Record<string, Option> => ({ ...command.options, help: HELP });

/** Undefined: help was asked for. Throws UsageError. */
export function readArguments(command: ShortCommand, argv: readonly string[], io: ShortIo): Call | undefined {
  const options = allOptions(command);
  const { tokens } = parseArgs({
    args: [...argv],
    strict: false,
    tokens: true,
    allowPositionals: true,
    options: Object.fromEntries(
      Object.entries(options).map(([name, { value, short }]) => [
        name,
        { type: value === undefined ? ('boolean' as const) : ('string' as const), ...(short && { short }) },
      ]),
    ),
  });
  const given: Record<string, string> = {};
  const operands: string[] = [];
  for (const token of tokens) {
    if (token.kind === 'positional') operands.push(token.value);
    if (token.kind !== 'option') continue;
    const option = Object.hasOwn(options, token.name) ? options[token.name] : undefined;
    if (!option) {
      const close = nearest(token.name, Object.keys(options));
      throw new UsageError(`unknown option ${token.rawName}`, close && `did you mean --${close}?`);
    }
    if (option.value !== undefined && (token.value === undefined || token.value === ''))
      throw new UsageError(`option ${token.rawName} needs a value: ${token.rawName} ${option.value}`);
    if (option.value === undefined && token.value !== undefined)
      throw new UsageError(`option ${token.rawName} takes no value`);
    const before = option.many && given[token.name] !== undefined ? `${given[token.name]},` : '';
    given[token.name] = before + (token.value ?? '');
  }
  if ('help' in given) return undefined;
  const wanted = command.operands.split(' ').filter((word) => word !== '');
  const needed = wanted.filter((word) => !word.startsWith('['));
  if (operands.length < needed.length) throw new UsageError(`${needed[operands.length]} is missing`);
  if (operands.length > wanted.length && !wanted.at(-1)?.endsWith('…]'))
    throw new UsageError(`too many arguments: ${operands.slice(wanted.length).join(' ')}`);
  if (operands.includes('')) throw new UsageError('an argument is empty');
  return { operands, options: given, io };
}

export function usageLine(command: ShortCommand): string {
  const options = Object.entries(command.options ?? {}).map(
    ([name, { value }]) => ` [--${name}${value === undefined ? '' : ` ${value}`}]`,
  );
  return `usage: dmkit ${command.name}${command.operands && ` ${command.operands}`}${options.join('')}`;
}

export function helpText(command: ShortCommand): string {
  const rows = Object.entries(allOptions(command)).map(([name, { value, short, help }]) => [
    `  ${short ? `-${short}, ` : '    '}--${name}${value === undefined ? '' : ` ${value}`}`,
    help,
  ]);
  const width = Math.max(...rows.map(([left]) => left.length));
  const lines = rows.map(([left, help]) => `${left.padEnd(width)}  ${help}\n`);
  const more = command.help ? `\n${command.help}\n` : '';
  return `${command.summary}\n\n${usageLine(command)}\n${more}\n${lines.join('')}`;
}

/** The known word that `typed` is a slip of, if there is one: a prefix, or at most a third of its letters wrong. */
export function nearest(typed: string, known: readonly string[]): string | undefined {
  const byPrefix = known.filter((word) => typed !== '' && word.startsWith(typed));
  if (byPrefix.length === 1) return byPrefix[0];
  const ranked = known.map((word) => [distance(typed, word), word] as const).sort(([a], [b]) => a - b);
  const [best, word] = ranked[0] ?? [Infinity];
  return best <= Math.max(1, Math.floor(typed.length / 3)) ? word : undefined;
}

/** Insertions, deletions, replacements and swaps of neighbours that lead from one word to the other. */
function distance(a: string, b: string): number {
  const rows = Array.from({ length: a.length + 1 }, (_, i) => [i, ...Array(b.length).fill(0)]);
  for (let j = 1; j <= b.length; j++) rows[0][j] = j;
  for (let i = 1; i <= a.length; i++)
    for (let j = 1; j <= b.length; j++) {
      const change = a[i - 1] === b[j - 1] ? 0 : 1;
      rows[i][j] = Math.min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + change);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        rows[i][j] = Math.min(rows[i][j], rows[i - 2][j - 2] + 1);
    }
  return rows[a.length][b.length];
}

/** One value as the JSON that scripts read. */
export const printJson = (io: ShortIo, value: unknown) => io.stdout.write(`${JSON.stringify(value, undefined, 2)}\n`);
