import { fork, spawn } from 'node:child_process';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { directories, ensurePrivateDirectory } from './directories.ts';
import { lockHolder, lockInstance } from './instance-lock.ts';
import { LogFile } from './log-file.ts';
import { StateFile } from './state-file.ts';

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-life-'));
});

afterEach(() => {
  delete process.env.DMKIT_NO_FFI;
  rmSync(directory, { recursive: true });
});

describe('the directories', () => {
  test.each([
    [{}, 0, '/run/dmkit', '/var/lib/dmkit'],
    [{ HOME: '/h', XDG_RUNTIME_DIR: '/run/user/7' }, 7, '/run/user/7/dmkit', '/h/.local/state/dmkit'],
    [{ HOME: '/h', XDG_STATE_HOME: '/s' }, 7, join(tmpdir(), 'dmkit-7'), '/s/dmkit'],
    [{ DMKIT_DIR: '/a', DMKIT_STATE: '/b/' }, 0, '/a', '/b'],
  ])('from %j of user %i', (env, uid, run, state) => {
    expect(directories(env, uid)).toEqual({ run, state });
  });

  test('are made with mode 0700', () => {
    ensurePrivateDirectory(join(directory, 'a', 'b'));
    expect(statSync(join(directory, 'a', 'b')).mode & 0o777).toBe(0o700);
  });

  test('are refused where others may write', () => {
    mkdirSync(join(directory, 'open'));
    symlinkSync('/tmp', join(directory, 'tmp'));
    expect(() => ensurePrivateDirectory(join(directory, 'tmp'))).toThrow(/others may write/);
  });

  test('are refused where a file is in the way', () => {
    writeFileSync(join(directory, 'file'), '');
    expect(() => ensurePrivateDirectory(join(directory, 'file'))).toThrow(/Cannot make the directory .*file: /);
  });

  test('are refused at once where none can be made', () => {
    expect(() => ensurePrivateDirectory('/proc/dmkit/x')).toThrow(/Cannot make the directory \/proc\/dmkit\/x: /);
  });
});

describe.each([
  ['flock', ''],
  ['link', '1'],
])('the lock by %s', (_name, noFfi) => {
  beforeEach(() => {
    process.env.DMKIT_NO_FFI = noFfi;
  });

  test('is held once, names its holder, and can be had again after its release', () => {
    expect(lockHolder(directory)).toBeUndefined();
    const lock = lockInstance(directory);
    expect(() => lockInstance(directory)).toThrow(`a daemon with pid ${process.pid} runs with ${directory}`);
    expect(lockHolder(directory)).toBe(process.pid);
    lock.release();
    expect(lockHolder(directory)).toBeUndefined();
    lockInstance(directory).release();
  });

  test('is free again after its holder was killed', async () => {
    const script = join(directory, 'holder.mjs');
    writeFileSync(script, `process.send('up'); setInterval(() => {}, 1e6);`);
    const holder = fork(script);
    await new Promise((up) => holder.once('message', up));
    writeFileSync(join(directory, 'daemon.lock.pid'), `${holder.pid} 0\n`);
    writeFileSync(join(directory, 'daemon.lock'), `${holder.pid} 0\n`);
    holder.kill('SIGKILL');
    await new Promise((gone) => holder.once('exit', gone));
    lockInstance(directory).release();
    expect(readdirSync(directory).filter((name) => name.includes('stale'))).toEqual([]);
  });

  test('is free when its pid belongs to another process by now', () => {
    for (const name of ['daemon.lock.pid', 'daemon.lock']) writeFileSync(join(directory, name), `${process.pid} 1\n`);
    expect(lockHolder(directory)).toBeUndefined();
    lockInstance(directory).release();
  });

  test('is free when its holder has ended, though nobody has asked for its status', async () => {
    // The sleep that takes the place of the shell never asks.
    const parent = spawn('sh', ['-c', 'sleep 1000 & echo $!; exec sleep 1000']);
    try {
      const pid = Number(await new Promise((told) => parent.stdout.once('data', told)));
      while (readFileSync(`/proc/${parent.pid}/comm`, 'utf8') !== 'sleep\n') await turn();
      const stat = () => readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
      const holder = `${pid} ${stat()[19]}\n`;
      for (const name of ['daemon.lock.pid', 'daemon.lock']) writeFileSync(join(directory, name), holder);
      expect(lockHolder(directory)).toBe(pid);
      process.kill(pid, 'SIGKILL');
      while (stat()[0] !== 'Z') await turn();
      expect(lockHolder(directory)).toBeUndefined();
      lockInstance(directory).release();
    } finally {
      parent.kill('SIGKILL');
    }
  });
});

describe('the state file', () => {
  test('gives back what was saved last, and undefined before the first save', async () => {
    const file = new StateFile<{ n: number }>(directory);
    expect(await file.load()).toBeUndefined();
    await file.save(() => ({ n: 1 }));
    await file.save(() => ({ n: 2 }));
    expect(await new StateFile(directory).load()).toEqual({ n: 2 });
    expect(statSync(file.path).mode & 0o777).toBe(0o600);
    expect(readdirSync(directory)).toEqual(['state.json']);
  });

  test('has the newest content when each of many saves settles, and writes fewer times than it is asked', async () => {
    const file = new StateFile<number>(directory);
    let now = 0;
    let asked = 0;
    const content = () => {
      asked++;
      return now;
    };
    const saves: Promise<void>[] = [];
    for (let i = 1; i <= 50; i++) {
      now = i;
      saves.push(
        file.save(content).then(async () => {
          const saved = JSON.parse(readFileSync(file.path, 'utf8')).state;
          expect(saved).toBeGreaterThanOrEqual(i);
        }),
      );
    }
    await Promise.all(saves);
    expect(asked).toBe(2);
  });

  test.each([
    ['', 'Unexpected end'],
    ['{"version":1', ''],
    ['null', 'no JSON object'],
    ['{"version":1}', 'no JSON object'],
  ])('with %j in it is refused with what to do, and stays as it is', async (text, why) => {
    const file = new StateFile(directory);
    writeFileSync(file.path, text);
    await expect(file.load()).rejects.toMatchObject({
      code: 'STATE_CORRUPT',
      message: expect.stringContaining(why),
      hint: expect.stringContaining(`mv ${file.path}`),
    });
    expect(readFileSync(file.path, 'utf8')).toBe(text);
  });

  test('of a newer dmkit is refused', async () => {
    const file = new StateFile(directory);
    writeFileSync(file.path, '{"version":2,"state":{}}');
    await expect(file.load()).rejects.toMatchObject({ code: 'STATE_VERSION', message: /version 2/ });
  });

  test('that cannot be written fails the save, and the next save tries again', async () => {
    const file = new StateFile<number>(directory);
    mkdirSync(`${file.path}.new`);
    await expect(file.save(() => 1)).rejects.toMatchObject({ message: /Cannot save the tables/ });
    rmSync(`${file.path}.new`, { recursive: true });
    await file.save(() => 1);
    expect(await new StateFile(directory).load()).toBe(1);
  });
});

test('the log begins anew when it is full and keeps the one before', () => {
  const log = new LogFile(directory, 200);
  for (let i = 0; i < 20; i++) log.write(`line ${i}\nand more`);
  log.close();
  expect(statSync(join(directory, 'dmkit.log')).size).toBeLessThanOrEqual(200);
  expect(statSync(join(directory, 'dmkit.log.1')).size).toBeLessThanOrEqual(200);
  expect(readFileSync(join(directory, 'dmkit.log'), 'utf8')).toMatch(/Z line 19\n {4}and more\n$/);
});
