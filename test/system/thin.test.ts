/**
 * A thin pool served by the daemon: real programs write to its devices, the daemon is killed, and everything is there afterwards;
 * thin_check has nothing to say. Needs fio, nbdcopy, qemu-io, mkfs.ext4 and thin-provisioning-tools.
 */
import { randomFillSync } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { World } from './program.ts';

const MIB = 1024 * 1024;

let world: World;
beforeEach(() => void (world = new World()));
afterEach(() => world.close());

const dmsetup = (...args: string[]) => world.ok('dmkit', 'dmsetup', ...args);
const uri = (name: string) => `nbd+unix:///${name}?socket=${world.path('run/nbd.sock')}`;

async function pool(): Promise<void> {
  await world.ok('truncate', '-s', '8M', 'meta');
  await world.ok('truncate', '-s', '128M', 'data');
  await dmsetup('create', 'pool', '--table', `0 262144 thin-pool ${world.path('meta')} ${world.path('data')} 128 0`);
}

async function thin(id: number, mib: number, origin = ''): Promise<void> {
  await dmsetup('message', 'pool', '0', `create_thin ${id}`);
  await dmsetup('create', `t${id}`, '--table', `0 ${mib * 2048} thin /dev/mapper/pool ${id} ${origin}`.trim());
}

/** Everything ends, and the real tool looks at what is left. */
async function check(): Promise<void> {
  await world.ok('dmkit', 'down', '--force');
  await world.ok('thin_check', '-q', 'meta');
  await world.ok('dmkit', 'thin', 'check', 'meta');
}

test('what fio wrote and flushed is there after kill -9, and so are the devices', async () => {
  await pool();
  await thin(1, 64);
  const job = [
    '--thread',
    '--name=job',
    '--ioengine=nbd',
    `--uri=${uri('t1')}`,
    '--size=64M',
    '--rw=randwrite',
    '--bs=4k',
  ];
  const load = [...job, '--iodepth=16', '--number_ios=4000', '--verify=crc32c', '--randseed=7', '--end_fsync=1'];
  await world.ok('fio', ...load, '--do_verify=0');
  const before = await dmsetup('status');
  await world.kill();
  expect(await dmsetup('status')).toBe(before);
  await world.ok('fio', ...load, '--verify_only');
  await check();
});

test('an image as external origin of a thin device, its snapshot, and the snapshot of that', async () => {
  writeFileSync(world.path('golden.img'), Buffer.alloc(32 * MIB));
  await world.ok('mkfs.ext4', '-q', '-F', 'golden.img');
  const golden = readFileSync(world.path('golden.img'));
  await pool();
  await thin(1, 32, world.path('golden.img'));
  const content = randomFillSync(Buffer.alloc(MIB));
  writeFileSync(world.path('content'), content);
  await world.ok('qemu-io', '-f', 'raw', '-c', `write -s ${world.path('content')} 20M 1M`, '-c', 'flush', uri('t1'));
  for (const [made, of] of [
    [2, 1],
    [3, 2],
  ]) {
    await dmsetup('suspend', `t${of}`);
    await dmsetup('message', 'pool', '0', `create_snap ${made} ${of}`);
    await dmsetup('resume', `t${of}`);
    await dmsetup('create', `t${made}`, '--table', `0 65536 thin /dev/mapper/pool ${made} ${world.path('golden.img')}`);
  }
  await world.ok('qemu-io', '-f', 'raw', '-c', 'write -P 1 20M 512k', '-c', 'discard 24M 1M', '-c', 'flush', uri('t1'));
  await world.kill();
  await dmsetup('status');
  const expected = Buffer.from(golden);
  content.copy(expected, 20 * MIB);
  for (const id of [3, 2]) {
    await world.ok('nbdcopy', uri(`t${id}`), `copy${id}`);
    expect(readFileSync(world.path(`copy${id}`)).equals(expected)).toBe(true);
  }
  expected.fill(1, 20 * MIB, 20 * MIB + MIB / 2);
  await world.ok('nbdcopy', uri('t1'), 'copy1');
  expect(readFileSync(world.path('copy1')).equals(expected)).toBe(true);
  expect(readFileSync(world.path('golden.img')).equals(golden)).toBe(true);
  await check();
});
