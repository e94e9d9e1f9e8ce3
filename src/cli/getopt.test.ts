import { expect, test } from 'vitest';
import { getopt } from './getopt.ts';

const table = {
  long: [
    { name: 'columns' },
    { name: 'count', value: 'required' },
    { name: 'concise' },
    { name: 'verbose', value: 'optional' },
    { name: 'color', key: 'colour' },
    { name: 'colour', key: 'colour' },
  ],
  short: { c: { key: 'columns' }, f: { key: 'force' }, o: { key: 'options', value: true } },
} as const;
const parse = (line: string) => {
  const { options, operands } = getopt('prog', line === '' ? [] : line.split(' '), table);
  return `${options.map(({ key, value }) => `${key}[${value}]`).join(' ')} | ${operands.join(' ')}`;
};

test.each([
  ['', ' | '],
  ['a b', ' | a b'],
  ['a -c b', 'columns[] | a b'],
  ['-fc a', 'force[] columns[] | a'],
  ['-foname a', 'force[] options[name] | a'],
  ['-fo name a', 'force[] options[name] | a'],
  ['-o -c a', 'options[-c] | a'],
  ['--count 3 a', 'count[3] | a'],
  ['--count=3 a', 'count[3] | a'],
  ['--count= a', 'count[] | a'],
  ['--cou 3', 'count[3] | '],
  ['--colo', 'colour[] | '],
  ['--verbose a', 'verbose[] | a'],
  ['--verbose=x a', 'verbose[x] | a'],
  ['-c -- -f --count', 'columns[] | -f --count'],
  ['- a', ' | - a'],
])('%j', (line, expected) => {
  expect(parse(line)).toBe(expected);
});

test.each([
  ['-x', "prog: invalid option -- 'x'"],
  ['-fx', "prog: invalid option -- 'x'"],
  ['-o', "prog: option requires an argument -- 'o'"],
  ['--count', "prog: option '--count' requires an argument"],
  ['--columns=3', "prog: option '--columns' doesn't allow an argument"],
  ['--nosuch', "prog: unrecognized option '--nosuch'"],
  ['--co', "prog: option '--co' is ambiguous; possibilities: '--columns' '--count' '--concise' '--color' '--colour'"],
])('%j is refused', (line, message) => {
  expect(() => parse(line)).toThrow(message);
});
