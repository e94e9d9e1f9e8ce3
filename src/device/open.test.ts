import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Disks, openDisk } from './open.ts';

let directory: string;
beforeEach(() => {
  directory = fs.realpathSync(fs.mkdtempSync(join(tmpdir(), 'dmkit-open-')));
  fs.writeFileSync(join(directory, 'disk.img'), new Uint8Array(4096));
});
afterEach(() => fs.rmSync(directory, { recursive: true }));

test('a file is one disk by its path, a relative path, a symbolic and a hard link', async () => {
  const disks = new Disks();
  const path = join(directory, 'disk.img');
  fs.symlinkSync(path, join(directory, 'symbolic'));
  fs.linkSync(path, join(directory, 'hard'));
  const identity = await disks.identify(path);
  expect(await disks.identify('disk.img', directory)).toBe(identity);
  expect(await disks.identify(join(directory, 'symbolic'))).toBe(identity);
  expect(await disks.identify('../hard', join(directory, 'any'))).toBe(identity);
  const device = await disks.open(identity, 'rw');
  expect(device.size).toBe(4096);
  await device.close();
});

test('another file is another disk', async () => {
  const disks = new Disks();
  fs.writeFileSync(join(directory, 'other.img'), new Uint8Array(4096));
  expect(await disks.identify('other.img', directory)).not.toBe(await disks.identify('disk.img', directory));
});

test.each([
  ['missing.img', 'DEVICE_NOT_FOUND'],
  ['disk.img/below', 'DEVICE_NOT_FOUND'],
  ['', 'DEVICE_NOT_FOUND'],
  ['nul\0byte', 'DEVICE_NOT_FOUND'],
  ['4095:1048575', 'DEVICE_NOT_FOUND'],
  ['.', 'NOT_A_DISK'],
  ['gopher://host/disk', 'UNKNOWN_SCHEME'],
])('%j leads to no disk', async (argument, code) => {
  await expect(new Disks().identify(argument, directory)).rejects.toMatchObject({ code, errno: 'ENODEV' });
});

test('an NBD URI is not taken for a relative path', async () => {
  expect(await new Disks().identify('nbd://localhost/disk.img', directory)).toMatch(/^nbd:\/\/localhost.*\/disk.img$/);
});

test('a disk in use is not opened to be read instead', async () => {
  const device = await openDisk(join(directory, 'disk.img'), 'rw');
  await expect(openDisk(join(directory, 'disk.img'), 'rw')).rejects.toMatchObject({ errno: 'EBUSY' });
  await device.close();
});
