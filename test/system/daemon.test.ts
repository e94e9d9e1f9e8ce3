import { createHash } from 'node:crypto';
import { chmodSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DeviceMapper } from '../../src/api/index.ts';
import { isRunning, PROGRAM, World } from './program.ts';

const MIB = 1024 * 1024;
let world: World;

beforeEach(() => {
  world = new World();
  writeFileSync(world.path('disk.img'), Buffer.alloc(4 * MIB, 'origin. '));
});

afterEach(() => world.close());

const mapper = () => DeviceMapper.connect({ run: world.run, state: world.state });
const uri = (name: string) => `nbd+unix:///${name}?socket=${world.run}/nbd.sock`;

async function write(name: string, at: number, text: string) {
  const disk = await (await mapper()).device(name);
  await disk.write(at, Buffer.alloc(4096, text));
  await disk.flush();
  await disk.close();
}

async function read(name: string, at: number, length = 4096) {
  const disk = await (await mapper()).device(name);
  const bytes = await disk.read(at, length);
  await disk.close();
  return bytes;
}

const digest = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

describe('the daemon starts itself', () => {
  test('once, however many commands need it at the same time', async () => {
    const results = await Promise.all(
      Array.from({ length: 8 }, (_, i) => world.dmkit('dmsetup', 'create', `dev${i}`, '--table', '0 8 zero')),
    );
    expect(results).toEqual(Array(8).fill({ status: 0, stdout: '', stderr: '' }));
    const names = (await world.ok('dmkit', 'dmsetup', 'ls')).trim().split('\n');
    expect(names.map((line) => line.split('\t')[0])).toEqual(Array.from({ length: 8 }, (_, i) => `dev${i}`));
    expect((await world.ok('dmkit', 'up')).split('\n')[0]).toBe(
      `the daemon runs already (pid ${world.pid}) with 8 devices`,
    );
    expect(readFileSync(world.path('state/dmkit.log'), 'utf8').match(/ serves /g)).toHaveLength(1);
  });

  test('not to list what was never created', async () => {
    expect(await world.ok('dmkit', 'ls')).toBe('No devices found\n');
    expect(await world.ok('dmkit', 'dmsetup', 'ls')).toBe('No devices found\n');
    expect(await world.ok('dmkit', 'ls', '--json')).toBe('[]\n');
    expect(existsSync(world.run)).toBe(false);
    expect(existsSync(world.state)).toBe(false);
  });

  test('in directories and with sockets and files that are its user’s alone', async () => {
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    for (const [path, mode] of Object.entries({
      run: 0o700,
      'run/control.sock': 0o600,
      'run/nbd.sock': 0o600,
      'run/daemon.lock': 0o600,
      state: 0o700,
      'state/state.json': 0o600,
      'state/dmkit.log': 0o600,
      'dev.cow': 0o600,
    }))
      expect([path, statSync(world.path(path)).mode & 0o777]).toEqual([path, mode]);
  });

  test('but not in a directory that others may write to', async () => {
    mkdirSync(world.run);
    chmodSync(world.run, 0o777);
    const { status, stderr } = await world.dmkit('up');
    expect(status).toBe(1);
    expect(stderr).toBe(`dmkit: Cannot use ${world.run}: others may write to it\nhint: chmod 700 ${world.run}\n`);
  });

  test('but not over a state that it cannot read, which stays as it is', async () => {
    mkdirSync(world.state, { mode: 0o700 });
    writeFileSync(world.path('state/state.json'), '{"version":1,"sta');
    for (const command of ['ls', 'up']) {
      const { status, stderr } = await world.dmkit(command);
      expect(status).toBe(1);
      expect(stderr).toMatch(/^dmkit: Cannot read .*state\.json: .*\nhint: .* mv .*state\.json .*\.bad\n$/);
    }
    expect(readFileSync(world.path('state/state.json'), 'utf8')).toBe('{"version":1,"sta');
    await world.ok('mv', world.path('state/state.json'), world.path('state/state.json.bad'));
    expect(await world.ok('dmkit', 'up')).toContain('with 0 devices');
  });
});

describe('after kill -9', () => {
  test('every device is back with its name, uuid, number, table, state, event number and data', async () => {
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    await world.ok(
      'dmkit',
      'dmsetup',
      'create',
      'zero',
      '-u',
      'U-1',
      '-j',
      '254',
      '-m',
      '7',
      '-r',
      '--table',
      '0 8 zero',
    );
    await world.ok('dmkit', 'dmsetup', 'rename', 'zero', 'nought');
    await world.ok('dmkit', 'dmsetup', 'suspend', 'nought');
    await world.ok('dmkit', 'dmsetup', 'create', 'empty', '-n');
    await write('dev', 65536, 'mine');
    await write('disk', 0, 'theirs');
    const show = async () => [
      await world.ok('dmkit', 'dmsetup', 'info'),
      await world.ok('dmkit', 'dmsetup', 'table'),
      await world.ok('dmkit', 'dmsetup', 'status'),
      await world.ok('dmkit', 'diff', 'dev', '--json'),
      digest(await read('dev', 0, 4 * MIB)),
      digest(await read('disk', 0, 4 * MIB)),
    ];
    const before = await show();
    const { pid } = world;
    await world.kill();
    expect(await show()).toEqual(before);
    expect(before[0]).toContain('Event number:      1');
    expect(world.pid).not.toBe(pid);
  });

  test('what a client wrote and flushed is there, and the client goes on by itself', async () => {
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    const disk = await (await mapper()).device('dev');
    for (let i = 0; i < 64; i++) await disk.write(i * 65536, Buffer.alloc(4096, `${i};`));
    await disk.flush();
    await world.kill();
    await world.ok('dmkit', 'up');
    // The client connects again by itself.
    for (let i = 0; i < 64; i++)
      expect((await disk.read(i * 65536, 4096)).equals(Buffer.alloc(4096, `${i};`))).toBe(true);
    await disk.close();
  });

  test('a transient fork is gone and says so', async () => {
    await world.ok('dmkit', 'fork', 'disk.img', 'dev', '--transient');
    await write('dev', 0, 'gone');
    expect(existsSync(world.path('dev.cow'))).toBe(false);
    await world.kill();
    const list = await world.ok('dmkit', 'ls');
    expect(list).toMatch(/^dev +\S+disk\.img .* no table +-$/m);
    expect(list).toMatch(/^dev: .*transient/m);
    expect(await world.ok('dmkit', 'dmsetup', 'table', 'dev')).toBe('\n');
    expect((await world.dmkit('uri', 'dev')).stderr).toMatch(/transient/);
    await world.ok('dmkit', 'drop', 'dev');
    expect(await world.ok('dmkit', 'ls')).toBe('No devices found\n');
  });

  test('a device whose disk is missing says so, and is back when the disk is', async () => {
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    await write('dev', 0, 'kept');
    await world.kill();
    await world.ok('mv', world.path('dev.cow'), world.path('aside'));
    expect(await world.ok('dmkit', 'ls')).toMatch(/^dev: table not loaded after a restart: .*dev\.cow/m);
    await world.kill();
    await world.ok('mv', world.path('aside'), world.path('dev.cow'));
    await world.ok('dmkit', 'up');
    expect((await read('dev', 0)).toString('latin1', 0, 8)).toBe('keptkept');
    expect(await world.ok('dmkit', 'ls')).toMatch(/^dev .* active/m);
  });

  test('between any two calls, what was acknowledged is there', async () => {
    for (let i = 0; i < 5; i++) {
      await world.ok('dmkit', 'dmsetup', 'create', `d${i}`, '--table', `0 ${8 * (i + 1)} zero`);
      await world.kill();
    }
    expect(await world.ok('dmkit', 'dmsetup', 'table')).toBe(
      Array.from({ length: 5 }, (_, i) => `d${i}: 0 ${8 * (i + 1)} zero \n`).join(''),
    );
  });
});

describe('a second instance', () => {
  test('is refused with the pid of the first and how to stop it', async () => {
    await world.ok('dmkit', 'up');
    const { status, stderr } = await world.dmkit('up', '--foreground');
    expect(status).toBe(1);
    expect(stderr).toContain(`a daemon with pid ${world.pid} runs with ${world.run}`);
    expect(stderr).toContain('dmkit down');
  });

  test('is refused when it shares the state only', async () => {
    await world.ok('dmkit', 'up');
    const { status, stderr } = await world.exec(`${import.meta.dirname}/../../bin/dmkit`, ['up'], {
      DMKIT_DIR: world.path('run2'),
    });
    expect(status).toBe(1);
    expect(stderr).toContain(`runs with ${world.state}, and with another directory than ${world.path('run2')}`);
  });

  test('without the foreign function interface is refused as well', async () => {
    world.env.DMKIT_NO_FFI = '1';
    await world.ok('dmkit', 'up');
    expect((await world.dmkit('up', '--foreground')).stderr).toMatch(/a daemon with pid \d+ runs/);
    await world.ok('dmkit', 'down');
    await world.ok('dmkit', 'up');
  });
});

describe('in the foreground', () => {
  test('goes on when nobody reads its log any more', async () => {
    const { child, ended } = await world.foreground();
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    child.stderr?.destroy();
    process.kill(world.pid, 'SIGTERM');
    expect(await ended).toBe(0);
    const { status, stderr } = await world.exec('sh', ['-c', `'${PROGRAM}' ls > /dev/full`]);
    expect([status, stderr]).toEqual([1, expect.stringContaining('dmkit: Cannot write the output: ENOSPC')]);
  });

  test.each(['SIGTERM', 'SIGINT'] as const)(
    '%s ends it in order: everything written is on disk, status 0, no sockets',
    async (signal) => {
      const { child, ended, log } = await world.foreground();
      await world.ok('dmkit', 'fork', 'disk.img', 'dev');
      const disk = await (await mapper()).device('dev');
      // Not flushed by the client: an end in order does it.
      await disk.write(8192, Buffer.alloc(4096, 'kept'));
      await (await mapper()).device('disk').then((origin) => origin.write(0, Buffer.alloc(4096, 'new')));
      child.kill(signal);
      expect(await ended).toBe(0);
      expect(log()).toMatch(/stopped\n$/);
      expect(existsSync(world.path('run/control.sock'))).toBe(false);
      expect(existsSync(world.path('run/nbd.sock'))).toBe(false);
      await disk.close();
      expect(readFileSync(world.path('disk.img')).toString('latin1', 0, 6)).toBe('newnew');
      expect(await world.ok('dmkit', 'inspect', 'dev.cow')).toContain('exceptions  1,');
      await world.ok('dmkit', 'up');
      expect((await read('dev', 8192)).toString('latin1', 0, 8)).toBe('keptkept');
      expect((await read('dev', 0)).toString('latin1', 0, 7)).toBe('origin.');
    },
  );

  test('a command that waits is ended too', async () => {
    const { child, ended } = await world.foreground();
    await world.ok('dmkit', 'dmsetup', 'create', 'a', '--table', '0 8 zero');
    const waiting = world.dmkit('dmsetup', 'wait', 'a');
    // It waits when the daemon has its request; a call after it would be answered after it.
    while ((await (await mapper()).daemon()).calls === 0) await new Promise((turn) => setImmediate(turn));
    child.kill('SIGTERM');
    expect(await ended).toBe(0);
    expect((await waiting).status).toBe(1);
  });

  test('NBD over TCP is served on loopback when asked for', async () => {
    await world.foreground('--nbd-tcp', '0');
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    const { nbdTcp } = JSON.parse(await world.ok('dmkit', 'up', '--json'));
    expect(nbdTcp.host).toBe('127.0.0.1');
    expect(await world.ok('nbdinfo', '--size', `nbd://127.0.0.1:${nbdTcp.port}/dev`)).toBe(`${4 * MIB}\n`);
  });
});

test('NBD over TCP is served with TLS when certificates are given', async () => {
  const certificates = join(import.meta.dirname, '../fixtures/tls');
  await world.ok('dmkit', 'fork', 'disk.img', 'dev');
  await world.ok('dmkit', 'down');
  const up = ['up', '--nbd-tcp', 'localhost:0', '--tls-certificates', certificates, '--json'];
  const { nbdTcp } = JSON.parse(await world.ok('dmkit', ...up));
  expect(nbdTcp.tls).toBe(true);
  const address = `localhost:${nbdTcp.port}`;
  const uri = `nbds://${address}/dev?tls-certificates=${certificates}`;
  expect(await world.ok('nbdinfo', '--size', uri)).toBe(`${4 * MIB}\n`);
  expect((await world.exec('nbdinfo', ['--size', `nbd://${address}/dev`])).status).not.toBe(0);
  const without = await world.dmkit('up', '--nbd-tcp', address);
  expect(without).toMatchObject({
    status: 1,
    stderr: expect.stringMatching(/runs already, with TCP port \d+ and TLS/),
  });
});

describe('NBD', () => {
  test('every active device is the export of its name, through renames and removals', async () => {
    await world.ok('dmkit', 'dmsetup', 'create', 'a', '--table', '0 2048 zero');
    await world.ok('dmkit', 'dmsetup', 'create', 'none', '-n');
    const exports = async () => {
      const { exports } = JSON.parse(
        await world.ok('nbdinfo', '--list', '--json', `nbd+unix:///?socket=${world.run}/nbd.sock`),
      );
      return exports.map((entry: Record<string, unknown>) => entry['export-name']);
    };
    expect(await exports()).toEqual(['a']);
    await world.ok('dmkit', 'dmsetup', 'rename', 'a', 'b');
    expect(await exports()).toEqual(['b']);
    await world.ok('dmkit', 'dmsetup', 'remove', 'b');
    expect(await exports()).toEqual([]);
  });

  test('a fork is read and written by nbdcopy and compared by qemu-img', async () => {
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    expect(await world.ok('dmkit', 'uri', 'dev')).toBe(`${uri('dev')}\n`);
    writeFileSync(world.path('other.img'), Buffer.alloc(4 * MIB, 'other bytes '));
    await world.ok('nbdcopy', '--flush', 'other.img', uri('dev'));
    expect(await world.ok('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', 'other.img', uri('dev'))).toContain(
      'identical',
    );
    expect(readFileSync(world.path('disk.img')).equals(Buffer.alloc(4 * MIB, 'origin. '))).toBe(true);
    expect(JSON.parse(await world.ok('nbdinfo', '--map=dmkit:changed', '--json', uri('dev')))).toMatchObject([
      { offset: 0, length: 4 * MIB, type: 1 },
    ]);
  });

  test('a fork with a client cannot be dropped, and the message says who has it', async () => {
    await world.ok('dmkit', 'fork', 'disk.img', 'dev');
    const disk = await (await mapper()).device('dev');
    const { status, stderr } = await world.dmkit('drop', 'dev');
    expect(status).toBe(1);
    expect(stderr).toMatch(/Cannot remove dev: it is open .*\nhint: it has \d+ NBD connections?/);
    await disk.close();
    await world.ok('dmkit', 'drop', 'dev');
  });
});

test('a client of the control socket that says nothing holds nobody up', async () => {
  await world.ok('dmkit', 'dmsetup', 'create', 'a', '--table', '0 8 zero');
  const silent = connect(world.path('run/control.sock'));
  await new Promise((connected) => silent.once('connect', connected));
  expect(await world.ok('dmkit', 'dmsetup', 'ls')).toContain('a\t');
  const { pid } = world;
  await world.ok('dmkit', 'down');
  silent.destroy();
  while (isRunning(pid)) await new Promise((turn) => setImmediate(turn));
});
