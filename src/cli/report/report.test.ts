import { expect, test } from 'vitest';
import { type FieldGroup, fieldHelp, parseColumns } from './field.ts';
import { toRegExp } from './regex.ts';
import { parseReportColumns, parseSortKeys, Report, type ReportOptions } from './report.ts';
import { parseSelection } from './select.ts';

interface Row {
  name: string;
  size: number;
}
const groups: FieldGroup<Row>[] = [
  {
    title: 'Thing',
    prefix: 'thing',
    fields: [
      { id: 'the_name', heading: 'Name', width: 6, type: 'string', description: 'Name.', value: ({ name }) => name },
      { id: 'size', heading: 'Size', width: 3, type: 'number', description: 'Size.', value: ({ size }) => size },
    ],
  },
];
const rows: Row[] = [
  { name: 'b', size: 10 },
  { name: 'longer-name', size: 9 },
  { name: '', size: 10 },
];
const plain: ReportOptions = { headings: true, aligned: true, separator: ' ', quoted: true, columnsAsRows: false };

function report(options: Partial<ReportOptions> & { fields?: string; sort?: string; select?: string }): string {
  let out = '';
  const selection = options.select === undefined ? undefined : parseSelection(options.select, groups, () => {});
  if (selection === 'help') throw new Error('help');
  const made = new Report<Row>(
    parseReportColumns(options.fields, 'the_name,size', groups),
    { ...plain, ...options },
    (text) => {
      out += text;
    },
    parseSortKeys(options.sort ?? '', groups),
    selection,
  );
  for (const row of rows) made.add(row);
  made.output();
  return out;
}

test('columns are as wide as their widest cell, the last one too', () => {
  expect(report({})).toBe('Name        Size\nb             10\nlonger-name    9\n              10\n');
  expect(report({ fields: 'size,the_name' })).toBe(
    'Size Name       \n  10 b          \n   9 longer-name\n  10            \n',
  );
});

test('a separator ends the alignment', () => {
  expect(report({ aligned: false, separator: '::' })).toBe('Name::Size\nb::10\nlonger-name::9\n::10\n');
});

test('cells as shell assignments', () => {
  const options = { aligned: false, headings: false, separator: ' ', prefix: 'X_' };
  expect(report(options).split('\n')[0]).toBe("X_THE_NAME='b' X_SIZE='10'");
  expect(report({ ...options, quoted: false }).split('\n')[0]).toBe('X_THE_NAME=b X_SIZE=10');
});

test('a line for each column', () => {
  expect(report({ columnsAsRows: true, aligned: false })).toBe('Name b longer-name \nSize 10 9 10\n');
});

test('numbers sort as numbers, rows that are equal keep their order', () => {
  const sorted = (sort: string) => report({ sort, headings: false, aligned: false, separator: ':' });
  expect(sorted('size')).toBe('longer-name:9\nb:10\n:10\n');
  expect(sorted('-size,+the_name')).toBe(':10\nb:10\nlonger-name:9\n');
});

test('selected shows every row', () => {
  expect(report({ select: 'size=9', fields: 'selected,size' })).toBe(
    'Selected Size\n       0   10\n       1    9\n       0   10\n',
  );
});

test('nothing selected prints nothing', () => {
  expect(report({ select: 'size>99' })).toBe('');
});

test.each([
  ['the_name=b', 'b'],
  ['the_name!=b', 'longer-name,'],
  ['size>=10&&the_name=""', ''],
  ['size<10||the_name=b', 'b,longer-name'],
  ['size<10#the_name=b', 'b,longer-name'],
  ['the_name=b,size=9', undefined],
  ['the_name=b || the_name=x && size=9', 'b'],
  ['(the_name=b || the_name=x) && size=9', undefined],
  ['!(the_name=b)', 'longer-name,'],
  ['the_name=~^l', 'longer-name'],
  ['the_name!~e', 'b,'],
  ['THENAME=b', 'b'],
])('selection %j', (select, expected) => {
  const out = report({ select, fields: 'the_name', headings: false, aligned: false });
  expect(out === '' ? undefined : out.trimEnd().split('\n').join(',') + (out.endsWith('\n\n') ? ',' : '')).toBe(
    expected === '' ? '' : expected,
  );
});

test.each([
  ['nosuch=1', 'Unrecognised selection field: nosuch'],
  ['size', 'Unrecognised comparison operator'],
  ['size=x', 'Failed to parse numeric value'],
  ['size=~1', 'incompatible comparison type'],
  ['the_name>1', 'Operator can be used only with number'],
  ['(size=1', "right parenthesis expected at ''"],
  ['!size=1', "left parenthesis expected at 'size=1'"],
  ['size=1 x', "Expecting logical operator\nSelection syntax error at 'x'."],
  ['size=1 &&', 'Expecting field name'],
  ['the_name="b', 'Missing end quote.'],
])('selection %j is refused', (select, message) => {
  expect(() => parseSelection(select, groups, () => {})).toThrow(message);
});

test('columns by group, by all, without case and underscores', () => {
  const ids = (list: string) =>
    parseColumns(list, groups).map((column) => (column === 'selected' ? column : column.id));
  expect(ids('thing_all,THENAME,selected')).toEqual(['the_name', 'size', 'the_name', 'selected']);
  expect(ids('all')).toEqual(['the_name', 'size']);
  expect(() => ids('nosuch')).toThrow('nosuch');
});

test('the help lists every field', () => {
  expect(fieldHelp(groups)).toContain('  the_name              - Name.\n');
  expect(fieldHelp(groups, true)).toContain('  size                  - Size. [number]\n');
});

test.each([
  ['a+b?', 'aab', true],
  ['^a|b$', 'xb', true],
  ['a{2}', 'aa', false],
  ['a{2}', 'a{2}', true],
  ['\\.', 'a', false],
  ['\\d', 'd', true],
  ['[a-c]x', 'bx', true],
  ['[^a-c]x', 'bx', false],
  ['a**', 'x', true],
  ['a.c', 'a\nc', true],
])('expression %s on %j: %s', (source, text, expected) => {
  expect(toRegExp(source)!.test(text)).toBe(expected);
});

test.each(['', '(', 'a|', '()', '*', '[a', 'a\\', '(*)'])('%j is no regular expression', (source) => {
  expect(toRegExp(source)).toBe(undefined);
});
