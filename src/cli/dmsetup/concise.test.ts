import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { DeviceInfo } from '../../api/index.ts';
import { parseConcise, printConcise } from './concise.ts';

const parse = (text: string) =>
  [...parseConcise(text)].map(
    ({ name, uuid, minor, readOnly, table }) => `${name}|${uuid}|${minor}|${readOnly ? 'ro' : 'rw'}|${table}`,
  );

test.each([
  ['', []],
  ['a,,,,0 8 zero', ['a|||rw|0 8 zero']],
  ['a,U,9,ro,0 8 zero,8 8 error;', ['a|U|9|ro|0 8 zero\n8 8 error']],
  ['a,,,,0 8 zero;  b,,,rw,0 8 zero\n', ['a|||rw|0 8 zero', 'b|||rw|0 8 zero']],
  ['a ,  U,  , rw,   0 8 zero;', ['a |U||rw|0 8 zero']],
  ['a\\,b\\;c\\\\,,,,0 8 zero', ['a,b;c\\|||rw|0 8 zero']],
  ['a,,,,;', ['a|||rw|']],
])('%j', (text, expected) => {
  expect(parse(text)).toEqual(expected);
});

test.each([
  ['a,,,', 'Incomplete entry: five', 'Parsed 4 fields: name: a uuid:  minor:  flags:  table: (null)'],
  ['a,,,,', 'Incomplete entry: five', 'Parsed 5 fields: name: a uuid:  minor:  flags:  table: '],
  [';', 'Five comma-separated', 'Parsed 1 fields: name:  uuid: (null) minor: (null) flags: (null) table: (null)'],
  ['a,,,ro,\\', 'Backslash must be followed', 'Parsed 5 fields: name: a uuid:  minor:  flags: ro table: '],
])('%j is refused', (text, problem, parsed) => {
  expect(() => parse(text)).toThrow(problem);
  expect(() => parse(text)).toThrow(parsed);
});

test('devices before a mistake are there', () => {
  const devices = parseConcise('a,,,,0 8 zero;b,,,zz,0 8 zero');
  expect(devices.next().value).toMatchObject({ name: 'a' });
  expect(() => devices.next()).toThrow("Invalid flags parameter 'zz' must be 'ro' or 'rw' or empty.");
});

test('what is printed is read again', () => {
  const word = fc.string({ unit: fc.constantFrom('a', ',', ';', '\\', ' ', '-') });
  fc.assert(
    fc.property(word, word, word, fc.boolean(), (name, uuid, text, readOnly) => {
      const info = { minor: 7, readOnly } as DeviceInfo;
      const printed = printConcise(name, uuid, info, [{ start: 0, length: 8, type: 'error', text }]);
      // Blanks after a field's comma belong to nobody.
      const [device] = parseConcise(`${printed};`);
      expect(device).toEqual({
        name,
        uuid: uuid.trimStart(),
        minor: '7',
        readOnly,
        table: `0 8 error ${text}`,
      });
    }),
  );
});
