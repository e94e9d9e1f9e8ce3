/** Metadata of pools that are in use: one of dmkit's own, and a disk of the kernel that somebody has claimed. Needs losetup and qemu-io. */
import { closeSync, constants, openSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { contents, poolImage } from '../unit/thin/images.ts';
import { World } from './program.ts';

let world: World;
beforeEach(() => {
  world = new World();
});
afterEach(() => world.close());

const dmkit = (...words: string[]) => world.ok('dmkit', ...words);
const refused = async (...words: string[]) => {
  const { status, stderr } = await world.dmkit('thin', ...words);
  expect(status).toBe(1);
  return stderr;
};

test('an incremental backup: what two snapshots of a volume in use differ in', async () => {
  await world.ok('truncate', '-s', '1M', 'meta');
  await world.ok('truncate', '-s', '16M', 'data');
  await dmkit('dmsetup', 'create', 'pool', '--table', '0 32768 thin-pool meta data 128 0');
  const message = (text: string) => dmkit('dmsetup', 'message', 'pool', '0', text);
  await message('create_thin 1');
  await dmkit('dmsetup', 'create', 'volume', '--table', '0 32768 thin /dev/mapper/pool 1');
  const uri = (await dmkit('uri', 'volume')).trim();
  const write = (...commands: string[]) =>
    world.ok('qemu-io', '-f', 'raw', uri, ...[...commands, 'flush'].flatMap((command) => ['-c', command]));
  const snapshot = async (id: number) => {
    await dmkit('dmsetup', 'suspend', 'volume');
    await message(`create_snap ${id} 1`);
    await dmkit('dmsetup', 'resume', 'volume');
  };
  await write('write -P 1 0 1M', 'write -P 1 4M 64k');
  await snapshot(2);
  await write('write -P 2 128k 64k', 'write -P 2 8M 128k');
  await snapshot(3);
  expect(await refused('delta', '--snap1', '2', '--snap2', '3', 'meta')).toMatch(
    /has it open\nhint: deactivate its pool/,
  );
  expect(await refused('ls', '-m', 'meta')).toContain('has no metadata snapshot');
  await message('reserve_metadata_snap');
  // What comes after is not in it.
  await write('write -P 3 0 1M', 'write -P 3 12M 1M');
  await message('create_thin 9');
  const { ranges } = JSON.parse(await dmkit('thin', 'delta', '-m', '--json', '--snap1', '2', '--snap2', '3', 'meta'));
  expect(ranges).toMatchObject([
    { kind: 'different', begin: 2, length: 1 },
    { kind: 'right_only', begin: 128, length: 2 },
  ]);
  expect(await dmkit('thin', 'ls', '-m', '--no-headers', '-o', 'DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS', 'meta')).toBe(
    '1 19 0 \n2 17 1 \n3 19 0 \n',
  );
  await message('release_metadata_snap');
  for (const name of ['volume', 'pool']) await dmkit('dmsetup', 'remove', name);
  await dmkit('thin', 'check', 'meta');
  expect(await dmkit('thin', 'ls', '--no-headers', '-o', 'DEV', 'meta')).toBe('1 \n2 \n3 \n9 \n');
});

test('a disk of the kernel that is in use', async () => {
  writeFileSync(world.path('disk'), contents(await poolImage({ held: true })));
  const loop = (await world.ok('losetup', '--find', '--show', world.path('disk'))).trim();
  const claim = openSync(loop, constants.O_RDWR | constants.O_EXCL);
  try {
    for (const command of [['check'], ['dump'], ['ls']])
      expect(await refused(...command, loop)).toMatch(/it is in use\nhint: deactivate its pool first/);
    expect(await dmkit('thin', 'ls', '-m', '--no-headers', '-o', 'DEV', loop)).toBe('1 \n2 \n');
    // As the kernel's pool does, past the page cache of the disk, which is not dropped as long as somebody has it open.
    const other = contents(await poolImage());
    writeFileSync(world.path('disk'), other);
    expect(await refused('ls', '-m', loop)).toContain('has no metadata snapshot');
  } finally {
    closeSync(claim);
    await world.ok('losetup', '--detach', loop);
  }
});

test('a disk of the kernel that nobody uses', async () => {
  writeFileSync(world.path('disk'), contents(await poolImage()));
  const loop = (await world.ok('losetup', '--find', '--show', world.path('disk'))).trim();
  try {
    expect(await dmkit('thin', 'check', loop)).toContain('TRANSACTION_ID=0\n');
    writeFileSync(world.path('pool.xml'), await dmkit('thin', 'dump', loop));
    await dmkit('thin', 'restore', '-i', 'pool.xml', '-o', loop, '--overwrite');
    expect(await dmkit('thin', 'dump', loop)).toBe(await world.ok('cat', 'pool.xml'));
  } finally {
    await world.ok('losetup', '--detach', loop);
  }
});
