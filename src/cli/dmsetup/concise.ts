/**
 * Devices in one string: `NAME,UUID,MINOR,FLAGS,TABLE[,TABLE…][;NAME,…]`. A backslash takes the next character
 * literally; blanks after a field's comma or a semicolon are skipped, those before a comma belong to the field.
 */
import type { DeviceInfo, TargetText } from '../../api/index.ts';
import { CommandFailure } from '../failure.ts';
import { sectors } from './print.ts';

export interface ConciseDevice {
  readonly name: string;
  readonly uuid: string;
  /** As typed; may be empty. */
  readonly minor: string;
  readonly readOnly: boolean;
  /** Table text, a line a target. */
  readonly table: string;
}

const isBlank = (c: string) => c === ' ' || (c >= '\t' && c <= '\r');

/** Yields devices as far as the text is right, so that the ones before a mistake can be created. */
export function* parseConcise(text: string): Generator<ConciseDevice> {
  let fields = [''];
  const fail = (problem: string) => {
    const shown = [...fields, '(null)', '(null)', '(null)', '(null)'];
    const parsed = `name: ${shown[0]} uuid: ${shown[1]} minor: ${shown[2]} flags: ${shown[3]} table: ${shown[4]}`;
    return new CommandFailure(`${problem}\nParsed ${fields.length} fields: ${parsed}`);
  };
  let at = 0;
  const skipBlanks = () => {
    while (at < text.length && isBlank(text[at])) at++;
  };
  while (at < text.length) {
    const c = text[at++];
    const append = (piece: string) => {
      fields[fields.length - 1] += piece;
    };
    if (c === '\\') {
      if (at >= text.length) throw fail('Backslash must be followed by another character at end of string.');
      append(text[at++]);
    } else if (c === ',' && fields.length < 5) {
      fields.push('');
      skipBlanks();
    } else if (c === ',') append('\n');
    else if (c === ';' || at === text.length) {
      if (c !== ';' && !isBlank(c)) append(c);
      skipBlanks();
      if (fields.length !== 5) throw fail('Five comma-separated fields are required for each device');
      yield device(fields);
      fields = [''];
    } else append(c);
  }
  if (fields.length > 1 || fields[0] !== '')
    throw fail('Incomplete entry: five comma-separated fields are required for each device');
}

function device([name, uuid, minor, flags, table]: string[]): ConciseDevice {
  if (flags !== '' && flags !== 'ro' && flags !== 'rw')
    throw new CommandFailure(`Invalid flags parameter '${flags}' must be 'ro' or 'rw' or empty.`);
  return { name, uuid, minor, readOnly: flags === 'ro', table };
}

const escaped = (text: string) => text.replace(/[\\,;]/g, '\\$&');

/** One device of `table --concise`. Without a table it has four fields only, which is no valid input: as the real one. */
export function printConcise(name: string, uuid: string, info: DeviceInfo, table: readonly TargetText[]): string {
  const lines = table.map(({ start, length, type, text }) => `,${start} ${sectors(length)} ${type} ${escaped(text)}`);
  return `${escaped(name)},${escaped(uuid)},${info.minor},${info.readOnly ? 'ro' : 'rw'}${lines.join('')}`;
}
