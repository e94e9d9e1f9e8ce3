/** Disks that somebody else has claimed, by the program and a real mount. Needs root, loop devices and e2fsprogs. */
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { World } from './program.ts';

let world: World;
let loop: string;

beforeEach(async () => {
  world = new World();
  writeFileSync(world.path('disk'), '');
  truncateSync(world.path('disk'), 64 * 2 ** 20);
  loop = (await world.ok('losetup', '--find', '--show', world.path('disk'))).trim();
  mkdirSync(world.path('mnt'));
});

afterEach(async () => {
  await world.exec('umount', [world.path('mnt')]);
  await world.dmkit('dmsetup', 'remove_all');
  await world.ok('losetup', '--detach', loop);
  await world.close();
});

test('14. a table over a mounted disk fails with EBUSY, and says where it is mounted', async () => {
  await world.ok('mkfs.ext4', '-q', '-F', loop);
  await world.ok('mount', loop, world.path('mnt'));
  const create = ['dmsetup', 'create', 'x', '--table', `0 1024 linear ${loop} 0`];
  const { status, stdout, stderr } = await world.dmkit(...create);
  expect([status, stdout]).toEqual([1, '']);
  const [first, reason] = stderr.split('\n');
  expect(first).toMatch(/^device-mapper: reload ioctl on x \(\d+:0\) failed: Device or resource busy$/);
  expect(reason).toContain(`mounted on ${world.path('mnt')}`);
  expect(await world.ok('dmkit', 'dmsetup', 'ls')).toBe('No devices found\n');
  await world.ok('umount', world.path('mnt'));
  await world.ok('dmkit', ...create);
});

test('14. a disk under a mapped device cannot be mounted', async () => {
  await world.ok('mkfs.ext4', '-q', '-F', loop);
  await world.ok('dmkit', 'dmsetup', 'create', 'x', '--table', `0 1024 linear ${loop} 0`);
  const { status, stderr } = await world.exec('mount', [loop, world.path('mnt')]);
  expect(status).not.toBe(0);
  expect(stderr).toMatch(/busy|already mounted/);
  expect(readFileSync('/proc/mounts', 'utf8')).not.toContain(world.path('mnt'));
});
