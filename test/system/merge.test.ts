/** Merges by the program and its daemon, killed in the middle. Needs nbdkit, qemu-io and qemu-img (qemu-utils), nbdcopy. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DeviceMapper } from '../../src/api/index.ts';
import { PROGRAM, World } from './program.ts';

const MIB = 1024 * 1024;
/** Four batches of the target. */
const SIZE = 128 * MIB;

let world: World;
let server: ChildProcess | undefined;

beforeEach(() => {
  world = new World();
  writeFileSync(world.path('disk.img'), Buffer.alloc(SIZE, 'origin. '));
});

afterEach(async () => {
  // It may have been stopped, and the daemon waits for it.
  server?.kill('SIGCONT');
  await world.close();
  server?.kill('SIGKILL');
  server = undefined;
});

/** The image as the export of a server that outlives the daemon and takes its time for each write, of 4 MiB in a merge. */
async function slowImage(delay: string): Promise<string> {
  const socket = world.path('image.sock');
  server = spawn(
    'nbdkit',
    [
      '--foreground',
      '--exit-with-parent',
      // Several would fail an assertion of nbdkit's when their client is killed.
      '--threads=1',
      '--unix',
      socket,
      '--filter=delay',
      'file',
      world.path('disk.img'),
      `wdelay=${delay}`,
    ],
    { stdio: 'ignore' },
  );
  const listens = () =>
    new Promise<boolean>((resolve) => {
      const probe = createConnection(socket, () => resolve(true));
      probe.on('error', () => resolve(false));
      probe.unref();
    });
  while (!(await listens())) {
    if (server.exitCode !== null) throw new Error('nbdkit has ended');
    await new Promise((turn) => setImmediate(turn));
  }
  return `nbd+unix:///?socket=${socket}`;
}

/** A fork of `image` that differs from it everywhere but in its last MiB, and what it holds. */
async function changedFork(image: string): Promise<Buffer> {
  await world.ok('dmkit', 'fork', image, 'dev');
  const expected = Buffer.alloc(SIZE);
  for (let at = 0; at < SIZE; at += 4096) expected.write(`chunk ${at / 4096} of the fork`, at);
  Buffer.alloc(MIB, 'origin. ').copy(expected, SIZE - MIB);
  writeFileSync(world.path('new.img'), expected.subarray(0, SIZE - MIB));
  const disk = await (await DeviceMapper.connect({ run: world.run, state: world.state })).device('dev');
  for (let at = 0; at < SIZE - MIB; at += MIB) await disk.write(at, expected.subarray(at, at + MIB));
  await disk.flush();
  await disk.close();
  return expected;
}

interface Event {
  event: string;
  merged: number;
  total: number;
  [field: string]: unknown;
}

/** `dmkit merge … --json`: its events as they come, and its end. */
function merge(...operands: string[]) {
  const child = spawn(PROGRAM, ['merge', ...operands, '--json'], {
    cwd: world.directory,
    env: world.env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stderr = '';
  child.stderr.on('data', (part) => (stderr += part));
  const ended = new Promise<{ status: number | string; stderr: string }>((done) =>
    child.on('close', (status, signal) => done({ status: signal ?? status ?? -1, stderr })),
  );
  async function* events(): AsyncGenerator<Event> {
    for await (const line of createInterface({ input: child.stdout })) yield JSON.parse(line);
  }
  return { child, events: events(), ended };
}

const image = () => readFileSync(world.path('disk.img'));

describe('a merge in the daemon', () => {
  test('that is killed again and again comes to its end, with every byte', async () => {
    const expected = await changedFork(await slowImage('150ms'));
    let merged = 0;
    let kills = 0;
    for (let done = false; !done; ) {
      const { events, ended } = merge('dev');
      for await (const { event, merged: now } of events) {
        done ||= event === 'done';
        if (event !== 'progress' || now <= merged) continue;
        merged = now;
        kills++;
        await world.kill();
        break;
      }
      const { status, stderr } = await ended;
      if (done) expect([status, stderr]).toEqual([0, '']);
      else
        expect([status, stderr]).toEqual([
          1,
          expect.stringContaining('nothing is lost, and the merge goes on when it starts again: dmkit merge dev'),
        ]);
    }
    expect(kills).toBeGreaterThan(2);
    expect(image().equals(expected)).toBe(true);
    expect(existsSync(world.path('dev.cow'))).toBe(false);
    expect(await world.ok('dmkit', 'ls')).toBe('No devices found\n');
  });

  test('goes on by itself after kill -9, and ends although nobody asks', async () => {
    const expected = await changedFork(await slowImage('400ms'));
    await world.ok('dmkit', 'fork', `nbd+unix:///?socket=${world.path('image.sock')}`, 'other');
    await world.ok('dmkit', 'merge', 'dev', '--background');
    await world.kill();
    const devices = JSON.parse(await world.ok('dmkit', 'ls', '--json'));
    expect(devices).toContainEqual(
      expect.objectContaining({ type: 'snapshot-merge', state: expect.stringMatching(/^merging dev \d+%$/) }),
    );
    while (existsSync(world.path('dev.cow'))) await world.ok('dmkit', 'ls');
    expect(image().equals(expected)).toBe(true);
    // The other fork has what the merge has overwritten.
    const old = readFileSync(world.path('disk.img'));
    Buffer.alloc(SIZE, 'origin. ').copy(old);
    writeFileSync(world.path('old.img'), old);
    const uri = (await world.ok('dmkit', 'uri', 'other')).trim();
    expect(await world.ok('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', 'old.img', uri)).toContain('identical');
  });

  test('is used meanwhile, left by Ctrl-C, stopped by down and continued by up', async () => {
    const expected = await changedFork(await slowImage('400ms'));
    const { child, events, ended } = merge('dev');
    let left = false;
    for await (const { event } of events) {
      if (event === 'progress' && !left) {
        // Nothing is merged until it runs again.
        server!.kill('SIGSTOP');
        child.kill('SIGINT');
        left = true;
      }
      if (event === 'interrupted') break;
    }
    expect(await ended).toEqual({
      status: 130,
      stderr: 'dmkit: dev goes on being merged by the daemon; to follow it: dmkit merge dev\n',
    });
    const [{ name, uri }] = JSON.parse(await world.ok('dmkit', 'ls', '--json'));
    expect((await world.dmkit('drop', 'dev')).stderr).toContain('Cannot drop dev: it is being merged');
    expect((await world.dmkit('revert', 'dev')).status).toBe(1);
    expect(await world.ok('dmkit', 'dmsetup', 'status', name)).toMatch(/ snapshot-merge \d+\/\d+ \d+\n$/);
    const written = world.ok('qemu-io', '-f', 'raw', uri, '-c', 'write -P 7 1M 64k', '-c', 'flush');
    server!.kill('SIGCONT');
    await written;
    expected.fill(7, MIB, MIB + 65536);
    await world.ok('dmkit', 'down');
    await world.ok('dmkit', 'up');
    const done = await world.ok('dmkit', 'merge', 'dev');
    expect(done).toMatch(
      /^dev is merged into .* \(8128 chunks, 127\.0 MiB\), and .*dev\.cow is gone\nit was the last fork/,
    );
    expect(image().equals(expected)).toBe(true);
  });

  test('of a fork with clients is refused, and says who they are', async () => {
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    const mapper = await DeviceMapper.connect({ run: world.run, state: world.state });
    for (const [name, more] of [
      ['dev', ''],
      ['disk', '\n      or, if nobody has cached or mounted anything of it: dmkit merge dev --force'],
    ]) {
      const disk = await mapper.device(name);
      const { status, stderr } = await world.dmkit('merge', 'dev');
      expect(status).toBe(1);
      expect(stderr).toMatch(/^dmkit: Cannot merge dev: i.*\nhint: it has \d+ NBD connections?: end the clients/);
      expect(stderr).toContain(more);
      await disk.close();
    }
    expect(await world.ok('dmkit', 'merge', 'dev')).toContain('dev is merged into');
  });
});

describe('a merge of files', () => {
  test('that is killed and interrupted again and again comes to its end, with every byte', async () => {
    const slow = await slowImage('150ms');
    const expected = await changedFork(slow);
    await world.ok('dmkit', 'drop', 'dev', '--keep');
    await world.ok('dmkit', 'down');
    let total = Number.POSITIVE_INFINITY;
    const ends: (number | string)[] = [];
    for (let done = false; !done; ) {
      const { child, events, ended } = merge(slow, 'dev.cow');
      for await (const { event, merged, total: all } of events) {
        done ||= event === 'done';
        // What was merged before is not in the store any more.
        if (event === 'start') {
          expect(all).toBeLessThanOrEqual(total);
          total = all;
        }
        if (event === 'progress' && ends.length < 4 && (ends.length % 2 === 0 || merged > 0))
          child.kill(ends.length % 2 === 0 ? 'SIGINT' : 'SIGKILL');
      }
      const { status, stderr } = await ended;
      ends.push(status);
      if (status === 130)
        expect(stderr).toMatch(/stopped after \d+ of \d+ chunks; until the command is repeated, .* is a mix/);
    }
    expect(ends).toContain(130);
    expect(ends).toContain('SIGKILL');
    expect(ends.at(-1)).toBe(0);
    expect(image().equals(expected)).toBe(true);
    expect(await world.ok('dmkit', 'inspect', 'dev.cow')).toMatch(/state {7}valid[\s\S]*exceptions {2}0,/);
  });

  test('that the daemon has is refused, with the fork that it is', async () => {
    await changedFork('disk.img');
    const { status, stderr } = await world.dmkit('merge', 'disk.img', 'dev.cow');
    expect([status, stderr]).toEqual([
      1,
      expect.stringMatching(/has it open\nhint: it is the fork dev of the daemon: dmkit merge dev\n$/),
    ]);
    // The same while the daemon is away: what it brings back equals what was merged.
    await world.ok('dmkit', 'down');
    const before = readFileSync(world.path('new.img'));
    expect(await world.ok('dmkit', 'merge', 'disk.img', 'dev.cow')).toContain('an empty store now');
    expect(image().subarray(0, before.length).equals(before)).toBe(true);
    await world.ok('dmkit', 'up');
    expect(await world.ok('dmkit', 'diff', 'dev')).toContain('differs from');
    expect(await world.ok('dmkit', 'diff', 'dev')).toContain('in 0 B of');
  });
});
