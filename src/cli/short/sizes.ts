import { UsageError } from './command.ts';

const UNITS = ['', 'k', 'm', 'g', 't', 'p'];

/** `512`, `16k`, `1G`, `64KiB`: powers of 1024. Throws UsageError. */
export function parseSize(text: string, what: string): number {
  const match = /^(\d+)([kmgtp]?)(?:i?b)?$/i.exec(text);
  const value = match ? Number(match[1]) * 1024 ** UNITS.indexOf(match[2].toLowerCase()) : Number.NaN;
  if (!Number.isSafeInteger(value))
    throw new UsageError(`${what} is ${JSON.stringify(text)}, not a size such as 16k or 1G`);
  return value;
}

/** `0 B`, `16.0 KiB`, `1.5 GiB`. */
export function printSize(bytes: number): string {
  let unit = 0;
  let value = bytes;
  for (; value >= 1024 && unit < UNITS.length - 1; unit++) value /= 1024;
  return unit === 0 ? `${bytes} B` : `${value.toFixed(1)} ${UNITS[unit].toUpperCase()}iB`;
}

/** Columns as wide as their widest word; the last is not filled up. Numbers to the right. */
export function printTable(
  headings: readonly string[],
  rows: readonly (readonly string[])[],
  right: readonly number[] = [],
): string {
  const all = [headings, ...rows];
  const widths = headings.map((_, column) => Math.max(...all.map((row) => row[column].length)));
  const cell = (text: string, column: number) => {
    if (right.includes(column)) return text.padStart(widths[column]);
    return column === headings.length - 1 ? text : text.padEnd(widths[column]);
  };
  return all.map((row) => `${row.map(cell).join('  ').trimEnd()}\n`).join('');
}
