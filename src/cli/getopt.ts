/**
 * getopt_long of the C library, which scripts rely on to the letter: options anywhere among the arguments, `--` ends
 * them, short ones in clusters (`-fv`, `-oname`), long ones by unambiguous prefix (`--inact`), `--long=value`.
 */
import { CommandFailure } from './failure.ts';

export interface LongOption {
  readonly name: string;
  readonly value?: 'required' | 'optional';
  /** What the option is called in the result; options of one meaning share it. Default: the name. */
  readonly key?: string;
}

export interface OptionTable {
  readonly long: readonly LongOption[];
  /** As getopt takes it: `f` alone, `o:` with a value. */
  readonly short: Readonly<Record<string, { readonly key: string; readonly value?: boolean }>>;
}

export interface ParsedOptions {
  /** In order of appearance; the value is '' for an option that takes none. */
  readonly options: { readonly key: string; readonly value: string }[];
  readonly operands: string[];
}

const misuse = (program: string, text: string) => new CommandFailure(`${program}: ${text}`);

/** Throws a CommandFailure with getopt's own words at the first option that is unknown, ambiguous or lacks its value. */
export function getopt(program: string, argv: readonly string[], table: OptionTable): ParsedOptions {
  const options: ParsedOptions['options'] = [];
  const operands: string[] = [];
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i];
    if (word === '--') {
      operands.push(...argv.slice(i + 1));
      break;
    }
    if (word.startsWith('--')) {
      const equals = word.indexOf('=');
      const typed = equals < 0 ? word : word.slice(0, equals);
      const option = findLong(program, typed.slice(2), table.long);
      const key = option.key ?? option.name;
      if (!option.value && equals >= 0) throw misuse(program, `option '--${option.name}' doesn't allow an argument`);
      if (option.value === 'required' && equals < 0 && ++i >= argv.length)
        throw misuse(program, `option '--${option.name}' requires an argument`);
      options.push({ key, value: equals >= 0 ? word.slice(equals + 1) : option.value === 'required' ? argv[i] : '' });
    } else if (word.startsWith('-') && word !== '-') {
      for (let at = 1; at < word.length; at++) {
        const letter = word[at];
        const option = table.short[letter];
        if (!option) throw misuse(program, `invalid option -- '${letter}'`);
        if (!option.value) {
          options.push({ key: option.key, value: '' });
          continue;
        }
        const inWord = at + 1 < word.length;
        if (!inWord && ++i >= argv.length) throw misuse(program, `option requires an argument -- '${letter}'`);
        options.push({ key: option.key, value: inWord ? word.slice(at + 1) : argv[i] });
        break;
      }
    } else operands.push(word);
  }
  return { options, operands };
}

function findLong(program: string, typed: string, long: readonly LongOption[]): LongOption {
  const exact = long.find((option) => option.name === typed);
  if (exact) return exact;
  const matches = long.filter((option) => option.name.startsWith(typed));
  if (matches.length === 0) throw misuse(program, `unrecognized option '--${typed}'`);
  const sameMeaning = matches.every(
    (option) =>
      (option.key ?? option.name) === (matches[0].key ?? matches[0].name) && option.value === matches[0].value,
  );
  if (sameMeaning) return matches[0];
  const possibilities = matches.map((option) => `'--${option.name}'`).join(' ');
  throw misuse(program, `option '--${typed}' is ambiguous; possibilities: ${possibilities}`);
}
