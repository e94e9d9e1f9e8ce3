import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { NbdDevice } from '../device/nbd.ts';
import { bytes } from '../units.ts';
import { DeviceMapper } from './index.ts';

const MIB = 1024 * 1024;
let directory: string;
let image: string;
let dm: DeviceMapper;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-api-'));
  image = join(directory, 'disk.img');
  writeFileSync(image, Buffer.alloc(MIB, 'origin. '));
  dm = await DeviceMapper.open();
});

afterEach(async () => {
  await dm.close();
  rmSync(directory, { recursive: true });
});

test('forks, writes at any byte, tells what differs, reverts and drops, without a daemon', async () => {
  const { cow } = await dm.fork(image, 'dev');
  const fork = await dm.device('dev');
  const origin = await dm.device('disk');
  expect([fork.size, fork.blockSize, fork.readOnly]).toEqual([MIB, 512, false]);
  await fork.write(1000, Buffer.from('a few bytes'));
  await fork.flush();
  expect((await fork.read(998, 15)).toString()).toBe('. a few bytesgi');
  expect((await origin.read(998, 15)).toString()).toBe('. origin. origi');
  expect((await dm.diff('dev')).ranges).toEqual([{ start: 512, length: 512 }]);
  await fork.writeZeroes(0, 100);
  expect((await fork.read(99, 2)).toString()).toBe('\0i');
  await dm.revert({ name: 'dev' });
  expect((await fork.read(0, MIB)).equals(readFileSync(image))).toBe(true);
  await expect(dm.drop('dev')).rejects.toMatchObject({ errno: 'EBUSY' });
  await fork.close();
  await origin.close();
  await dm.drop('dev');
  expect(existsSync(cow!)).toBe(false);
});

test('serves what it has over a Unix socket and over TCP', async () => {
  const local = await dm.serve({ socket: join(directory, 'nbd.sock') });
  const tcp = await dm.serve({ port: 0 });
  expect(tcp.port).toBeGreaterThan(0);
  const fork = await dm.fork(image, 'dev');
  expect(fork.uri).toBe(local.uri('dev'));
  for (const uri of [local.uri('dev'), tcp.uri('dev')]) {
    const client = await NbdDevice.open(uri);
    const sector = Buffer.alloc(512);
    await client.read(bytes(0), sector, 0, 512);
    expect(sector.toString('latin1', 0, 8)).toBe('origin. ');
    await client.close();
  }
});

test('serves over TLS when it has a certificate', async () => {
  const certificates = join(import.meta.dirname, '../../test/fixtures/tls');
  const tls = { cert: join(certificates, 'server-cert.pem'), key: join(certificates, 'server-key.pem') };
  const { uri } = await dm.serve({ port: 0, tls });
  await dm.fork(image, 'dev');
  expect(uri('dev')).toMatch(/^nbds:/);
  const client = await NbdDevice.open(`${uri('dev')}?tls-certificates=${certificates}&tls-hostname=localhost`);
  const sector = Buffer.alloc(512);
  await client.read(bytes(0), sector, 0, 512);
  expect(sector.toString('latin1', 0, 8)).toBe('origin. ');
  await client.close();
});

test('takes every call of the control interface', async () => {
  await dm.create('z', { uuid: 'U' });
  await dm.load({ name: 'z' }, [{ start: 0, length: 8, type: 'zero', args: '' }]);
  await dm.resume({ uuid: 'U' });
  expect((await dm.list()).map(({ name, size }) => [name, size])).toEqual([['z', 4096]]);
  const waiting = dm.wait({ name: 'z' }, 0);
  await dm.rename({ name: 'z' }, 'y');
  expect(await waiting).toMatchObject({ name: 'y', eventNumber: 1 });
});

test('opens a COW file of before again', async () => {
  await dm.fork(image, 'dev');
  const fork = await dm.device('dev');
  await fork.write(0, Buffer.from('kept'));
  await fork.close();
  await dm.close();
  dm = await DeviceMapper.open();
  expect(await dm.fork(image, 'dev')).toMatchObject({ reopened: true });
  expect((await (await dm.device('dev')).read(0, 4)).toString()).toBe('kept');
});

test('says what a file holds', async () => {
  await dm.fork(image, 'dev', { chunkSize: 8192 });
  expect(await dm.inspect(join(directory, 'dev.cow'))).toMatchObject({
    format: 'snapshot COW store',
    cow: { valid: true, chunkSize: 8192, exceptions: 0, problems: [] },
  });
  expect(await dm.inspect(image)).toMatchObject({ kind: 'unknown', blank: false, size: MIB });
  await expect(dm.inspect(join(directory, 'none'))).rejects.toMatchObject({ code: 'DEVICE_NOT_FOUND' });
});

test('refuses what lies beyond the device, and what was closed', async () => {
  await dm.fork(image, 'dev');
  const fork = await dm.device('dev');
  await expect(fork.read(MIB, 1)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
  await expect(fork.write(-1, Buffer.alloc(1))).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
  await fork.close();
  await fork.close();
  await expect(fork.read(0, 1)).rejects.toMatchObject({ code: 'CLOSED' });
  await expect(dm.device('none')).rejects.toMatchObject({ errno: 'ENXIO' });
});
