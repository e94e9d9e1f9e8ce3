import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { call } from '../../../test/support/command-line.ts';
import { DeviceMapper } from '../../api/index.ts';

let directory: string;
let dm: DeviceMapper;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-pool-'));
  dm = await DeviceMapper.open();
});

afterEach(async () => {
  await dm.close();
  rmSync(directory, { recursive: true });
});

const dmkit = (...argv: string[]) => call(argv, { dm, directory });

const printed = (stdout: string) => ({ status: 0, stdout, stderr: '' });
const refused = (status: number, stderr: string | RegExp) => ({
  status,
  stdout: '',
  stderr: typeof stderr === 'string' ? stderr : expect.stringMatching(stderr),
});

async function pool(...options: string[]) {
  await dmkit('pool', 'create', 'pool.img', '--size', '1m', ...options);
  await dmkit('pool', 'volume', 'pool/base', '--size', '1g');
}

async function write(name: string, length: number, text = 'mine') {
  const disk = await dm.device(name);
  await disk.write(0, Buffer.alloc(length, text));
  await disk.flush();
  await disk.close();
}

test('a pool is made, filled with volumes, and told', async () => {
  expect(await dmkit('pool', 'create', 'pool.img', '--size=1m')).toEqual(
    printed('pool: pool of 1.0 MiB in blocks of 64.0 KiB, in DIR/pool.img\n'),
  );
  expect(await dmkit('pool', 'volume', 'pool/base', '--size', '1g')).toEqual(
    printed('base: volume, 1.0 GiB, in the pool pool\n'),
  );
  expect(await dmkit('fork', 'pool/base', 'dev')).toEqual(
    printed('dev: fork of pool/base, 1.0 GiB, in the pool pool\n'),
  );
  expect(await dmkit('fork', 'dev', 'pool/deep')).toEqual(
    printed('deep: fork of pool/dev, 1.0 GiB, in the pool pool\n'),
  );
  expect(await dmkit('fork', '/dev/mapper/dev', 'other')).toMatchObject({ status: 0 });
});

test('a word that is a file and a volume is asked about', async () => {
  await pool();
  writeFileSync(join(directory, 'base'), Buffer.alloc(65536));
  expect(await dmkit('fork', 'base', 'dev')).toEqual(
    refused(
      1,
      'dmkit: Cannot fork base: it is a file, and a volume of pool\nhint: for the file: ./base; for the volume: /dev/mapper/base\n',
    ),
  );
  expect((await dmkit('fork', './base', 'file')).stdout).toMatch(/^file: fork of DIR\/base, 64\.0 KiB\n/);
  expect((await dmkit('fork', '/dev/mapper/base', 'dev')).stdout).toMatch(/^dev: fork of pool\/base, 1\.0 GiB/);
});

test('an image that volumes share is named in the list', async () => {
  await pool();
  writeFileSync(join(directory, 'golden.img'), Buffer.alloc(65536, 'gold'));
  expect(await dmkit('fork', 'golden.img', 'pool/vm1')).toEqual(
    printed('vm1: fork of DIR/golden.img, 64.0 KiB, in the pool pool\n'),
  );
  expect(await dmkit('pool', 'volume', 'pool/vm2', '--image', 'golden.img', '--size', '2m', '--json')).toMatchObject({
    stdout: expect.stringContaining('"origin": "DIR/golden.img"'),
  });
  await write('vm1', 4096);
  const { stdout } = await dmkit('ls');
  expect(stdout.split('\n').map((line) => line.split(/ {2,}/))).toEqual([
    ['NAME', 'ORIGIN', 'SIZE', 'USED', 'STATE', 'URI'],
    ['pool/base', '-', '1.0 GiB', '0 B', 'active', '-'],
    ['pool', '-', '1.0 MiB', '64.0 KiB', 'active', '-'],
    ['pool/vm1', 'DIR/golden.img', '64.0 KiB', '64.0 KiB', 'active', '-'],
    ['pool/vm2', 'DIR/golden.img', '2.0 MiB', '0 B', 'active', '-'],
    [''],
  ]);
  expect((await dmkit('ls', '--all')).stdout).toContain('pool_tmeta');
  expect(await dmkit('diff', 'pool/vm1')).toEqual(
    printed(
      "vm1 differs from DIR/golden.img in 4.0 KiB of 64.0 KiB (1 blocks, 64.0 KiB, are its own or the other's)\n  0..4095  4096 bytes\n",
    ),
  );
});

test('a pool that is nearly full says so wherever it is used, and can be extended', async () => {
  await pool();
  await write('base', 14 * 65536);
  const warning = 'pool is 87% full: dmkit pool extend pool --size …';
  expect((await dmkit('ls')).stdout).toContain(`pool: ${warning}\n`);
  expect(await dmkit('fork', 'base', 'dev')).toMatchObject({ status: 0, stderr: `dmkit: ${warning}\n` });
  expect(await dmkit('pool', 'extend', 'pool', '--size', '2m')).toEqual(
    printed('pool: pool of 2.0 MiB in blocks of 64.0 KiB, in DIR/pool.img\n'),
  );
  expect((await dmkit('ls')).stdout).not.toContain('full');
});

test('what is kept is opened again as it says', async () => {
  await pool('--metadata', 'pool.meta');
  await write('base', 65536);
  expect(await dmkit('drop', 'pool/base', '--keep')).toEqual(
    printed('base is gone\nkept thin device 1 of pool: dmkit pool volume pool/VOLUME --id 1 --size 1073741824\n'),
  );
  expect(await dmkit('drop', '--keep', 'pool')).toEqual(
    printed('pool is gone\nkept DIR/pool.img\nkept DIR/pool.meta\n'),
  );
  expect(await dmkit('pool', 'open', 'pool.img', '--metadata', 'pool.meta', '--name', 'p')).toEqual(
    printed(
      'p: pool of 1.0 MiB in blocks of 64.0 KiB, in DIR/pool.img, metadata in DIR/pool.meta\n  thin device 1, 64.0 KiB: dmkit pool volume p/VOLUME --id 1 --size SIZE\n',
    ),
  );
  expect((await dmkit('pool', 'volume', 'p/back', '--id', '1', '--size', '1073741824')).status).toBe(0);
  const disk = await dm.device('back');
  expect((await disk.read(0, 4)).toString()).toBe('mine');
  await disk.close();
});

test.each([
  ['pool', '--help'],
  ['help', 'pool'],
  ['pool', '-h'],
])('%s %s lists the commands on pools', async (...argv) => {
  expect(await dmkit(...argv)).toEqual({
    status: 0,
    stdout: expect.stringMatching(/^( {2}pool .*\n){4}$/),
    stderr: '',
  });
});

test('a pool goes with its files when it is empty', async () => {
  await pool();
  expect(await dmkit('drop', 'pool')).toEqual(
    refused(1, 'dmkit: Cannot drop the pool pool: it has the volumes base\nhint: first: dmkit drop base\n'),
  );
  expect(await dmkit('drop', 'base')).toEqual(printed('base is gone\n'));
  expect(await dmkit('drop', 'pool')).toEqual(printed('pool is gone\ndeleted DIR/pool.img\n'));
});

test.each<[string[], number, string | RegExp]>([
  [['pool'], 2, /^ {2}pool create .*\n {2}pool open .*\n {2}pool extend .*\n {2}pool volume .*\n$/],
  [['pool', 'make'], 2, /^dmkit: there is no command "pool make"\n {2}pool create /],
  [['pool', 'ls'], 2, /^dmkit: there is no command "pool ls"\ndid you mean: dmkit ls\n$/],
  [['pool', 'drop', 'pool'], 2, /\ndid you mean: dmkit drop\n$/],
  [['pool', 'create', 'x'], 1, /hint: say how much .*--size 100G\n$/],
  [['pool', 'create', 'x', '--size', 'much'], 2, /^dmkit pool create: --size is "much"/],
  [['pool', 'create', 'x', '--size', '1m', '--autoextend', '80'], 2, /^dmkit pool create: --autoextend is "80"/],
  [['pool', 'volume', 'dev', '--size', '1m'], 2, /^dmkit pool volume: "dev" is not POOL\/VOLUME\n/],
  [['pool', 'volume', 'pool/dev'], 2, /^dmkit pool volume: --size is missing\n/],
  [['pool', 'volume', 'pool/dev', '--id', '1', '--image', 'x'], 2, /exclude each other\n/],
  [['pool', 'extend', 'pool'], 2, /^dmkit pool extend: --size is missing\n/],
  [['pool', 'extend', 'base', '--size', '1m'], 1, /^dmkit: Cannot extend base: base is no pool\n/],
  [['fork', 'pool/none', 'dev'], 1, /^dmkit: There is no volume "pool\/none"\nhint: look at: dmkit ls\n$/],
  [['fork', 'other/none', 'dev'], 1, /^dmkit: Cannot open DIR\/other\/none: no such file/],
  [['fork', 'base', 'other/dev'], 2, /^dmkit fork: base is in the pool pool, and so is its fork\n/],
  [['fork', 'base', 'dev', '--cow', 'x'], 2, /^dmkit fork: --cow is for forks with a COW file\n/],
  [['diff', 'pool/none'], 1, /^dmkit: There is no volume "pool\/none"\nhint: look at: dmkit ls\n/],
  [['drop', 'other/base'], 1, /^dmkit: There is no volume "other\/base"\n/],
  [['uri', 'pool/none'], 1, /^dmkit: There is no device "pool\/none"\n/],
])('%j is refused', async (argv, status, stderr) => {
  await pool();
  expect(await dmkit(...argv)).toEqual(refused(status, stderr));
});
