import { lstatSync, mkdtempSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { call } from '../../../test/support/command-line.ts';
import { DeviceMapper } from '../../api/index.ts';
import { nearest } from './command.ts';
import { COMMANDS } from './commands.ts';
import { fatImage } from './demo-image.ts';
import { LINKS } from './links.ts';
import { parseSize, printSize, printTable } from './sizes.ts';

const MIB = 1024 * 1024;
let directory: string;
let dm: DeviceMapper;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-short-'));
  writeFileSync(join(directory, 'disk.img'), Buffer.alloc(MIB, 'origin. '));
  dm = await DeviceMapper.open();
  await dm.serve({ socket: join(directory, 'nbd.sock') });
});

afterEach(async () => {
  await dm.close();
  rmSync(directory, { recursive: true });
});

const dmkit = (...argv: string[]) => call(argv, { dm, directory });

const printed = (stdout: string) => ({ status: 0, stdout, stderr: '' });

test('a fork from its first to its last day', async () => {
  expect(await dmkit('ls')).toEqual(printed('No devices found\n'));
  expect(await dmkit('fork', 'disk.img', 'dev', '--chunk=4k')).toEqual(
    printed(`dev: fork of DIR/disk.img, 1.0 MiB
  fork    nbd+unix:///dev?socket=DIR/nbd.sock
  origin  nbd+unix:///disk?socket=DIR/nbd.sock
  COW     DIR/dev.cow
`),
  );
  const disk = await dm.device('dev');
  await disk.write(8192, Buffer.from('changed'));
  await disk.flush();
  await disk.close();
  expect((await dmkit('ls')).stdout.replaceAll(/ +/g, ' ')).toBe(`NAME ORIGIN SIZE USED STATE URI
dev DIR/disk.img 1.0 MiB 4.0 KiB active nbd+unix:///dev?socket=DIR/nbd.sock
disk DIR/disk.img 1.0 MiB - active nbd+unix:///disk?socket=DIR/nbd.sock
`);
  expect(await dmkit('uri', 'dev')).toEqual(printed('nbd+unix:///dev?socket=DIR/nbd.sock\n'));
  expect(await dmkit('diff', 'dev')).toEqual(
    printed(`dev differs from DIR/disk.img in 512 B of 1.0 MiB (1 chunks, 4.0 KiB, have exceptions)
  8192..8703  512 bytes
`),
  );
  expect(JSON.parse((await dmkit('diff', 'dev', '--json')).stdout)).toMatchObject({
    ranges: [{ start: 8192, length: 512 }],
  });
  expect((await dmkit('inspect', 'dev.cow')).stdout).toMatch(/a snapshot COW store[\s\S]*exceptions {2}1, 4\.0 KiB/);
  expect(await dmkit('revert', 'dev')).toEqual(printed('dev equals its origin again\n'));
  expect(await dmkit('drop', 'dev', '--keep')).toEqual(
    printed('dev is gone\nkept DIR/dev.cow\nit was the last fork: the origin device disk is gone too\n'),
  );
  expect((await dmkit('fork', 'disk.img', 'dev')).stdout).toContain('from DIR/dev.cow, which was there already');
  expect(JSON.parse((await dmkit('drop', 'dev', '--json')).stdout)).toEqual({
    name: 'dev',
    kept: 'DIR/dev.cow',
    originRemoved: 'disk',
  });
});

describe('a wrong command line ends with status 2', () => {
  test.each<[string[], string]>([
    [['frok'], 'dmkit: there is no command "frok"\ndid you mean: dmkit fork\n'],
    [['xyzzy'], 'dmkit: there is no command "xyzzy"\ndmkit help lists what there is\n'],
    [['constructor'], 'dmkit: there is no command "constructor"\ndmkit help lists what there is\n'],
    [
      ['fork'],
      'dmkit fork: IMAGE is missing\nusage: dmkit fork IMAGE NAME [--chunk SIZE] [--cow FILE] [--size SIZE] [--autoextend PERCENT:BY[:LIMIT]] [--transient] [--raw] [--json]\n',
    ],
    [['fork', 'a', 'b', '--chnk', '4k'], 'dmkit fork: unknown option --chnk\ndid you mean --chunk?\n'],
    [
      ['fork', 'a', 'b', '--chunk'],
      'dmkit fork: option --chunk needs a value: --chunk SIZE\nusage: dmkit fork IMAGE NAME [--chunk SIZE] [--cow FILE] [--size SIZE] [--autoextend PERCENT:BY[:LIMIT]] [--transient] [--raw] [--json]\n',
    ],
    [
      ['fork', 'a', 'b', '--chunk', '4q'],
      'dmkit fork: --chunk is "4q", not a size such as 16k or 1G\nusage: dmkit fork IMAGE NAME [--chunk SIZE] [--cow FILE] [--size SIZE] [--autoextend PERCENT:BY[:LIMIT]] [--transient] [--raw] [--json]\n',
    ],
    [
      ['fork', 'a', 'b', '--size', '1G', '--autoextend', '70'],
      'dmkit fork: --autoextend is "70", not such as 70:20 or 70:20:10G\nusage: dmkit fork IMAGE NAME [--chunk SIZE] [--cow FILE] [--size SIZE] [--autoextend PERCENT:BY[:LIMIT]] [--transient] [--raw] [--json]\n',
    ],
    [
      ['fork', 'a', 'b', '--size', '1G', '--autoextend', '70:20:x'],
      'dmkit fork: the limit of --autoextend is "x", not a size such as 16k or 1G\nusage: dmkit fork IMAGE NAME [--chunk SIZE] [--cow FILE] [--size SIZE] [--autoextend PERCENT:BY[:LIMIT]] [--transient] [--raw] [--json]\n',
    ],
    [
      ['fork', 'a', 'b', '--autoextend', '70:20'],
      'dmkit fork: --autoextend needs --size: what the file begins with\nusage: dmkit fork IMAGE NAME [--chunk SIZE] [--cow FILE] [--size SIZE] [--autoextend PERCENT:BY[:LIMIT]] [--transient] [--raw] [--json]\n',
    ],
    [['ls', '--json=x'], 'dmkit ls: option --json takes no value\nusage: dmkit ls [--all] [--json]\n'],
    [['ls', 'x', 'y'], 'dmkit ls: too many arguments: x y\nusage: dmkit ls [--all] [--json]\n'],
    [['uri', ''], 'dmkit uri: an argument is empty\nusage: dmkit uri NAME\n'],
    [
      ['up', '--nbd-tcp', 'here'],
      'dmkit up: --nbd-tcp is "here", not [HOST:]PORT\nusage: dmkit up [--foreground] [--nbd-tcp [HOST:]PORT] [--tls-certificates DIR] [--json]\n',
    ],
    [
      ['up', '--tls-certificates', '/certificates'],
      'dmkit up: --tls-certificates needs --nbd-tcp\nusage: dmkit up [--foreground] [--nbd-tcp [HOST:]PORT] [--tls-certificates DIR] [--json]\n',
    ],
  ])('%j', async (argv, stderr) => {
    expect(await dmkit(...argv)).toEqual({ status: 2, stdout: '', stderr });
  });

  test('and so does no command at all, with an overview', async () => {
    const { status, stderr } = await dmkit();
    expect(status).toBe(2);
    for (const name of Object.keys(COMMANDS)) expect(stderr).toContain(`\n  ${name} `);
  });
});

test('help for a command is what the command says of itself', async () => {
  const help = await dmkit('fork', '--help');
  expect(help.stdout).toContain('usage: dmkit fork');
  expect(await dmkit('help', 'fork')).toEqual(help);
});

test('a failure tells what to do, and ends with status 1', async () => {
  expect(await dmkit('uri', 'none')).toEqual({
    status: 1,
    stdout: '',
    stderr: 'dmkit: There is no device "none"\nhint: look at: dmkit ls\n',
  });
});

test.each(Object.keys(COMMANDS))('%s --help explains the command and each of its options', async (name) => {
  const { command } = await COMMANDS[name].load();
  expect(command.name).toBe(name);
  const { status, stdout } = await dmkit(...name.split(' '), '--help');
  expect(status).toBe(0);
  expect(stdout).toContain(`\nusage: dmkit ${name}`);
  for (const option of Object.keys(command.options ?? {})) expect(stdout).toMatch(new RegExp(`--${option}\\b.*  \\S`));
});

test('--version prints the version of the package', async () => {
  expect((await dmkit('--version')).stdout).toMatch(/^dmkit \d+\.\d+\.\d+\n$/);
});

test('links makes a link of each name, twice without harm, and none where another program is', async () => {
  expect(await dmkit('links', '.')).toEqual(printed(LINKS.map((name) => `DIR/${name}\n`).join('')));
  for (const name of LINKS) expect(readlinkSync(join(directory, name))).toMatch(/\/bin\/dmkit$/);
  expect((await dmkit('links', '.')).status).toBe(0);
  rmSync(join(directory, 'dmsetup'));
  rmSync(join(directory, 'dmstats'));
  writeFileSync(join(directory, 'dmstats'), 'the real one');
  expect((await dmkit('links', '.')).stderr).toMatch(/^dmkit: Cannot make the link DIR\/dmstats: it exists and leads/);
  expect(() => lstatSync(join(directory, 'dmsetup'))).toThrow();
});

test('dmsetup is the same mapper', async () => {
  await dmkit('fork', 'disk.img', 'dev');
  expect((await dmkit('dmsetup', 'status', 'dev')).stdout).toBe('0 2048 snapshot 64/2112 64\n');
  expect((await dmkit('devmap_name', '254', '0')).stdout).toBe('dev\n');
});

test.each([
  ['0', 0],
  ['512', 512],
  ['16k', 16384],
  ['16K', 16384],
  ['64KiB', 65536],
  ['1G', 2 ** 30],
  ['2t', 2 ** 41],
])('the size %s is %i bytes', (text, size) => {
  expect(parseSize(text, 'x')).toBe(size);
});

test.each(['', '-1', '1.5k', '0x10', 'k', '1kk', '9999999p', ' 1'])('%j is no size', (text) => {
  expect(() => parseSize(text, 'x')).toThrow();
});

test.each([
  [0, '0 B'],
  [1023, '1023 B'],
  [1024, '1.0 KiB'],
  [1.5 * 2 ** 30, '1.5 GiB'],
  [2 ** 60, '1024.0 PiB'],
])('%i bytes print as %s', (size, text) => {
  expect(printSize(size)).toBe(text);
});

test('a table has columns as wide as their widest word, and no blanks at the ends of its lines', () => {
  expect(
    printTable(
      ['A', 'BB', 'C'],
      [
        ['aaa', '1', ''],
        ['a', '100', 'c'],
      ],
      [1],
    ),
  ).toBe('A     BB  C\naaa    1\na    100  c\n');
});

test.each([
  ['fork', 'fork'],
  ['fokr', 'fork'],
  ['att', 'attach'],
  ['lss', 'ls'],
  ['zzz', undefined],
])('%s is meant as %s', (typed, meant) => {
  expect(nearest(typed, Object.keys(COMMANDS))).toBe(meant);
});

test('the FAT image holds its file: both tables agree, and the chain leads through the content', () => {
  const content = 'line of text\n'.repeat(200);
  const image = fatImage('README  TXT', content);
  expect(image.length).toBe(1_474_560);
  expect(image.readUInt16LE(510)).toBe(0xaa55);
  const fat = image.subarray(512, 512 + 9 * 512);
  expect(fat.equals(image.subarray(512 + 9 * 512, 512 + 18 * 512))).toBe(true);
  const entry = image.subarray(19 * 512, 19 * 512 + 32);
  expect(entry.toString('latin1', 0, 11)).toBe('README  TXT');
  const next = (cluster: number) => {
    const pair = fat.readUInt16LE(Math.floor(cluster * 1.5));
    return cluster % 2 ? pair >> 4 : pair & 0xfff;
  };
  let read = '';
  for (let cluster = entry.readUInt16LE(26); cluster < 0xff8; cluster = next(cluster))
    read += image.toString('latin1', (33 + cluster - 2) * 512, (34 + cluster - 2) * 512);
  expect(read.slice(0, entry.readUInt32LE(28))).toBe(content);
  expect(read.length).toBe(Math.ceil(content.length / 512) * 512);
});
