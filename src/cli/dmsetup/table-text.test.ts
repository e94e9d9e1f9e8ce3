import { expect, test } from 'vitest';
import { parseTable } from './table-text.ts';

const print = (text: string) =>
  parseTable(text, '').map(({ start, length, type, args }) => `${start}|${length}|${type}|${args}`);

test.each([
  ['0 8 zero', ['0|8|zero|']],
  ['\t0  8\tlinear  1:0   4 \r', ['0|8|linear|1:0   4']],
  ['0 8 zero\n\n  # c\n#d\n8 8 error x', ['0|8|zero|', '8|8|error|x']],
  ['0 8 linear 1:0 0 # foo', ['0|8|linear|1:0 0']],
  ['0 8 linear 1:0 0 extra#x', ['0|8|linear|1:0 0 extra']],
  ['0 8 linear /a\\ b 0', ['0|8|linear|/a\\ b 0']],
  ['+0 +8 zero', ['0|8|zero|']],
  ['-0 8 zero', ['0|8|zero|']],
  ['0 -8 zero', ['0|18446744073709552000|zero|']],
  ['99999999999999999999999 8 zero', ['18446744073709552000|8|zero|']],
  ['0 9007199254740992 zero', ['0|9007199254740992|zero|']],
  ['0 0x10 zero', ['0|0|x10|zero']],
  ['0 8zero', ['0|8|zero|']],
  ['0 8 zero\\n8 8 zero', ['0|8|zero\\n8|8 zero']],
  ['', []],
])('%j', (text, expected) => {
  expect(print(text)).toEqual(expected);
});

test.each([
  ['0 8', 1],
  ['0 8 zero\n8 8', 2],
  ['# c\n\nfoo', 3],
  ['12 zero', 1],
  ['0 88', 1],
  ['a b c', 1],
  ['1.5 8 zero', 1],
])('%j has no format on line %i', (text, line) => {
  expect(() => parseTable(text, 'F')).toThrow(`Invalid format on line ${line} of table F.`);
});

test('the name of a target type has 15 bytes at most', () => {
  expect(print('0 8 abcdefghijklmno')).toHaveLength(1);
  expect(() => parseTable('0 8 abcdefghijklmnop', '')).toThrow('Target type name abcdefghijklmnop is too long.');
});
