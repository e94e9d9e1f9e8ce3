/** What scripts and programs do with dmsetup, one test a habit; samples of output that they parse; who may run what. */
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import { devmapName, dmsetup, dmstats } from '../../src/cli/dmsetup/dmsetup.ts';
import { DmError } from '../../src/errors.ts';
import { Rig } from './dmsetup-support.ts';

let rig: Rig;
beforeEach(() => {
  rig = new Rig();
});

const LINEAR = "'0 1024 linear /dev/ram0 0'";

describe('habits of callers', () => {
  test('1: the first line of both streams together holds the errno', async () => {
    await rig.ok(`create a --table ${LINEAR}`);
    for (const [line, text] of [
      ["create a --table '0 8 zero'", 'Device or resource busy'],
      ["load a --table '0 8 linear /dev/ram0 x'", 'Invalid argument'],
      ["create b --table '0 8 linear /dev/nosuch 0'", 'No such device'],
      ['message a 0 x', 'Invalid argument'],
    ]) {
      const { stdout, stderr } = await rig.dm(line);
      expect(`${stdout}${stderr}`.split('\n')[0].split('failed: ').at(-1)).toBe(text);
    }
  });

  test('2: every field of a report for a program is one word', async () => {
    await rig.ok(`create a --table ${LINEAR}`);
    const options = "--columns --noheadings -o name,blkdevname,attr,major,minor,open,segments,events --separator ' '";
    expect(await rig.ok(`info ${options} a`)).toBe('a dm-0 L--w 254 0 0 1 0\n');
  });

  test('3: status lines split at single blanks have four parts', async () => {
    await rig.ok(`create a --table ${LINEAR}`);
    expect((await rig.ok('status a')).trimEnd().split(' ')).toHaveLength(3);
    expect((await rig.ok('status a')).replace('\n', '').split(' ')).toEqual(['0', '1024', 'linear', '']);
  });

  test('4: every way to load', async () => {
    await rig.ok('create a --notable');
    const directory = mkdtempSync(join(tmpdir(), 'dmkit-'));
    try {
      writeFileSync(join(directory, 'table'), '0 8 linear /dev/ram0 8\n');
      await rig.ok(`load a ${join(directory, 'table')}`);
      await rig.ok('resume a');
      expect(await rig.ok('table a')).toBe('0 8 linear 1:0 8\n');
    } finally {
      rmSync(directory, { recursive: true });
    }
    await rig.ok('load --readonly a', { stdin: '0 8 zero\n' });
    await rig.ok("reload a --table '0 16 zero'");
    expect(await rig.ok('table --inactive a')).toBe('0 16 zero \n');
  });

  test('5: devices by path', async () => {
    await rig.ok(`create a --table ${LINEAR}`);
    expect(await rig.ok('status /dev/mapper/a')).toBe('0 1024 linear \n');
    expect(await rig.ok('table /dev/dm-0')).toBe('0 1024 linear 1:0 0\n');
    const directory = mkdtempSync(join(tmpdir(), 'dmkit-'));
    try {
      symlinkSync('/dev/mapper/a', join(directory, 'link'));
      // The node itself need not exist, so the link may lead nowhere.
      expect(await rig.ok(`table ${join(directory, 'link')}`)).toBe('0 1024 linear 1:0 0\n');
    } finally {
      rmSync(directory, { recursive: true });
    }
    expect(await rig.fails('message /dev/mapper/a 0 hi')).toContain('message ioctl on a  failed');
    await rig.ok('remove /dev/mapper/a');
    expect(await rig.fails('remove /dev/null')).toBe('Device null not found\nCommand failed.\n');
    expect(await rig.fails('remove /dev/mapper/a')).toBe('Device /dev/mapper/a not found\nCommand failed.\n');
  });

  test('6: a message as one word and as several', async () => {
    const sent: string[] = [];
    rig.mapper.message = async (_device, sector, text) => {
      sent.push(`${sector} ${text}`);
      return sent.length === 1 ? 'reply' : '';
    };
    expect(await rig.ok("message pool 0 'create_thin 1'")).toBe('reply\n');
    expect(await rig.ok('message pool 0 create_thin 1')).toBe('');
    expect(sent).toEqual(['0 create_thin 1', '0 create_thin 1']);
  });

  test('7: remove with force and retry, and several at once', async () => {
    for (const name of ['a', 'b', 'c']) await rig.ok(`create ${name} --table ${LINEAR}`);
    await rig.ok('remove --force --retry a');
    await rig.ok('remove b c');
    expect(await rig.ok('ls')).toBe('No devices found\n');
  });

  test('8: the event number out of wait -v', async () => {
    await rig.ok(`create a --table ${LINEAR}`);
    await rig.ok('rename a b');
    expect(/Event number: +(\d+)/.exec(await rig.ok('wait -v b 0'))?.[1]).toBe('1');
  });

  test('9: concise creation with a semicolon after the last', async () => {
    await rig.ok("create --concise 'a,TEST-a,,,0 8 linear /dev/ram0 0;b,TEST-b,,,0 8 linear /dev/ram0 8;'");
    expect(await rig.ok('table')).toBe('a: 0 8 linear 1:0 0\nb: 0 8 linear 1:0 8\n');
  });

  test('10, 14: reports for a shell', async () => {
    await rig.ok('create PREx -n');
    await rig.ok('create other -n');
    const options = `--noheadings -o name,open --separator ';' --nameprefixes --unquoted --sort open,name`;
    expect(await rig.ok(`info -c ${options} -S 'name=~PRE || uuid=~PRE' --mangle none`)).toBe(
      'DM_NAME=PREx;DM_OPEN=0\n',
    );
    expect(await rig.ok('info -c --noheadings -o open PREx')).toBe('0\n');
    expect(await rig.ok('splitname --nameprefixes --noheadings vg-lv')).toBe(
      "DM_VG_NAME='vg':DM_LV_NAME='lv':DM_LV_LAYER=''\n",
    );
  });

  test('11: none selected prints nothing, none there says so', async () => {
    const line = "info -c -o name --noheadings --rows -S 'suspended=Suspended||name=~PRE[^0-9]'";
    expect(await rig.ok(line)).toBe('No devices found\n');
    await rig.ok('create a -n');
    expect(await rig.ok(line)).toBe('');
  });

  test('12: lists to search in', async () => {
    await rig.ok(`create vg-lv --table ${LINEAR}`);
    expect(await rig.ok('targets')).toMatch(/^linear {11}v1\.4\.0$/m);
    expect(await rig.ok('target-version linear')).toBe('linear           v1.4.0\n');
    expect(await rig.ok('deps -o devname vg-lv')).toMatch(/^1 dependencies\t: \(.+\)\n$/);
    expect(await rig.ok("table -S 'name=~^vg-'")).toBe('vg-lv: 0 1024 linear 1:0 0\n');
    expect(await rig.ok('ls --target thin-pool')).toBe('');
  });

  test('13: an error table under a user, and a resume whose failure is ignored', async () => {
    await rig.ok(`create a --table ${LINEAR}`);
    const open = await rig.mapper.open({ name: 'a' });
    await rig.ok('suspend --nolockfs a');
    await rig.ok("load a --table '0 1024 error'");
    await rig.ok('resume a');
    expect(await rig.ok('status a')).toBe('0 1024 error \n');
    expect((await rig.dm('resume nosuch')).status).toBe(1);
    await open.close();
  });

  test('15: a private device directory, no mangling', async () => {
    const env = { DM_DEV_DIR: '/run/private', DM_DEFAULT_NAME_MANGLING_MODE: 'none' };
    await rig.ok("create 'a b' -n", { env });
    expect(await rig.ok('ls', { env })).toBe('a b\t(254:0)\n');
    expect(await rig.ok("info -c --noheadings -o name '/run/private/mapper/a b'", { env })).toBe('a b\n');
    await rig.ok("ls --exec 'true'", { env });
    expect(rig.executed).toEqual([['true', '/run/private/mapper/a b']]);
  });

  test('16: a disk of exabytes', async () => {
    await rig.ok("create huge --table '0 8796093022208 zero'");
    await rig.ok("create over --table '0 8796093022208 snapshot /dev/mapper/huge /dev/ram0 N 512'");
    expect(await rig.ok('table over')).toBe('0 8796093022208 snapshot 254:0 1:0 N 512\n');
  });

  test('18: a name is free the moment its device is removed', async () => {
    for (let i = 0; i < 50; i++) {
      await rig.ok(`create a --table ${LINEAR}`);
      await rig.ok('remove a');
    }
  });
});

describe('the names it is called by', () => {
  const io = () => {
    const out = { stdout: '', stderr: '' };
    return {
      out,
      io: {
        stdout: { write: (text: string) => void (out.stdout += text) },
        stderr: { write: (text: string) => void (out.stderr += text) },
        stdin: async () => '',
        env: {},
        cwd: '/',
        control: async () => rig.mapper,
        existing: async () => rig.mapper,
      },
    };
  };

  test.each([[['254', '0']], [['254:0']]])('devmap_name %j prints the name', async (argv) => {
    await rig.ok("create 'my dev' -n");
    const { out, io: world } = io();
    expect(await devmapName(argv, world)).toBe(0);
    expect(out).toEqual({ stdout: 'my dev\n', stderr: '' });
  });

  test('devmap_name wants numbers', async () => {
    const { out, io: world } = io();
    expect(await devmapName(['x'], world)).toBe(1);
    expect(out.stderr).toMatch(/^Usage:/);
  });

  test('dmstats knows no command', async () => {
    const { out, io: world } = io();
    expect(await dmstats(['list'], world)).toBe(1);
    expect(out.stderr).toMatch(/^Unknown stats command\.\n/);
  });

  test('a mapper that cannot be reached is a failure with a hint', async () => {
    const { out, io: world } = io();
    const control = () =>
      Promise.reject(new DmError('NO_DAEMON', 'ECONNREFUSED', 'Cannot reach the daemon', { hint: 'start it' }));
    expect(await dmsetup(['ls'], { ...world, control })).toBe(1);
    expect(out).toEqual({ stdout: '', stderr: 'Cannot reach the daemon\n  hint: start it\nCommand failed.\n' });
  });
});

test.each(['help', '-h', 'splitname a-b', 'udevcookies', 'frobnicate', 'ls x', 'info -c -o help', 'stats x', 'create'])(
  '%s does not need the mapper',
  async (line) => {
    await rig.dm(line);
    expect(rig.asked).toBe(0);
  },
);

test('a table error tells its reason after the line that dmsetup prints', async () => {
  const { stderr } = await rig.dm("create a --table '0 8 linear /dev/ram0 x'");
  expect(stderr.split('\n')[0]).toBe('device-mapper: reload ioctl on a (254:0) failed: Invalid argument');
  expect(stderr.split('\n')[1]).toMatch(/^ {2}reason: .*Invalid device sector/);
  expect(stderr.endsWith('\nCommand failed.\n')).toBe(true);
});

test('a uuid names the device of a rename', async () => {
  await rig.ok('create a -u U -n');
  await rig.ok('rename -u U b');
  expect(await rig.ok('ls')).toBe('b\t(254:0)\n');
});

test('a path of a logical volume needs no node', async () => {
  await rig.ok(`create vg--x-lv --table ${LINEAR}`);
  expect(await rig.ok('table vg-x/lv')).toBe('0 1024 linear 1:0 0\n');
  expect(await rig.ok('table /dev/vg-x/lv')).toBe('0 1024 linear 1:0 0\n');
});

test('a hidden disk leaves no hole in a compact tree', async () => {
  await rig.ok(`create a --table ${LINEAR}`);
  await rig.ok("create b --table '0 8 linear /dev/mapper/a 0'");
  expect(await rig.ok('ls --tree -o compact,nodevice')).toBe('b---a\n');
});

test('the tree is drawn for the locale and cut at the width of the terminal', async () => {
  await rig.ok(`create a --table ${LINEAR}`);
  await rig.ok("create quitelong --table '0 8 linear /dev/mapper/a 0'");
  expect(await rig.ok('ls --tree', { env: { LC_ALL: 'C.UTF-8' } })).toContain(' └─a (254:0)\n');
  expect(await rig.ok('ls --tree', { columns: 12 })).toContain('quitelong (...\n');
});

test('removing by selection', async () => {
  for (const name of ['x1', 'x2', 'y']) await rig.ok(`create ${name} -n`);
  await rig.ok("remove -S 'name=~^x'");
  expect(await rig.ok('ls')).toBe('y\t(254:2)\n');
});

test('a repeated report waits in between', async () => {
  await rig.ok('create a -n');
  expect(await rig.ok('info -c -o name --noheadings --count 2 --interval 3')).toBe('a\n\na\n');
  expect(rig.slept).toBe(3000);
});

test('a command of ls --exec that cannot be run is told, and does not matter', async () => {
  await rig.ok('create a -n');
  await rig.ok('create b -n');
  expect(await rig.dm('ls --exec nosuch')).toEqual({
    status: 0,
    stdout: '',
    stderr: 'Cannot run nosuch: spawn nosuch ENOENT\n'.repeat(2),
  });
  expect(rig.executed).toHaveLength(2);
});
