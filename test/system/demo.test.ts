/** What a newcomer runs first. */
import { spawn } from 'node:child_process';
import { mkdirSync, readdirSync, symlinkSync } from 'node:fs';
import { dirname } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { isRunning, PROGRAM, World } from './program.ts';

let world: World;

beforeEach(() => {
  world = new World();
  world.env.TMPDIR = world.directory;
});

afterEach(() => world.close());

const CLAIMS = /\nAll 14 claims hold\. Nothing is left behind\.\n$/;

test('npm start shows a fork of an ext4 image, and leaves nothing behind', async () => {
  const { status, stdout } = await world.exec('npm', ['--prefix', dirname(dirname(PROGRAM)), 'start']);
  expect(stdout).toMatch(CLAIMS);
  expect(stdout).toContain('an ext4 file system');
  expect(status).toBe(0);
  // npm keeps a cache of compiled code where it is told that temporary files go.
  expect(readdirSync(world.directory).filter((name) => name.startsWith('dmkit'))).toEqual([]);
});

test('without mkfs.ext4 it brings an image of its own', async () => {
  mkdirSync(world.path('bin'));
  symlinkSync(process.execPath, world.path('bin/node'));
  // Even /usr/sbin, where it would look, has none: in a mount namespace of its own it is empty.
  const { status, stdout, stderr } = await world.exec('unshare', [
    '--mount',
    'bash',
    '-c',
    'mount -t tmpfs none "$(dirname "$(readlink -f "$(command -v mkfs.ext4)")")" && PATH=$1 exec node "$2" demo',
    'bash',
    world.path('bin'),
    PROGRAM,
  ]);
  expect(stderr).toBe('');
  expect(stdout).toContain('a FAT file system');
  expect(stdout).toMatch(CLAIMS);
  expect(status).toBe(0);
});

test.each(['SIGINT', 'SIGTERM'] as const)('%s in the middle ends it, and leaves nothing behind', async (signal) => {
  const child = spawn(PROGRAM, ['demo'], { env: world.env, stdio: ['ignore', 'pipe', 'inherit'] });
  let printed = '';
  let pid = 0;
  child.stdout.on('data', (part) => {
    printed += part;
    if (pid === 0 && printed.includes('the fork reads as the image')) {
      const [demo] = readdirSync(world.directory).filter((name) => name.startsWith('dmkit-demo'));
      pid = world.pidIn(world.path(demo, 'run'));
      child.kill(signal);
    }
  });
  const status = await new Promise((ended) => child.on('close', ended));
  expect(pid).toBeGreaterThan(0);
  expect(status).not.toBe(0);
  // It has answered, and ends; it is no child of ours.
  while (isRunning(pid)) await turn();
  expect(readdirSync(world.directory).filter((name) => name.startsWith('dmkit'))).toEqual([]);
});
