/** Needs root, losetup, mkfs.ext4 and mount. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { KernelDisk } from '../../src/device/kernel-disk.ts';
import { Disks, openDisk } from '../../src/device/open.ts';
import { bytes } from '../../src/units.ts';
import { deviceSuite } from '../support/device-suite.ts';

const MIB = 2 ** 20;
const run = (program: string, ...words: string[]) => execFileSync(program, words, { encoding: 'utf8' }).trim();

interface Loop {
  node: string;
  file: string;
  detach(): void;
}

function attach(size: number, ...options: string[]): Loop {
  const directory = fs.mkdtempSync(join(tmpdir(), 'dmkit-loop-'));
  const file = join(directory, 'disk.img');
  fs.writeFileSync(file, new Uint8Array(size).fill(0xa5));
  const node = run('losetup', '--find', '--show', ...options, file);
  return {
    node,
    file,
    detach() {
      run('losetup', '--detach', node);
      fs.rmSync(directory, { recursive: true });
    },
  };
}

async function onLoop(...options: string[]) {
  const loop = attach(6 * MIB, ...options);
  return { device: await KernelDisk.open(loop.node, 'rw'), cleanup: loop.detach };
}

deviceSuite('a loop device', () => onLoop());
deviceSuite('a loop device with 4096-byte blocks', () => onLoop('--sector-size', '4096'));
describe('without koffi', () => {
  beforeAll(() => vi.stubEnv('DMKIT_NO_FFI', '1'));
  afterAll(() => vi.unstubAllEnvs());
  deviceSuite('a loop device', () => onLoop());
});

describe.each([
  ['with koffi', '0'],
  ['without koffi', '1'],
])('a kernel disk %s', (_title, noFfi) => {
  const ffi = noFfi === '0';
  let loop: Loop;
  let device: KernelDisk | undefined;

  beforeEach(() => {
    vi.stubEnv('DMKIT_NO_FFI', noFfi);
    loop = attach(8 * MIB);
  });
  afterEach(async () => {
    await device?.close();
    device = undefined;
    loop.detach();
    vi.unstubAllEnvs();
  });

  const numbers = () => fs.readFileSync(`/sys/class/block/${loop.node.slice('/dev/'.length)}/dev`, 'utf8').trim();

  test('is named by its number and has its size and block size', async () => {
    device = await KernelDisk.open(loop.node, 'r');
    expect(device).toMatchObject({ name: numbers(), path: loop.node, size: 8 * MIB, blockSize: 512, readOnly: true });
  });

  test('notices that it grew', async () => {
    device = await KernelDisk.open(loop.node, 'r');
    fs.truncateSync(loop.file, 12 * MIB);
    expect(device.size).toBe(8 * MIB);
    run('losetup', '--set-capacity', loop.node);
    expect(device.size).toBe(12 * MIB);
  });

  test('answers at once what the page cache holds', async () => {
    device = await KernelDisk.open(loop.node, 'r');
    const into = new Uint8Array(4096);
    await device.read(bytes(MIB), into, 0, 4096);
    const wait = device.read(bytes(MIB), into, 0, 4096);
    if (ffi) expect(wait).toBeUndefined();
    await wait;
    expect(into.every((byte) => byte === 0xa5)).toBe(true);
  });

  test('gives space back where it can, and keeps it for zeroes that must stay', async () => {
    device = await KernelDisk.open(loop.node, 'rw');
    expect(device.canDiscard).toBe(ffi);
    const blocks = () => fs.statSync(loop.file).blocks;
    const before = blocks();
    await device.writeZeroes(bytes(0), 4 * MIB, false);
    await device.flush();
    expect(blocks()).toBeGreaterThanOrEqual(before);
    if (!ffi) return;
    await device.writeZeroes(bytes(0), 2 * MIB, true);
    expect(blocks()).toBeLessThanOrEqual(before - (2 * MIB) / 512 + 16);
    await device.discard(bytes(4 * MIB), 2 * MIB);
    expect(blocks()).toBeLessThanOrEqual(before - (4 * MIB) / 512 + 16);
  });

  test('is claimed by who writes', async () => {
    device = await KernelDisk.open(loop.node, 'rw');
    await expect(KernelDisk.open(loop.node, 'rw')).rejects.toMatchObject({ code: 'DEVICE_IN_USE', errno: 'EBUSY' });
    const reader = await KernelDisk.open(loop.node, 'r');
    await expect(reader.allowWrites()).rejects.toMatchObject({ code: 'DEVICE_IN_USE', errno: 'EBUSY' });
    expect(reader.readOnly).toBe(true);
    await reader.close();
  });

  test('is refused while it is mounted, and says where', async () => {
    run('mkfs.ext4', '-q', '-F', loop.node);
    const mountPoint = fs.mkdtempSync(join(tmpdir(), 'dmkit-mount-'));
    run('mount', loop.node, mountPoint);
    try {
      const opened = KernelDisk.open(loop.node, 'rw');
      await expect(opened).rejects.toMatchObject({ code: 'DEVICE_IN_USE', errno: 'EBUSY' });
      await expect(opened).rejects.toThrow(`mounted on ${mountPoint}`);
    } finally {
      run('umount', mountPoint);
      fs.rmdirSync(mountPoint);
    }
    device = await KernelDisk.open(loop.node, 'rw');
  });

  test('becomes writable in place', async () => {
    device = await KernelDisk.open(loop.node, 'r');
    const into = new Uint8Array(2 * MIB);
    const wait = device.read(bytes(0), into, 0, into.length);
    await device.allowWrites();
    await wait;
    await device.write(bytes(512), new Uint8Array(512).fill(1), 0, 512);
    await device.flush();
    expect(fs.readFileSync(loop.file).subarray(511, 514)).toEqual(Buffer.from([0xa5, 1, 1]));
  });

  test('is one disk by any of its names', async () => {
    const link = join(tmpdir(), `dmkit-link-${process.pid}`);
    fs.symlinkSync(loop.node, link);
    try {
      const disks = new Disks();
      const identity = await disks.identify(loop.node);
      expect(await disks.identify(link)).toBe(identity);
      expect(await disks.identify(numbers())).toBe(identity);
      const opened = await disks.open(identity, 'r');
      expect(opened.name).toBe(numbers());
      await opened.close();
      await expect(disks.identify('4095:1')).rejects.toMatchObject({ code: 'DEVICE_NOT_FOUND', errno: 'ENODEV' });
    } finally {
      fs.unlinkSync(link);
    }
  });
});

test('a read-only disk is not opened for writing, but to be read in its stead', async () => {
  const loop = attach(MIB, '--read-only');
  try {
    await expect(KernelDisk.open(loop.node, 'rw')).rejects.toMatchObject({ code: 'READ_ONLY', errno: 'EROFS' });
    const device = await openDisk(loop.node, 'rw');
    expect(device.readOnly).toBe(true);
    await device.allowWrites!();
    expect(device.readOnly).toBe(true);
    await device.close();
  } finally {
    loop.detach();
  }
});
