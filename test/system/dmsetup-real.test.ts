/**
 * Our dmsetup beside the real one, in all that needs no device-mapper in the kernel: options, arguments, splitname with
 * the whole of the reports, udev commands. Needs dmsetup (Debian's 1.02.185 or one that prints the same).
 */
import { spawnSync } from 'node:child_process';
import { expect, test } from 'vitest';
import { prng } from '../../src/lib/prng.ts';
import { Rig } from '../unit/dmsetup-support.ts';

const env = { PATH: process.env.PATH, LC_ALL: 'C', DM_DISABLE_UDEV: '1' };

interface Answer {
  status: number | null;
  stdout: string;
  stderr: string;
}

function real(argv: readonly string[], stdin = ''): Answer {
  const { error, status, stdout, stderr } = spawnSync('dmsetup', argv, { encoding: 'utf8', input: stdin, env });
  if (error) throw error;
  return { status, stdout, stderr };
}

/** The texts that explain have our wording. What the command says of the case at hand stands before and after them. */
const withoutHelp = (stderr: string) =>
  stderr
    .replace(/Usage:\n\ndmsetup[\s\S]*?\n\n(?=Mapped Device Name Fields|Command failed\.|$)/, '<usage>\n')
    .replace(/Usage:\n\ndmsetup stats[\s\S]*?$/, '<usage>\n')
    .replace(/Mapped Device Name Fields\n[\s\S]*?Special Fields\n[\s\S]*?\n \n/, '<fields>\n')
    .replace(/Selection operands\n[\s\S]*?(?:List subset end\n \n|grouping\n\n)/, '<selection>\n');

async function same(argv: readonly string[]) {
  const ours = await new Rig().run(argv);
  const theirs = real(argv);
  expect({ argv, ...ours, stderr: withoutHelp(ours.stderr) }).toEqual({
    argv,
    ...theirs,
    stderr: withoutHelp(theirs.stderr),
  });
}

const noArguments = 'help create remove_all ls targets version udevcookies udevcreatecookie'.split(' ');
const counts: string[][] = [
  ...noArguments.map((name) => [name, 'a', 'b', 'c']),
  ...['load', 'reload', 'rename', 'wait', 'splitname'].map((name) => [name, 'a', 'b', 'c']),
  ...['rename', 'udevflags', 'udevcomplete', 'target-version', 'setgeometry', 'splitname'].map((name) => [name]),
  ['message', 'a'],
  ['setgeometry', 'a', '1', '2', '3'],
  ['setgeometry', 'a', '1', '2', '3', '4', '5'],
  ['udevreleasecookie', '1', '2'],
  ['udevflags', '1', '2'],
  [],
  ['frobnicate'],
];

const wrongOptions = [
  ['--nosuchopt', 'ls'],
  ['-z', 'ls'],
  ['-fz', 'ls'],
  ['ls', '--exec'],
  ['ls', '-o'],
  ['ls', '--noheadings=3'],
  ...'acfghimnprstuv'.split('').map((letter) => ['ls', `--${letter}`]),
  ['ls', '--no'],
  ['ls', '--not'],
  ['ls', '--add'],
  ['create', '-m', '77', 'x'],
  ['create', '-j', '77', 'x'],
  ['create', 'x', '--table', 'a', '-n'],
  ['create', 'x', '--addnodeonr', '--addnodeonc'],
  ['info', '--count', '-1'],
  ['info', '--interval', '0'],
  ['create', '--mode', 'zz', 'x'],
  ['create', '-Mzz', 'x'],
  ['ls', '--manglename', 'foo'],
  ['ls', '-o', 'foo'],
  ['deps', '-o', 'devno,foo'],
  ['ls', '--tree', '-o', 'foo'],
  ['ls', '--tree', '-ocompact,foo'],
  ['create', 'x', '-n', '--readahead', '-5'],
  ['ls', '--', '-x'],
  ['ls', '-'],
];

const noMapper = [
  ['create'],
  ['load'],
  ['wait'],
  ['load', 'a', '-n'],
  ['create', '--concise', 'c6,,,'],
  ['create', '--concise', 'c6,,,;'],
  ['create', '--concise', 'c6,,,zz,0 8 zero'],
  ['create', '--concise', 'c6,,,ro,\\'],
  ['create', '--concise', 'a', 'b'],
  ['create', '--concise', '-n'],
  ['create', '--concise', 'x', '-j1', '-m1'],
  ['udevcookies'],
  ['udevflags', '0'],
  ['udevflags', 'abc'],
  ['udevflags', '0xd4d1234'],
  ['udevflags', '0x10000'],
  ['udevflags', '4294901760'],
  ['udevflags', '0x10d4d1234'],
  ['udevreleasecookie'],
  ['udevcomplete', 'abc'],
  ['-h'],
  ['help'],
  ['help', '-c'],
  ['--help', '-c', 'info'],
];

const reports = [
  ['vg--a-lv--b-layer'],
  ['vg-lv', 'LVM', '-c'],
  ['a-b', 'FOO'],
  ['--noheadings', '-o', '+subsystem', 'vg-lv_tdata'],
  ['--nameprefixes', '--noheadings', 'vg-lv'],
  ['--nameprefixes', '--unquoted', 'vg-lv'],
  ['--nameprefixes', '--separator', ';', 'vg-lv'],
  ['--separator', '::', 'vg-lv'],
  ['--rows', 'vg-lv'],
  ['--rows', '--noheadings', 'vg-lv'],
  ['-o', 'bogus', 'vg-lv'],
  ['-o', '+', 'vg-lv'],
  ['-o', '', 'vg-lv'],
  ['-o', 'vg_name,', 'vg-lv'],
  ['-o', 'VGNAME,l_v_name,selected', 'vg-lv'],
  ['-o', 'splitname_all', 'vg-lv'],
  ['-o', 'help', 'vg-lv'],
  ['-O', 'bogus', 'vg-lv'],
  ['-O', '-lv_name,+vg_name', 'vg-lv'],
  ['-O', 'lv_name,', 'vg-lv'],
  ['-o', ',lv_name', 'vg-lv'],
  ['-o', ',', 'vg-lv'],
  ['--count', '1', 'vg-lv'],
].map((argv) => ['splitname', ...argv]);

const selections = [
  'bogus=1',
  'lv_name',
  'lv_name=',
  'lv_name=lv x',
  'lv_name=lv)',
  '(lv_name=lv',
  '!(lv_name=lv)',
  '!(lv_name=x)',
  '!lv_name=lv',
  'lv_name=lv&&',
  'lv_name~lv',
  'lv_name>3',
  'major>=-1',
  'major=abc',
  'lv_name="lv"',
  "lv_name='lv' vg_name=vg",
  'lv_name=lv#vg_name=x',
  'lv_name=lv,vg_name=x',
  'lv_name=x || lv_name=lv && vg_name=vg',
  'lv_name=lv && (vg_name=x || vg_name=vg)',
  '',
  ' ',
  'lv_name!~x',
  'lv_name={lv}',
  'lv_name=[lv]',
  'LV_NAME=lv',
  'lvname=lv',
  'selected=1',
  'help',
  '?',
  'open=~1',
  'open=1k',
  'subsystem=LVM',
  'lv_name =lv',
  'lv_name= lv',
  'lv_name="lv',
  'lv_name=~"^l"',
  'lv_name=~^l|x&&vg_name=vg',
  'lv_name==lv',
  '((lv_name=lv))',
  '!!(lv_name=lv)',
  '! (lv_name=lv)',
  'major=0x1',
  'lv_name=~(l|x)v',
  'lv_name=~[lx]',
  'lv_name=~"[a-l]v"',
  'lv_name=~"[^a-l]v"',
  'lv_name=~"l.$"',
  'lv_name=~"^v"',
  'lv_name=~"l+v*x?"',
  'lv_name=~"l**"',
  'lv_name=~"(^l|x)v"',
  'lv_name=~"l{1}"',
  'lv_name=~"((l))v"',
  'lv_name=~"[]"',
  'lv_name=~"[^]"',
  'lv_name=~"l$v"',
  'lv_name=~""',
  'lv_name=l(v)',
  'lv_name=,',
  'lv_name=lv||',
  'lv_layer=',
  'lv_layer=""',
].map((expression) => ['splitname', 'vg-lv', '-S', expression]);

test.each(counts.map((argv) => [argv.join(' '), argv] as const))('wrong arguments: %s', (_, argv) => same(argv));
test.each(wrongOptions.map((argv) => [argv.join(' '), argv] as const))('wrong options: %s', (_, argv) => same(argv));
test.each(noMapper.map((argv) => [argv.join(' '), argv] as const))('no mapper: %s', (_, argv) => same(argv));
test.each(reports.map((argv) => [argv.join(' '), argv] as const))('report: %s', (_, argv) => same(argv));
test.each(selections.map((argv) => [argv[3], argv] as const))('selection: %s', (_, argv) => same(argv));

test('splits every name as the real one does', async () => {
  const random = prng(20261121);
  for (let round = 0; round < 300; round++) {
    const length = random.below(9);
    const name = Array.from({ length }, () => '--ab_'[random.below(5)]).join('');
    await same(['splitname', '--nameprefixes', '--noheadings', '--', name]);
  }
});

test('judges every selection as the real one does', async () => {
  const random = prng(7);
  const term = (depth: number): string => {
    // The real one loses a negation of nothing but a negation, so a negated group has two terms at least.
    if (depth > 0 && random.below(3) === 0)
      return random.chance(0.5) ? `(${expression(depth - 1, 1)})` : `!(${expression(depth - 1, 2)})`;
    const field = random.pick(['vg_name', 'lv_name', 'lv_layer', 'subsystem']);
    const operator = random.pick(['=', '!=', '=~', '!~', ' = ']);
    const values = ['a', 'b', "'a'", 'LVM', '"^a|b$"', 'x', ...(operator.includes('~') ? [] : ['""'])];
    return `${field}${operator}${random.pick(values)}`;
  };
  const expression = (depth: number, least: number): string =>
    Array.from({ length: least + random.below(3) }, () => term(depth)).reduce(
      (left, right) => `${left}${random.pick(['&&', ',', '||', '#', ' && ', ' || '])}${right}`,
    );
  for (let round = 0; round < 300; round++)
    await same(['splitname', random.pick(['a-b', 'ab-a', 'b-a-x']), '-S', expression(2, 1)]);
});
