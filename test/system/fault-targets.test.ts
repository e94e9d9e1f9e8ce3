/** The targets that fail on purpose, under real NBD clients. */
import { copyFileSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { World } from './program.ts';

const MIB = 2 ** 20;
const SIZE = 32 * MIB;

let world: World;
beforeEach(() => {
  world = new World();
  writeFileSync(world.path('disk.img'), Buffer.alloc(SIZE, 'before. '));
  copyFileSync(world.path('disk.img'), world.path('copy.img'));
  writeFileSync(world.path('disk.log'), '');
});
afterEach(() => world.close());

const dmsetup = (...argv: string[]) => world.ok('dmkit', 'dmsetup', ...argv);

test('64 clients write at once; replaying the log leads to the same disk, at a mark too', async () => {
  truncateSync(world.path('disk.log'), 512 * MIB);
  await dmsetup('create', 'lw', '--table', `0 ${SIZE / 512} log-writes disk.img disk.log`);
  const uri = (await world.ok('dmkit', 'uri', 'lw')).trim();
  const load = (seed: number) =>
    world.ok(
      'fio',
      ...[
        '--name=load',
        '--ioengine=nbd',
        `--uri=${uri}`,
        '--thread',
        '--numjobs=64',
        // Two writes to one place at once have no order, neither on the disk nor in the log.
        `--size=${SIZE / 64}`,
        `--offset_increment=${SIZE / 64}`,
        '--serialize_overlap=1',
        '--io_size=512k',
      ],
      ...[
        '--rw=randwrite',
        '--bsrange=512-16k',
        '--blockalign=512',
        '--iodepth=4',
        '--fsync=16',
        '--end_fsync=1',
        `--randseed=${seed}`,
      ],
    );
  await load(1);
  // A job of fio whose last sync was asked for while writes were under way does not sync again at its end.
  await world.ok('qemu-io', '-f', 'raw', uri, '-c', 'flush');
  await dmsetup('message', 'lw', '0', 'mark', 'half-way');
  copyFileSync(world.path('disk.img'), world.path('half.img'));
  await world.ok('qemu-io', '-f', 'raw', uri, '-c', 'discard 1M 1M', '-c', 'write -z 4M 3M', '-c', 'write -zu 9M 100k');
  await load(2);
  expect(await dmsetup('status', 'lw')).toMatch(/^0 \d+ log-writes \d{4,} \d+\n$/);
  await dmsetup('remove', 'lw');

  await world.ok('dmkit', 'replay-log', 'disk.log', 'copy.img', '--to', 'half-way');
  const equal = (a: string, b: string) => readFileSync(world.path(a)).equals(readFileSync(world.path(b)));
  expect(equal('copy.img', 'half.img')).toBe(true);
  const list = (await world.ok('dmkit', 'replay-log', 'disk.log')).split('\n');
  const mark = list.findIndex((line) => line.endsWith('half-way')) - 1;
  expect(list.at(-2)).toMatch(/mark {5}dm-log-writes-end$/);
  await world.ok('dmkit', 'replay-log', 'disk.log', 'copy.img', '--start', `${mark + 1}`);
  expect(equal('copy.img', 'disk.img')).toBe(true);
  expect(equal('copy.img', 'half.img')).toBe(false);
});

test('a full log costs no write', async () => {
  truncateSync(world.path('disk.log'), MIB);
  await dmsetup('create', 'lw', '--table', `0 ${SIZE / 512} log-writes disk.img disk.log`);
  const uri = (await world.ok('dmkit', 'uri', 'lw')).trim();
  await world.ok('qemu-io', '-f', 'raw', uri, '-c', 'write -P 1 0 4M', '-c', 'read -P 1 0 4M');
  expect(await dmsetup('status', 'lw')).toMatch(/ logging_disabled\n$/);
  await dmsetup('remove', 'lw');
});

test('the plug is pulled under a client by a flakey table, and put back', async () => {
  const table = (rest: string) => `0 ${SIZE / 512} flakey disk.img 0 ${rest}`;
  await dmsetup('create', 'fl', '--table', table('1000 0'));
  const uri = (await world.ok('dmkit', 'uri', 'fl')).trim();
  const swap = async (rest: string) => {
    await dmsetup('suspend', '--nolockfs', 'fl');
    await dmsetup('load', 'fl', '--table', table(rest));
    await dmsetup('resume', 'fl');
  };
  const qemuIo = (...commands: string[]) =>
    world.exec('qemu-io', ['-f', 'raw', uri, ...commands.flatMap((command) => ['-c', command])]);
  await qemuIo('write -P 1 0 4k', 'flush');
  await swap('0 1000 1 drop_writes');
  expect((await qemuIo('write -P 2 0 4k', 'flush', 'read -P 1 0 4k')).status).toBe(0);
  await swap('0 1000');
  expect((await qemuIo('read 0 4k')).stdout).toContain('read failed: Input/output error');
  await swap('1000 0');
  expect((await qemuIo('read -P 1 0 4k')).status).toBe(0);
  await dmsetup('remove', 'fl');
});

test('a suspend does not wait for a delay, and its client sees no error', async () => {
  await dmsetup('create', 'dl', '--table', `0 ${SIZE / 512} delay disk.img 0 0 disk.img 0 1000000 disk.img 0 0`);
  const uri = (await world.ok('dmkit', 'uri', 'dl')).trim();
  const writing = world.exec('qemu-io', ['-t', 'unsafe', '-f', 'raw', uri, '-c', 'write -P 1 0 4k']);
  while ((await dmsetup('status', 'dl')) !== `0 ${SIZE / 512} delay 0 1 0\n`);
  await dmsetup('suspend', 'dl');
  expect(await dmsetup('status', 'dl')).toBe(`0 ${SIZE / 512} delay 0 0 0\n`);
  // The client flushes before it ends.
  await dmsetup('resume', 'dl');
  expect(await writing).toMatchObject({ status: 0 });
  await dmsetup('remove', 'dl');
});
