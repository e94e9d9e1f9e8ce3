/**
 * File systems that run full under each part: state, log, COW file, image. What cannot be kept is not begun, nothing that
 * was acknowledged is lost, and all goes on when there is room again. Needs root, mount (tmpfs, loop) and mkfs.ext4.
 */
import { randomFillSync } from 'node:crypto';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DeviceMapper, type RemoteMapper } from '../../src/api/index.ts';
import { World } from './program.ts';

const MIB = 1024 * 1024;
const SIZE = 4 * MIB;

let world: World;
let dm: RemoteMapper;

beforeEach(() => {
  world = new World();
});

afterEach(async () => {
  await world.ok('dmkit', 'down', '--force');
  // The process has its log open a little longer than it answers.
  while ((await world.exec('umount', ['small'])).status !== 0) await turn();
  await world.close();
});

const connect = async () => {
  dm = await DeviceMapper.connect({ run: world.run, state: world.state, start: true });
};

/** A file system of little more than 2 MiB in `small`. */
async function mount(type: string): Promise<void> {
  mkdirSync(world.path('small'));
  if (type === 'tmpfs') return void (await world.ok('mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', 'small'));
  await world.ok('truncate', '-s', '4M', 'ext4.img');
  await world.ok('mkfs.ext4', '-q', '-m', '0', 'ext4.img');
  await world.ok('mount', '-o', 'loop', 'ext4.img', 'small');
}

/** To the last byte. */
function fill(): void {
  const file = openSync(world.path('small/fill'), 'a');
  const block = Buffer.alloc(65536);
  for (let length = block.length; length >= 1; )
    try {
      if (writeSync(file, block, 0, length) < length) length >>= 1;
    } catch (error) {
      expect((error as NodeJS.ErrnoException).code).toBe('ENOSPC');
      length >>= 1;
    }
  closeSync(file);
}

const makeRoom = () => rmSync(world.path('small/fill'));

describe.each(['tmpfs', 'ext4'])('a full %s', (type) => {
  beforeEach(() => mount(type));

  test('under the state refuses what could not be kept, and nothing else', async () => {
    mkdirSync(world.path('small/state'), { mode: 0o700 });
    world.env.DMKIT_STATE = world.path('small/state');
    writeFileSync(world.path('disk.img'), Buffer.alloc(SIZE, 'origin. '));
    await world.ok('dmkit', 'dmsetup', 'create', 'a', '--table', '0 8 zero');
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    fill();
    const listed = await world.ok('dmkit', 'ls');
    const created = await world.dmkit('dmsetup', 'create', 'b', '--table', '0 8 zero');
    expect(created).toEqual({
      status: 1,
      stdout: '',
      stderr: 'device-mapper: create ioctl on b  failed: No space left on device\nCommand failed.\n',
    });
    const forked = await world.dmkit('fork', 'disk.img', 'two');
    expect(forked).toEqual({
      status: 1,
      stdout: '',
      stderr: expect.stringMatching(/^dmkit: Cannot save the tables in .*state\.json: No space left on device\nhint: /),
    });
    expect(existsSync(world.path('two.cow'))).toBe(false);
    expect(await world.ok('dmkit', 'ls')).toBe(listed);
    // What is there can be used, and brought to an end.
    await world.ok('dmkit', 'dmsetup', 'suspend', 'a');
    await world.ok('dmkit', 'dmsetup', 'resume', 'a');
    await world.ok('qemu-io', '-f', 'raw', '-c', 'write -P 7 0 64k', '-c', 'flush', await uri('dev'));
    await world.ok('dmkit', 'dmsetup', 'remove', 'a');
    const fault = /^dmkit: Cannot save the tables in .*state\.json: No space left on device\n$/;
    expect((await world.dmkit('ls')).stderr).toMatch(fault);
    // Killed now, it comes back as it was last saved.
    await world.kill();
    expect(await names()).toEqual(['a', 'dev', 'disk']);
    await world.ok('dmkit', 'dmsetup', 'remove', 'a');
    expect((await world.dmkit('ls')).stderr).toMatch(fault);
    makeRoom();
    // The next change is kept, and with it those before.
    await world.ok('dmkit', 'dmsetup', 'suspend', 'dev');
    expect((await world.dmkit('ls')).stderr).toBe('');
    await world.ok('dmkit', 'dmsetup', 'resume', 'dev');
    await world.ok('dmkit', 'fork', 'disk.img', 'two');
    await world.kill();
    expect(await names()).toEqual(['dev', 'disk', 'two']);
    expect(await world.ok('qemu-io', '-f', 'raw', '-c', 'read -P 7 0 64k', await uri('dev'))).not.toMatch(/Pattern/);
    // The log had to leave out what it had no room for.
    expect(readFileSync(world.path('small/state/dmkit.log'), 'utf8')).toMatch(/ serves 3 devices .*\n$/);
  });

  test('under the COW file fails the write that finds it full, and costs nothing that was written before', async () => {
    writeFileSync(world.path('disk.img'), Buffer.alloc(SIZE, 'origin. '));
    await connect();
    await dm.fork(world.path('disk.img'), 'dev', { cow: world.path('small/cow') });
    writeFileSync(world.path('small/fill'), Buffer.alloc(MIB));
    let fork = await dm.device('dev');
    const block = (at: number) => Buffer.alloc(16384, `${at};`);
    let written = 0;
    const writeTo = async (end: number) => {
      for (; written < end; written += 16384) {
        await fork.write(written, block(written));
        await fork.flush();
      }
    };
    const check = async () => {
      for (let at = 0; at < written; at += 16384) expect((await fork.read(at, 16384)).equals(block(at))).toBe(true);
      expect((await fork.read(SIZE - 16384, 8)).toString()).toBe('origin. ');
      expect((await dm.volumes())[0]).toMatchObject({ name: 'dev', state: 'active' });
    };
    await expect(writeTo(SIZE)).rejects.toMatchObject({ errno: 'ENOSPC' });
    expect(written).toBeGreaterThan(MIB / 2);
    await check();
    await fork.close();
    // Also after a restart; and it goes on when there is room.
    await world.kill();
    await connect();
    fork = await dm.device('dev');
    await check();
    await expect(writeTo(SIZE)).rejects.toMatchObject({ errno: 'ENOSPC' });
    makeRoom();
    await writeTo(written + MIB / 2);
    await check();
    expect(await world.ok('dmkit', 'inspect', 'small/cow')).not.toContain('PROBLEM');
    // A copy for the origin that finds no room costs the snapshot, and nothing else.
    fill();
    const origin = await dm.device('disk');
    for (let at = written; at < SIZE; at += 16384) await origin.write(at, block(at));
    await origin.flush();
    expect((await dm.volumes())[0]).toMatchObject({ name: 'dev', state: 'Invalid' });
    await expect(fork.read(0, 512)).rejects.toMatchObject({ errno: 'EIO' });
    for (let at = written; at < SIZE; at += 16384) expect((await origin.read(at, 16384)).equals(block(at))).toBe(true);
    await origin.close();
    await fork.close();
  });

  test('under the image stops a merge, which goes on when there is room', async () => {
    await world.ok('truncate', '-s', String(SIZE), 'small/disk.img');
    await connect();
    await dm.fork(world.path('small/disk.img'), 'dev', { cow: world.path('cow') });
    const data = randomFillSync(Buffer.alloc(MIB));
    const fork = await dm.device('dev');
    await fork.write(MIB, data);
    await fork.close();
    fill();
    const failed = await world.dmkit('merge', 'dev');
    expect(failed.status).toBe(1);
    expect(failed.stderr).toMatch(/filesystem is full/);
    const check = async () => {
      const origin = await dm.device('disk');
      expect((await origin.read(MIB, MIB)).equals(data)).toBe(true);
      expect((await origin.read(0, MIB)).equals(Buffer.alloc(MIB))).toBe(true);
      await origin.close();
    };
    await check();
    expect(await world.ok('dmkit', 'dmsetup', 'status', 'disk')).toMatch(/snapshot-merge Merge failed\n$/);
    await world.kill();
    await connect();
    await check();
    makeRoom();
    await world.ok('dmkit', 'merge', 'dev');
    expect(
      readFileSync(world.path('small/disk.img'))
        .subarray(MIB, 2 * MIB)
        .equals(data),
    ).toBe(true);
    expect(existsSync(world.path('cow'))).toBe(false);
  });
});

const names = async () => (await world.ok('dmkit', 'dmsetup', 'ls')).match(/^\S+/gm);
const uri = async (name: string) => (await world.ok('dmkit', 'uri', name)).trim();
