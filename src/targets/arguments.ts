import type { BlockDevice, Mode } from '../device/block-device.ts';
import { DmError, errnoText, TableError } from '../errors.ts';
import { type Sector, sector } from '../units.ts';
import type { TableLine } from './target.ts';

/** A refusal in the kernel's words: `linear: Invalid argument count`. */
export const refuse = (type: string, text: string) => new TableError('TABLE_ARGUMENT', 'EINVAL', `${type}: ${text}`);

/**
 * Unsigned decimal, a leading `+` allowed, nothing behind the digits. Undefined for anything else, and for what a
 * number does not hold exactly.
 */
export function parseNumber(word: string | undefined): number | undefined {
  if (word === undefined || !/^\+?[0-9]+$/.test(word)) return undefined;
  const value = Number(word);
  return Number.isSafeInteger(value) ? value : undefined;
}

export function parseSector(word: string | undefined): Sector | undefined {
  const value = parseNumber(word);
  return value === undefined ? undefined : sector(value);
}

/** As `parseNumber`, for what the kernel keeps in 32 bits. */
export function parseU32(word: string | undefined): number | undefined {
  const value = parseNumber(word);
  return value !== undefined && value < 2 ** 32 ? value : undefined;
}

/** What a table needs of a device that it passes its requests on to. */
export const tableMode = ({ readOnly }: TableLine) => (readOnly ? 'r' : 'rw');

/** Opens a device that an argument names. Throws with the errno of the open and the kernel's words for the argument. */
export async function openArgument(
  line: TableLine,
  type: string,
  argument: string,
  mode: Mode,
  text = 'Device lookup failed',
): Promise<BlockDevice> {
  try {
    return await line.open(argument, mode);
  } catch (error) {
    const cause = error instanceof DmError ? error : undefined;
    const errno = cause?.errno ?? 'EIO';
    throw new TableError('TABLE_DEVICE', errno, `${type}: ${text}: ${cause?.message ?? errnoText(errno)}`, {
      hint: cause?.hint,
      cause: error,
    });
  }
}

/** The device as a word of a table line: its number, path or URI, blanks escaped so that it loads again. */
export const deviceWord = (device: Pick<BlockDevice, 'name'>) => device.name.replace(/[ \t\n\v\f\r]/g, '\\$&');

/** Undoes `deviceWord` while it splits: words between white space, where a backslash-blank is part of the word. */
export function splitWords(text: string): string[] {
  const words = text.match(/(?:\\[ \t\n\v\f\r]|[^ \t\n\v\f\r])+/g) ?? [];
  return words.map((word) => word.replace(/\\([ \t\n\v\f\r])/g, '$1'));
}
