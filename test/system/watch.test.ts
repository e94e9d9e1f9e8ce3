/** `dmkit watch` beside a daemon: what it prints, and how it ends. */
import { type ChildProcess, spawn } from 'node:child_process';
import { statSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { DeviceMapper } from '../../src/api/index.ts';
import { PROGRAM, World } from './program.ts';

const MIB = 1024 * 1024;
const CHUNK = 16384;
let world: World;
let children: ChildProcess[];

beforeEach(() => {
  world = new World();
  children = [];
  writeFileSync(world.path('disk.img'), Buffer.alloc(4 * MIB, 'origin. '));
});

afterEach(async () => {
  for (const child of children) child.kill('SIGKILL');
  await world.close();
});

function start(...args: string[]) {
  const child = spawn(PROGRAM, ['watch', ...args], {
    cwd: world.directory,
    env: world.env,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  children.push(child);
  const ended = new Promise<number | string | null>((done) =>
    child.on('close', (status, signal) => done(signal ?? status)),
  );
  return { child, ended };
}

/** The events that `dmkit watch --json` prints. */
function watch(...names: string[]) {
  const { child, ended } = start('--json', ...names);
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  return {
    child,
    ended,
    /** All events up to the first of this kind. */
    async until(kind: string) {
      const found: Record<string, unknown>[] = [];
      while (found.at(-1)?.event !== kind) {
        const { value, done } = await lines.next();
        if (done) throw new Error(`watch ended before ${kind}: ${JSON.stringify(found)}`);
        found.push(JSON.parse(value));
      }
      return found;
    },
  };
}

const kinds = (events: Record<string, unknown>[]) => events.map(({ event }) => event);

async function write(name: string, at: number, length: number) {
  const disk = await (await DeviceMapper.connect({ run: world.run, state: world.state })).device(name);
  try {
    await disk.write(at, Buffer.alloc(length, 'changed.'));
    await disk.flush();
  } finally {
    await disk.close();
  }
}

test('a COW file that grows before it overflows, and at its limit does not', async () => {
  const watching = watch('dev');
  await watching.until('begin');
  await world.ok('dmkit', 'fork', 'disk.img', 'dev', '--size', '160k', '--autoextend', '70:20:1M');
  expect(kinds(await watching.until('table'))).toEqual(['create', 'table']);
  const [{ autoextend, cowSize }] = JSON.parse(await world.ok('dmkit', 'ls', '--json'));
  expect({ autoextend, cowSize }).toEqual({
    autoextend: { threshold: 70, percent: 20, limit: MIB },
    cowSize: 10 * CHUNK,
  });
  await write('dev', 0, 40 * CHUNK);
  const [extended] = (await watching.until('extend')).filter(({ event }) => event === 'extend');
  expect(extended).toMatchObject({ device: 'dev', cow: world.path('dev.cow'), from: 10 * CHUNK });
  expect(statSync(world.path('dev.cow')).size).toBeGreaterThan(42 * CHUNK);
  // At the daemon's next look.
  await watching.until('fill');
  await expect(write('dev', MIB, 40 * CHUNK)).rejects.toMatchObject({ errno: 'EIO' });
  const events = await watching.until('overflow');
  expect(events.filter(({ event }) => event === 'extend-failed')).toMatchObject([{ code: 'LIMIT', size: MIB }]);
  expect(await world.ok('dmkit', 'dmsetup', 'status', 'dev')).toBe('0 8192 snapshot Overflow\n');
  expect(statSync(world.path('dev.cow')).size).toBe(MIB);
});

test('the kernel’s events, and nothing of other devices', async () => {
  const watching = watch('snap');
  await watching.until('begin');
  writeFileSync(world.path('snap.cow'), Buffer.alloc(64 * 1024));
  await world.ok('dmkit', 'dmsetup', 'create', 'noise', '--table', '0 8 zero');
  await world.ok('dmkit', 'dmsetup', 'create', 'snap', '--table', '0 8192 snapshot disk.img snap.cow P 8');
  await expect(write('snap', 0, MIB)).rejects.toMatchObject({ errno: 'EIO' });
  expect(await watching.until('invalid')).toMatchObject([
    { device: 'snap', event: 'create' },
    { device: 'snap', event: 'table' },
    { device: 'snap', event: 'table-event', number: 1 },
    { device: 'snap', event: 'invalid', cow: world.path('snap.cow') },
  ]);
  await world.ok('dmkit', 'dmsetup', 'rename', 'snap', 'new');
  await world.ok('dmkit', 'dmsetup', 'remove', 'new');
  expect(await watching.until('remove')).toMatchObject([
    { device: 'new', event: 'rename', from: 'snap' },
    { device: 'new', event: 'table-event', number: 2 },
    { device: 'new', event: 'table-event', number: 3 },
    { device: 'new', event: 'remove' },
  ]);
});

test('a merge, on the device of the origin', async () => {
  await world.ok('dmkit', 'fork', 'disk.img', 'dev');
  await world.ok('dmkit', 'fork', 'disk.img', 'other');
  await write('dev', 0, MIB);
  const watching = watch('disk');
  await watching.until('begin');
  await world.ok('dmkit', 'merge', 'dev');
  const events = await watching.until('merge-done');
  expect(events.at(-1)).toMatchObject({ device: 'disk', cow: world.path('dev.cow') });
  expect(kinds(events)).not.toContain('table-event');
});

test('goes on over the end and the death of the daemon, and ends at SIGINT with status 0', async () => {
  const watching = watch();
  await watching.until('begin');
  await world.ok('dmkit', 'dmsetup', 'create', 'one', '--table', '0 8 zero');
  await watching.until('table');
  await world.ok('dmkit', 'down');
  expect(kinds(await watching.until('end'))).toEqual(['end']);
  await world.ok('dmkit', 'up');
  expect(kinds(await watching.until('begin'))).toEqual(['begin']);
  await world.kill();
  expect(kinds(await watching.until('end'))).toEqual(['end']);
  await world.ok('dmkit', 'dmsetup', 'info', 'one');
  await watching.until('begin');
  await world.ok('dmkit', 'dmsetup', 'remove', 'one');
  expect(kinds(await watching.until('remove'))).toEqual(['table-event', 'remove']);
  watching.child.kill('SIGINT');
  expect(await watching.ended).toBe(0);
});

test('ends quietly when nobody reads it any more', async () => {
  const { child, ended } = start();
  let stderr = '';
  child.stderr!.on('data', (part) => (stderr += part));
  await new Promise<void>((told) => child.stdout!.once('data', () => told()));
  child.stdout!.destroy();
  await world.ok('dmkit', 'dmsetup', 'create', 'one', '--table', '0 8 zero');
  expect([await ended, stderr]).toEqual([0, '']);
});

test('a reader that stops to read does not hold up the daemon, which forgets those who have gone', async () => {
  const watching = watch();
  await watching.until('begin');
  watching.child.kill('SIGSTOP');
  const dm = await DeviceMapper.connect({ run: world.run, state: world.state });
  for (let i = 0; i < 20; i++) {
    await dm.create(`dev${i}`);
    await dm.remove({ name: `dev${i}` });
  }
  watching.child.kill('SIGCONT');
  const events = [];
  while (events.length < 40) events.push(...(await watching.until('remove')));
  expect(kinds(events)).toEqual(Array.from({ length: 20 }, () => ['create', 'remove']).flat());
  const calling = async () => (await dm.daemon()).calls;
  const turn = () => new Promise((next) => setImmediate(next));
  while ((await calling()) !== 1) await turn();
  watching.child.kill('SIGKILL');
  await watching.ended;
  while ((await calling()) > 0) await turn();
});
