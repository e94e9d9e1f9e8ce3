/** Real block devices of forks and origins: whichever way this machine has. Needs root. */
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { World } from './program.ts';

let world: World;

beforeEach(async () => {
  world = new World();
  writeFileSync(world.path('disk.img'), '');
  truncateSync(world.path('disk.img'), 64 * 1024 * 1024);
  mkdirSync(world.path('mnt'));
});

afterEach(() => world.close());

const attach = async (name: string) => (await world.ok('dmkit', 'attach', name)).trim();

test('a file system is made, mounted, written, unmounted and checked on a fork and on its origin', async () => {
  await world.ok('dmkit', 'fork', 'disk.img', 'dev');
  const fork = await attach('dev');
  const origin = await attach('disk');
  expect(fork).toMatch(/^\/dev\/(loop|nbd)\d+$/);
  expect(fork).not.toBe(origin);
  for (const [path, text] of [
    [fork, 'written to the fork'],
    [origin, 'written to the origin'],
  ]) {
    await world.ok('mkfs.ext4', '-q', path);
    await world.ok('mount', path, world.path('mnt'));
    writeFileSync(world.path('mnt/file'), text);
    await world.ok('umount', world.path('mnt'));
  }
  await world.ok('dmkit', 'detach', 'dev');
  await world.ok('dmkit', 'detach', origin);
  for (const [name, text] of [
    ['dev', 'written to the fork'],
    ['disk', 'written to the origin'],
  ]) {
    const path = await attach(name);
    await world.ok('e2fsck', '-f', '-n', path);
    await world.ok('mount', path, world.path('mnt'));
    expect(readFileSync(world.path('mnt/file'), 'utf8')).toBe(text);
    await world.ok('umount', world.path('mnt'));
    await world.ok('dmkit', 'detach', name);
  }
  // What the origin device wrote is in the image itself.
  await world.ok('e2fsck', '-f', '-n', world.path('disk.img'));
  expect(await world.ok('dmkit', 'ls', '--json')).not.toContain('attached');
});

test('an attached device is open: it is neither removed, nor dropped, nor does the daemon go down', async () => {
  await world.ok('dmkit', 'fork', 'disk.img', 'dev');
  const path = await attach('dev');
  expect(await world.ok('dmkit', 'ls')).toMatch(new RegExp(`^dev .*${path}`, 'm'));
  expect(await world.dmkit('dmsetup', 'remove', 'dev')).toMatchObject({
    status: 1,
    stderr: expect.stringContaining('Device or resource busy'),
  });
  for (const command of [['drop', 'dev'], ['down']])
    expect(await world.dmkit(...command)).toMatchObject({
      status: 1,
      stderr: expect.stringContaining('dmkit detach dev'),
    });
  expect((await world.dmkit('attach', 'dev')).stderr).toContain(`it is attached as ${path}`);
  await world.ok('dmkit', 'detach', 'dev');
  await world.ok('dmkit', 'drop', 'dev');
});

test('a mounted device is not detached, and the message says where it is mounted', async () => {
  await world.ok('dmkit', 'fork', 'disk.img', 'dev');
  const path = await attach('dev');
  await world.ok('mkfs.ext4', '-q', path);
  await world.ok('mount', path, world.path('mnt'));
  const { status, stderr } = await world.dmkit('detach', 'dev');
  expect(status).toBe(1);
  expect(stderr).toBe(
    `dmkit: Cannot detach ${path}: it is mounted on ${world.path('mnt')}\nhint: first: umount ${world.path('mnt')}\n`,
  );
  writeFileSync(world.path('mnt/still'), 'works');
  await world.ok('umount', world.path('mnt'));
  await world.ok('dmkit', 'detach', path);
});

test('a read-only device is attached read-only', async () => {
  await world.ok('dmkit', 'dmsetup', 'create', 'ro', '-r', '--table', `0 131072 linear ${world.path('disk.img')} 0`);
  const path = await attach('ro');
  expect(await world.ok('blockdev', '--getro', path)).toBe('1\n');
  await world.ok('dmkit', 'detach', 'ro');
});

test('after kill -9 of the daemon an attachment is alive or is said to be dead, and is cleared away by detach', async () => {
  await world.ok('dmkit', 'fork', 'disk.img', 'dev');
  const path = await attach('dev');
  await world.kill();
  const [volume] = JSON.parse(await world.ok('dmkit', 'ls', '--json'));
  expect(volume.attached).toBe(path.startsWith('/dev/nbd') ? path : `${path} (dead)`);
  await world.ok('dmkit', 'detach', 'dev');
  expect(await world.ok('losetup', '--all', '--list', '--noheadings', '-O', 'NAME')).not.toContain(path);
  await world.ok('dmkit', 'detach', await attach('dev'));
});

test('what is not there, not served or not attached is told', async () => {
  await world.ok('dmkit', 'dmsetup', 'create', 'empty', '-n');
  expect((await world.dmkit('attach', 'none')).stderr).toMatch(/Cannot find the mapped device "none"/);
  expect((await world.dmkit('attach', 'empty')).stderr).toMatch(/it has no live table/);
  expect((await world.dmkit('detach', 'empty')).stderr).toMatch(/it is not attached/);
});
