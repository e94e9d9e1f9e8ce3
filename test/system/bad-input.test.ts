/** What goes wrong in practice: a message that says what, where and what to do, the right exit status, nothing lost. */
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DeviceMapper } from '../../src/api/index.ts';
import { isRunning, World } from './program.ts';

const MIB = 1024 * 1024;
let world: World;
let before: string;

beforeEach(() => {
  world = new World();
  writeFileSync(world.path('disk.img'), Buffer.alloc(4 * MIB, 'origin. '));
  before = digest('disk.img');
});

afterEach(() => world.close());

const digest = (name: string) =>
  createHash('sha256')
    .update(readFileSync(world.path(name)))
    .digest('hex');
const mapper = () => DeviceMapper.connect({ run: world.run, state: world.state });

/** The command fails with this status and text, and the image and the listing stay as they were. */
async function refused(status: number, text: RegExp | string, ...argv: string[]) {
  const listed = await world.ok('dmkit', 'dmsetup', 'info', '-c', '--noheadings', '-o', 'name');
  const files = readdirSync(world.directory);
  const result = await world.dmkit(...argv);
  expect(result.stderr).toMatch(text);
  expect(result.stderr).not.toMatch(/^\s+at /m);
  expect(result).toMatchObject({ status, stdout: '' });
  expect(await world.ok('dmkit', 'dmsetup', 'info', '-c', '--noheadings', '-o', 'name')).toBe(listed);
  expect(readdirSync(world.directory).filter((name) => name !== 'run' && name !== 'state')).toEqual(
    files.filter((name) => name !== 'run' && name !== 'state'),
  );
  expect(digest('disk.img')).toBe(before);
}

describe('dmsetup', () => {
  test.each<[string, string, RegExp]>([
    ['a wrong argument', '0 8 linear disk.img x', /reload ioctl on a \(\d+:0\) failed: Invalid argument/],
    ['a missing file', '0 8 linear nope.img 0', /reload ioctl on a \(\d+:0\) failed: No such device/],
    ['an unknown target', '0 8 linaer disk.img 0', /reload ioctl on a \(\d+:0\) failed: Invalid argument/],
    ['a length beyond the disk', '0 8193 linear disk.img 0', /reload ioctl on a \(\d+:0\) failed: Invalid argument/],
    [
      'a chunk size that is no power of two',
      '0 8192 snapshot disk.img cow P 24',
      /reload ioctl on a \(\d+:0\) failed: Invalid argument/,
    ],
    [
      'an origin for a COW store',
      '0 8192 snapshot disk.img disk.img P 16',
      /reload ioctl on a \(\d+:0\) failed: Invalid argument/,
    ],
  ])('a table with %s creates nothing and says why', async (_what, table, text) => {
    writeFileSync(world.path('cow'), Buffer.alloc(MIB));
    await refused(1, text, 'dmsetup', 'create', 'a', '--table', table);
    await refused(1, /\nCommand failed\.\n$/, 'dmsetup', 'create', 'a', '--table', table);
  });

  test('a COW store with another magic is refused and not overwritten', async () => {
    writeFileSync(world.path('cow'), Buffer.alloc(MIB, 'XFSB'));
    const cow = digest('cow');
    await refused(1, /0x42534658/, 'dmsetup', 'create', 'a', '--table', '0 8192 snapshot disk.img cow P 16');
    expect(digest('cow')).toBe(cow);
  });
});

describe('fork', () => {
  test.each<[string, string[], number, RegExp]>([
    ['a missing image', ['nope.img', 'dev'], 1, /Cannot open .*nope\.img: .*\nhint: /],
    [
      'a chunk size that is no power of two',
      ['disk.img', 'dev', '--chunk', '24k'],
      1,
      /24576 bytes\nhint: a power of two/,
    ],
    [
      'a chunk size that is no size',
      ['disk.img', 'dev', '--chunk', 'big'],
      2,
      /--chunk is "big", not a size such as 16k/,
    ],
    ['a name that no file system takes', ['disk.img', '../dev'], 1, /Cannot name a device "\.\.\/dev"\nhint: letters/],
    ['a directory', ['.', 'dev'], 1, /Cannot/],
  ])('of %s is refused', async (_what, args, status, text) => {
    await refused(status, text, 'fork', ...args);
  });

  test('of an image that ends within a sector is refused with the command that helps', async () => {
    truncateSync(world.path('disk.img'), 1000);
    before = digest('disk.img');
    await refused(
      1,
      /1000 bytes are no multiple of 512\nhint: .*truncate -s 1024 .*disk\.img/,
      'fork',
      'disk.img',
      'dev',
    );
  });

  test('of qcow2 is refused, and each of the two ways that the hint shows works', async () => {
    await world.ok('qemu-img', 'convert', '-O', 'qcow2', 'disk.img', 'disk.qcow2');
    const { status, stderr } = await world.dmkit('fork', 'disk.qcow2', 'dev');
    expect(status).toBe(1);
    const convert = /qemu-img (convert \S.*)/.exec(stderr)![1].split(' ');
    await world.ok('qemu-img', ...convert);
    await world.ok('dmkit', 'fork', 'disk.raw', 'dev');
    expect(digest('disk.raw')).toBe(before);

    await world.ok(
      'qemu-nbd',
      '--format=qcow2',
      '--persistent',
      '--fork',
      `--pid-file=${world.path('pid')}`,
      `--socket=${world.path('q.sock')}`,
      'disk.qcow2',
    );
    try {
      await world.ok('dmkit', 'fork', `nbd+unix:///?socket=${world.path('q.sock')}`, 'served');
      const disk = await (await mapper()).device('served');
      expect((await disk.read(0, 8)).toString()).toBe('origin. ');
      await disk.write(0, Buffer.from('mine'));
      await disk.close();
      await world.ok('dmkit', 'drop', 'served');
    } finally {
      const pid = Number(readFileSync(world.path('pid'), 'utf8'));
      process.kill(pid);
      // It has the file locked until it is gone.
      while (isRunning(pid)) await turn();
    }
    expect(await world.ok('qemu-img', 'compare', 'disk.img', 'disk.qcow2')).toContain('identical');
  });

  test('with a name in use, or over a file in use, is refused', async () => {
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    await refused(1, /name "dev": another mapped device has it\nhint: /, 'fork', 'disk.img', 'dev');
    await refused(1, /dev\.cow: the device dev uses it\nhint: /, 'fork', 'disk.img', 'two', '--cow', 'dev.cow');
  });

  test('of an image that another program has locked says which', async () => {
    const { child, ended } = await world.foreground();
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    const other = new World();
    const { status, stderr } = await other.dmkit('fork', world.path('disk.img'), 'dev', '--cow', other.path('x.cow'));
    expect(status).toBe(1);
    expect(stderr).toMatch(
      new RegExp(`Cannot open .*disk\\.img to read: dmkit \\(pid ${child.pid}\\) has it open\\nhint: `),
    );
    expect(existsSync(other.path('x.cow'))).toBe(false);
    await other.close();
    child.kill();
    await ended;
  });
});

describe('a COW store', () => {
  beforeEach(async () => {
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    const disk = await (await mapper()).device('dev');
    await disk.write(4 * MIB - 4096, Buffer.alloc(4096, 'mine'));
    await disk.flush();
    await disk.close();
    await world.ok('dmkit', 'drop', 'dev', '--keep');
  });

  test('of another origin size is refused with what lies where', async () => {
    writeFileSync(world.path('small.img'), Buffer.alloc(MIB));
    const cow = digest('dev.cow');
    await refused(
      1,
      /belongs to another origin of at least 4194304 bytes, and this one has 1048576: entry 0 of area 0 maps chunk 255/,
      'fork',
      'small.img',
      'dev',
      '--cow',
      'dev.cow',
    );
    expect(digest('dev.cow')).toBe(cow);
  });

  test('that is corrupt is refused, and inspect says what is wrong', async () => {
    const bytes = readFileSync(world.path('dev.cow'));
    // Entry 0 of area 0 leads into the header.. of area 1: a chunk of metadata.
    bytes.writeUInt32LE(1, 16384 + 8);
    writeFileSync(world.path('dev.cow'), bytes);
    await refused(
      1,
      /entry 0 of area 0 maps chunk 255 to 1, which is the header or an area\nhint: look at it: dmkit inspect/,
      'fork',
      'disk.img',
      'dev',
    );
    const { status, stdout } = await world.dmkit('inspect', 'dev.cow');
    expect(status).toBe(1);
    expect(stdout).toContain('PROBLEM     entry 0 of area 0 maps chunk 255 to 1');
  });

  test('that was invalidated is refused', async () => {
    const bytes = readFileSync(world.path('dev.cow'));
    bytes.writeUInt32LE(0, 4);
    writeFileSync(world.path('dev.cow'), bytes);
    await refused(1, /was invalidated: it missed copies and cannot be recovered/, 'fork', 'disk.img', 'dev');
  });
});

test('a full disk under the COW file costs the fork, never the origin, and both say so', async () => {
  mkdirSync(world.path('small'));
  await world.ok('mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', world.path('small'));
  try {
    await world.ok('dmkit', 'fork', 'disk.img', 'dev', '--cow', 'small/cow');
    const dm = await mapper();
    const origin = await dm.device('disk');
    for (let at = 0; at < 4 * MIB; at += 16384) await origin.write(at, Buffer.alloc(16384, 'new'));
    await origin.flush();
    expect((await origin.read(0, 3)).toString()).toBe('new');
    await origin.close();
    expect(await world.ok('dmkit', 'ls')).toMatch(/^dev .* Invalid/m);
    expect(await world.ok('dmkit', 'dmsetup', 'status', 'dev')).toBe('0 8192 snapshot Invalid\n');
    const fork = await dm.device('dev');
    await expect(fork.read(0, 512)).rejects.toMatchObject({ errno: 'EIO' });
    await fork.close();
    await world.ok('dmkit', 'drop', 'dev');
    expect(
      readFileSync(world.path('disk.img')).equals(Buffer.concat(Array(256).fill(Buffer.alloc(16384, 'new')))),
    ).toBe(true);
  } finally {
    await world.dmkit('down');
    await world.ok('umount', world.path('small'));
  }
});

test('a disk too full for the header of the COW store refuses the fork and leaves nothing', async () => {
  mkdirSync(world.path('small'));
  await world.ok('mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', world.path('small'));
  try {
    writeFileSync(world.path('small/fill'), Buffer.alloc(60 * 1024));
    const { status, stderr } = await world.dmkit('fork', 'disk.img', 'dev', '--cow', 'small/cow');
    expect(status).toBe(1);
    expect(stderr).toMatch(/the filesystem is full\nhint: make room/);
    expect(readdirSync(world.path('small'))).toEqual(['fill']);
    expect(await world.ok('dmkit', 'ls')).toBe('No devices found\n');
  } finally {
    await world.dmkit('down');
    await world.ok('umount', world.path('small'));
  }
});

test('an NBD client that lies loses its connection, and the others go on', async () => {
  await world.ok('dmkit', 'fork', 'disk.img', 'dev');
  const disk = await (await mapper()).device('dev');
  for (const lie of ['GET / HTTP/1.1\r\n\r\n', '\0'.repeat(100_000), 'IHAVEOPT\0\0\0\x07\xff\xff\xff\xff']) {
    await new Promise<void>((closed) => {
      const socket = connect(world.path('run/nbd.sock'), () => socket.write(Buffer.from(`\0\0\0\x03${lie}`, 'latin1')));
      socket.on('error', () => {});
      socket.on('close', () => closed());
      socket.resume();
    });
  }
  expect((await disk.read(0, 8)).toString()).toBe('origin. ');
  await disk.close();
});
