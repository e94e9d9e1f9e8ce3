/** Needs root, mount (tmpfs) and util-linux `flock`. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { FileDevice } from '../../src/device/file.ts';
import { openDisk } from '../../src/device/open.ts';
import { bytes } from '../../src/units.ts';
import { deviceSuite } from '../support/device-suite.ts';

const MIB = 2 ** 20;

function mountTmpfs(size: string): string {
  const directory = fs.realpathSync(fs.mkdtempSync(join(tmpdir(), 'dmkit-tmpfs-')));
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'dmkit-test', directory]);
  return directory;
}

function unmount(directory: string): void {
  execFileSync('umount', [directory]);
  fs.rmdirSync(directory);
}

deviceSuite('a file on tmpfs', async () => {
  const directory = mountTmpfs('16m');
  const path = join(directory, 'disk.img');
  fs.writeFileSync(path, new Uint8Array(6 * MIB).fill(0x5a));
  return { device: await FileDevice.open(path, 'rw'), cleanup: () => unmount(directory) };
});

describe.each([
  ['with koffi', '0'],
  ['without koffi', '1'],
])('on a small tmpfs %s', (_title, noFfi) => {
  let directory: string;
  let path: string;
  let device: FileDevice | undefined;
  beforeEach(() => {
    vi.stubEnv('DMKIT_NO_FFI', noFfi);
    directory = mountTmpfs('1m');
    path = join(directory, 'cow.img');
    fs.writeFileSync(path, '');
    fs.truncateSync(path, 4 * MIB);
  });
  afterEach(async () => {
    vi.unstubAllEnvs();
    await device?.close();
    device = undefined;
    unmount(directory);
  });

  test('a full filesystem fails the write that finds it full, and no other', async () => {
    fs.writeFileSync(join(directory, 'ballast'), new Uint8Array(512 * 1024));
    device = await FileDevice.open(path, 'rw');
    const data = new Uint8Array(65536).fill(0x77);
    let written = 0;
    let failed: unknown;
    try {
      for (; written < 4 * MIB; written += data.length) await device.write(bytes(written), data, 0, data.length);
    } catch (error) {
      failed = error;
    }
    expect(failed).toMatchObject({ code: 'NO_SPACE', errno: 'ENOSPC', hint: `make room: df -h ${directory}` });
    expect((failed as Error).message).toContain(`${path}: the filesystem is full`);
    expect(written).toBeGreaterThan(0);
    const back = new Uint8Array(written);
    await device.read(bytes(0), back, 0, written);
    expect(back.every((byte) => byte === 0x77)).toBe(true);
    fs.unlinkSync(join(directory, 'ballast'));
    await device.write(bytes(written), data, 0, data.length);
    await device.flush();
  });

  test('a read never waits, because the pages are the disk', async () => {
    fs.writeFileSync(path, new Uint8Array(65536).fill(3));
    device = await FileDevice.open(path, 'r');
    const into = new Uint8Array(65536);
    expect(device.read(bytes(0), into, 0, 65536)).toBeUndefined();
    expect(into.every((byte) => byte === 3)).toBe(true);
  });

  test('a file that must not be written is opened to be read, and stays so', async () => {
    execFileSync('mount', ['-o', 'remount,ro', directory]);
    await expect(FileDevice.open(path, 'rw')).rejects.toMatchObject({ code: 'SYSTEM_EROFS', errno: 'EROFS' });
    device = (await openDisk(path, 'rw')) as FileDevice;
    expect(device.readOnly).toBe(true);
    await device.allowWrites();
    expect(device.readOnly).toBe(true);
    await device.read(bytes(0), new Uint8Array(512), 0, 512);
  });

  test('the lock keeps out others who lock, and names a holder that holds it by a program that has gone', async () => {
    const tryLock = (option: string) => spawnSync('flock', ['-n', option, path, 'true']).status;
    device = await FileDevice.open(path, 'rw');
    expect(tryLock('-s')).toBe(1);
    await expect(FileDevice.open(path, 'r')).rejects.toThrow('this process has it open');
    await device.close();
    device = await FileDevice.open(path, 'r');
    expect(tryLock('-s')).toBe(0);
    expect(tryLock('-x')).toBe(1);
    await device.allowWrites();
    expect(tryLock('-s')).toBe(1);
    await device.close();
    device = undefined;
    expect(tryLock('-x')).toBe(0);
  });

  test('names another program that holds the lock', async () => {
    const holder = spawn('flock', ['-x', path, 'sh', '-c', 'echo locked; read line'], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    await once(holder.stdout, 'data');
    const opened = FileDevice.open(path, 'r');
    await expect(opened).rejects.toMatchObject({ code: 'DEVICE_IN_USE', errno: 'EBUSY' });
    await expect(opened).rejects.toThrow(`flock (pid ${holder.pid}) has it open`);
    const ended = once(holder, 'exit');
    holder.stdin.end();
    await ended;
    device = await FileDevice.open(path, 'rw');
  });
});
