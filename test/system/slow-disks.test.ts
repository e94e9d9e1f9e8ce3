/** A disk that is slow, or hangs, beside one that is not. What is looked at is what is answered while the other has not answered anything. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync, statSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { DeviceMapper, type Disk, type RemoteMapper } from '../../src/api/index.ts';
import { World } from './program.ts';

const MIB = 1024 * 1024;
/** Requests of one client that the slow disk leaves without an answer. The server takes 256 at once from a connection. */
const PENDING = 200;
let world: World;
let mapper: RemoteMapper;

beforeEach(async () => {
  world = new World();
  // All on one thread: with threads of their own, disks have little to do with one another.
  world.env.DMKIT_ENGINES = '0';
  writeFileSync(world.path('fast.img'), Buffer.alloc(8 * MIB, 'fast. '));
  await world.ok('dmkit', 'up');
  mapper = await DeviceMapper.connect({ run: world.run, state: world.state });
  await world.ok('dmkit', 'fork', 'fast.img', 'fast');
});
afterEach(async () => {
  // What waits for an hour would be waited for.
  await world.dmkit('dmsetup', 'suspend', 'late');
  await world.close();
});

/** Reads at as many places of 4 KiB; how many have been answered is known at any time. */
function pending(disk: Disk, from: number, count = PENDING) {
  const state = { answered: 0, all: Promise.resolve([] as Uint8Array[]) };
  state.all = Promise.all(
    Array.from({ length: count }, async (_, i) => {
      const data = await disk.read(from + i * 16_384, 4096);
      state.answered++;
      return data;
    }),
  );
  // Told to whoever awaits it in the end.
  state.all.catch(() => {});
  return state;
}

/** Everything that a client or a command wants of disks that do not hang. */
async function everythingElse(): Promise<void> {
  const fast = await mapper.device('fast');
  for (let i = 0; i < 1000; i++) await fast.read((i % 500) * 16_384, 4096);
  // Nothing of it is in the page cache: threads have to wait for the disk.
  await world.ok('dd', 'of=fast.img', 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0');
  await Promise.all(Array.from({ length: 500 }, (_, i) => fast.read(i * 16_384, 4096)));
  for (let i = 0; i < 100; i++) {
    await fast.write(i * 16_384 + 512, Buffer.alloc(4096, 'new'));
    if (i % 10 === 0) await fast.flush();
  }
  await fast.write(4 * MIB, Buffer.alloc(2 * MIB, 'long'));
  await fast.writeZeroes(4 * MIB, MIB);
  await fast.flush();
  await fast.close();
  expect(await world.ok('dmkit', 'ls')).toMatch(/^slow .* active /m);
  for (const command of ['ls', 'status', 'table', 'info'])
    expect(await world.ok('dmkit', 'dmsetup', command)).toMatch(/slow/);
  writeFileSync(world.path('other.img'), Buffer.alloc(MIB));
  await world.ok('dmkit', 'fork', 'other.img', 'other');
  await world.ok('dmkit', 'drop', 'other');
}

test('a delayed disk holds up nobody else, nor what its own client has at hand', async () => {
  const sectors = (8 * MIB) / 512;
  writeFileSync(world.path('slow.img'), Buffer.alloc(8 * MIB, 'slow. '));
  writeFileSync(world.path('slow.cow'), Buffer.alloc(9 * MIB));
  // Longer than any test: it ends when the device is suspended, which waits for no delay.
  await world.ok('dmkit', 'dmsetup', 'create', 'late', '--table', `0 ${sectors} delay slow.img 0 3600000 slow.img 0 0`);
  const table = `0 ${sectors} snapshot late ${world.path('slow.cow')} P 8`;
  await world.ok('dmkit', 'dmsetup', 'create', 'slow', '--table', table);
  const slow = await mapper.device('slow');
  await slow.write(0, Buffer.alloc(4096, 'mine'));
  const reads = pending(slow, 16_384);
  // On the same connection, behind them.
  expect(Buffer.from(await slow.read(0, 4096)).equals(Buffer.alloc(4096, 'mine'))).toBe(true);
  await slow.write(8192, Buffer.alloc(4096, 'more'));
  await slow.flush();
  await everythingElse();
  expect(reads.answered).toBe(0);
  await world.ok('dmkit', 'dmsetup', 'suspend', 'late');
  for (const [i, data] of (await reads.all).entries())
    expect(Buffer.from(data)).toEqual(
      Buffer.alloc(8 * MIB, 'slow. ')
        .subarray((i + 1) * 16_384)
        .subarray(0, 4096),
    );
  await slow.close();
  await world.ok('dmkit', 'dmsetup', 'resume', 'late');
});

test('a disk that hangs holds up nobody else, whatever is asked of it', async () => {
  const { server, fuse, stop } = await hangingFile(16 * MIB);
  try {
    await world.ok('dmkit', 'fork', fuse, 'slow', '--cow', world.path('slow.cow'));
    const slow = await mapper.device('slow');
    const origin = await mapper.device('disk');
    await slow.write(0, Buffer.alloc(4096, 'mine'));
    server.kill('SIGSTOP');
    // Away from what was read already, and ahead.
    const reads = pending(slow, 2 * MIB);
    const writes = Array.from({ length: 50 }, (_, i) =>
      origin.write(8 * MIB + i * 65_536, Buffer.alloc(65_536, 'far')),
    );
    let flushed = false;
    const flush = Promise.all(writes)
      .then(() => origin.flush())
      .then(() => (flushed = true));
    // Behind all of them, and from a file at hand.
    expect(Buffer.from(await slow.read(0, 4096)).equals(Buffer.alloc(4096, 'mine'))).toBe(true);
    await everythingElse();
    expect([reads.answered, flushed]).toEqual([0, false]);
    server.kill('SIGCONT');
    for (const data of await reads.all) expect(data.every((byte) => byte === 0)).toBe(true);
    await flush;
    expect(Buffer.from(await origin.read(8 * MIB, 65_536)).equals(Buffer.alloc(65_536, 'far'))).toBe(true);
    expect((await slow.read(8 * MIB, 65_536)).every((byte) => byte === 0)).toBe(true);
    await slow.close();
    await origin.close();
  } finally {
    server.kill('SIGCONT');
    await world.ok('dmkit', 'down', '--force');
    await stop();
  }
});

test('a daemon has threads for several disks that hang', () => {
  expect(readdirSync(`/proc/${world.pid}/task`).length).toBeGreaterThan(64);
});

/** A file whose bytes an NBD server has, which can be stopped. */
async function hangingFile(size: number): Promise<{ server: ChildProcess; fuse: string; stop(): Promise<void> }> {
  const socket = world.path('far.sock');
  const server = spawn('nbdkit', ['-f', '-U', socket, 'memory', `${size}`], { stdio: 'ignore' });
  const mount = world.path('far');
  await world.ok('mkdir', mount);
  while (!readdirSync(world.directory).includes('far.sock')) await new Promise((turn) => setImmediate(turn));
  const fuse = spawn('nbdfuse', [`${mount}/disk`, '--unix', socket], { stdio: 'ignore' });
  const before = statSync(mount).dev;
  while (statSync(mount).dev === before) await new Promise((turn) => setImmediate(turn));
  return {
    server,
    fuse: `${mount}/disk`,
    async stop() {
      const ended = new Promise((done) => fuse.on('close', done));
      await world.ok('fusermount3', '-u', mount);
      await ended;
      server.kill();
    },
  };
}
