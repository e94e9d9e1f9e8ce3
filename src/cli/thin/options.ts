/** What commands on the metadata of pools have in common. */
import { UsageError } from '../short/command.ts';

export const SNAPSHOT = {
  short: 'm',
  help: 'what the metadata snapshot holds, as the pool is in use',
} as const;

/** A decimal number, or undefined where none was given. Throws UsageError. */
export function numberOf(text: string | undefined, option: string): number | undefined {
  if (text === undefined) return undefined;
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw new UsageError(`${option} is ${JSON.stringify(text)}, not a number`);
  return value;
}

export function required<T>(value: T | undefined, option: string): T {
  if (value === undefined) throw new UsageError(`${option} is missing`);
  return value;
}
