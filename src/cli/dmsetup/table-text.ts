/**
 * The text of a table, as files, stdin and --table hold it: `<start sector> <sectors> <target type> <arguments>` a
 * line; blank lines and those that begin with `#` do not count; a `#` in the arguments ends them, even inside a word.
 */
import type { TargetSpec } from '../../api/index.ts';
import { CommandFailure } from '../failure.ts';

const TYPE_MAX = 15;

/**
 * `source` is what an error calls the table: empty for --table, ` on stdin`, or a file's name. Arguments are left as
 * they are; a number too large for 64 bits becomes the largest, a negative one wraps, and both are refused later.
 */
export function parseTable(text: string, source: string): TargetSpec[] {
  const table: TargetSpec[] = [];
  text.split('\n').forEach((raw, index) => {
    const line = raw.replace(/^[ \t\r\v\f]+|[ \t\r\v\f]+$/g, '');
    if (line === '' || line.startsWith('#')) return;
    const fields = /^([+-]?\d+)(?!\d)\s*([+-]?\d+)(?!\d)\s*(\S+)\s*(.*)$/.exec(line);
    if (!fields) throw new CommandFailure(`Invalid format on line ${index + 1} of table ${source}.`);
    const [, start, length, type, args] = fields;
    if (Buffer.byteLength(type) > TYPE_MAX) throw new CommandFailure(`Target type name ${type} is too long.`);
    table.push({ start: unsigned(start), length: unsigned(length), type, args: args.replace(/#.*$/s, '').trimEnd() });
  });
  return table;
}

/** strtoull: a minus wraps around. */
function unsigned(text: string): number {
  const value = BigInt.asUintN(64, clamp(BigInt(text.replace(/^[+-]/, ''))) * (text.startsWith('-') ? -1n : 1n));
  // Not to be rounded down into the range that is allowed, which ends at 2^54 - 1.
  return value >= 2n ** 54n ? 2 ** 64 : Number(value);
}

const UINT64_MAX = 2n ** 64n - 1n;
const clamp = (value: bigint) => (value > UINT64_MAX ? UINT64_MAX : value);
