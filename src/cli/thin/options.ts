/** What commands on the metadata of pools have in common. */
import { type Option, UsageError } from '../short/command.ts';

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

/** What restored metadata has in place of what it is made of. */
export const OVERRIDES = {
  'transaction-id': { value: 'N', help: 'in place of that which was' },
  'data-block-size': { value: 'SECTORS', help: 'in place of that which was' },
  'nr-data-blocks': { value: 'N', help: 'in place of those that were; a dump of a metadata snapshot has none' },
} as const satisfies Record<string, Option>;

/** Throws UsageError. */
export function overrides(options: Partial<Record<keyof typeof OVERRIDES, string>>) {
  const id = options['transaction-id'];
  if (id !== undefined && (!/^\d+$/.test(id) || BigInt(id) >= 2n ** 64n))
    throw new UsageError(`--transaction-id is ${JSON.stringify(id)}, not a number`);
  return {
    transactionId: id === undefined ? undefined : BigInt(id),
    dataBlockSize: numberOf(options['data-block-size'], '--data-block-size'),
    nrDataBlocks: numberOf(options['nr-data-blocks'], '--nr-data-blocks'),
  };
}
