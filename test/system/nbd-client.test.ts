/** The client with the servers people use. Needs qemu-nbd and qemu-img (qemu-utils), nbdkit. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { NbdDevice } from '../../src/device/nbd.ts';
import { bytes } from '../../src/units.ts';
import { deviceSuite } from '../support/device-suite.ts';

const MiB = 2 ** 20;
let directory: string;
const running = new Set<ChildProcess>();

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-client-'));
});
afterAll(async () => {
  await Promise.all([...running].map((child) => kill(child)));
  rmSync(directory, { recursive: true });
});

interface Started {
  uri: string;
  child: ChildProcess;
}

/** Resolves when the program takes connections; rejects when it ends before. */
async function started(program: string, words: string[], socket: string, exportName = ''): Promise<Started> {
  const child = spawn(program, words, { stdio: ['ignore', 'ignore', 'pipe'] });
  running.add(child);
  let errors = '';
  child.stderr.on('data', (text) => (errors += text));
  let ended: Error | undefined;
  child.on('error', (error) => (ended = error));
  child.on('exit', (code) => {
    running.delete(child);
    ended ??= new Error(`${program} ended with ${code}: ${errors}`);
  });
  // The socket's file is there before the server listens.
  while (!(await answers(socket))) {
    if (ended) throw ended;
    await new Promise((resolve) => setImmediate(resolve));
  }
  return { uri: `nbd+unix:///${exportName}?socket=${socket}`, child };
}

function answers(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(socket);
    probe.once('connect', () => resolve(true)).once('error', () => resolve(false));
    probe.once('connect', () => probe.destroy());
  });
}

async function kill(child: ChildProcess, signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once('exit', resolve));
  child.kill(signal);
  await ended;
}

let sockets = 0;
const newSocket = () => join(directory, `s${sockets++}`);

function nbdkit(...words: string[]): Promise<Started> {
  const socket = newSocket();
  return started('nbdkit', ['--foreground', '--exit-with-parent', '--unix', socket, ...words], socket);
}

function qemuNbd(image: string, format: string, ...words: string[]): Promise<Started> {
  const socket = newSocket();
  const all = ['--persistent', `--format=${format}`, `--socket=${socket}`, '--shared=4', ...words, image];
  return started('qemu-nbd', all, socket);
}

function newImage(format: string, size: string, ...options: string[]): string {
  const path = join(directory, `image${sockets++}.${format}`);
  execFileSync('qemu-img', ['create', '-q', '-f', format, ...options, path, size]);
  return path;
}

const suite = (name: string, start: () => Promise<Started>) =>
  deviceSuite(name, async () => {
    const { uri, child } = await start();
    return { device: await NbdDevice.open(uri), cleanup: () => kill(child) };
  });

suite('an export of nbdkit memory', () => nbdkit('memory', '8M'));
suite('a raw image of qemu-nbd', () =>
  qemuNbd(newImage('raw', '8M'), 'raw', '--discard=unmap', '--detect-zeroes=unmap'));
// With clusters larger than a sector, qemu-nbd 7.2 itself loses writes that run beside unmapping zeroes in the same cluster
// (qemu-io as the client shows it as well).
suite('a qcow2 image of qemu-nbd', () =>
  qemuNbd(newImage('qcow2', '8M', '-o', 'cluster_size=512'), 'qcow2', '--discard=unmap'));
suite('a server without structured replies', () => nbdkit('--no-sr', 'memory', '8M'));
suite('a server that takes 64 KiB at once', () =>
  nbdkit(
    '--filter=blocksize-policy',
    'memory',
    '8M',
    'blocksize-minimum=512',
    'blocksize-preferred=4096',
    'blocksize-maximum=64K',
    'blocksize-error-policy=error',
  ));
suite('a server with blocks of 4096 bytes', () =>
  nbdkit(
    '--filter=blocksize-policy',
    'memory',
    '8M',
    'blocksize-minimum=4096',
    'blocksize-preferred=4096',
    'blocksize-maximum=1M',
    'blocksize-error-policy=error',
  ));
suite('a server that cannot zero or trim', () =>
  nbdkit('--filter=nozero', '--filter=readahead', '--filter=nocache', 'memory', '8M'));

const certificates = join(import.meta.dirname, '../fixtures/tls');
const secure = (uri: string, directory = certificates) =>
  `${uri.replace('nbd+', 'nbds+')}&tls-certificates=${directory}`;
const nbdkitTls = (...words: string[]) =>
  nbdkit('--tls=require', `--tls-certificates=${certificates}`, '--tls-verify-peer', ...words);
suite('nbdkit over TLS', async () => {
  const { uri, child } = await nbdkitTls('memory', '8M');
  return { uri: secure(uri), child };
});

const open = async (uri: string, ...rest: [mode?: 'r' | 'rw', options?: { giveUpMs?: number }]) => {
  const device = await NbdDevice.open(uri, ...rest);
  onTestFinished(() => device.close());
  return device;
};
const read = async (device: NbdDevice, at: number, length: number) => {
  const data = Buffer.alloc(length, 0xee);
  await device.read(bytes(at), data, 0, length);
  return data;
};

describe('NbdDevice', () => {
  it('finds the holes of a qcow2 image', async () => {
    const { uri } = await qemuNbd(newImage('qcow2', '8M'), 'qcow2', '--discard=unmap');
    const device = await open(uri);
    await device.write(bytes(2 * MiB), Buffer.alloc(65536, 1), 0, 65536);
    expect(await device.extents(bytes(0), 8 * MiB)).toEqual([
      { length: 2 * MiB, hole: true, zero: true },
      { length: 65536, hole: false, zero: false },
      { length: 6 * MiB - 65536, hole: true, zero: true },
    ]);
  });

  it('knows a read-only export', async () => {
    const device = await open((await nbdkit('--readonly', 'pattern', '1M')).uri);
    expect(device.readOnly).toBe(true);
    expect((await read(device, 4096, 16)).readBigUInt64BE(8)).toBe(4104n);
  });

  it('opens an export by name, and says which is missing', async () => {
    const image = newImage('raw', '1M');
    const { uri } = await qemuNbd(image, 'raw', '--export-name=the disk');
    const named = uri.replace('///', '///the%20disk');
    expect((await open(named)).size).toBe(MiB);
    await expect(NbdDevice.open(uri.replace('///', '///other'))).rejects.toMatchObject({ code: 'NBD_EXPORT' });
  });

  it('passes on the errors of a failing server', async () => {
    const trigger = join(directory, 'fail');
    const { uri } = await nbdkit(
      '--filter=error',
      'memory',
      '1M',
      'error=ENOSPC',
      `error-file=${trigger}`,
      'error-rate=100%',
    );
    const device = await open(uri);
    await device.write(bytes(0), Buffer.alloc(512), 0, 512);
    writeFileSync(trigger, '');
    await expect(device.write(bytes(0), Buffer.alloc(512), 0, 512)).rejects.toMatchObject({
      code: 'NBD_REMOTE',
      errno: 'ENOSPC',
    });
    rmSync(trigger);
    await device.write(bytes(0), Buffer.alloc(512), 0, 512);
  });

  it('speaks TLS with qemu-nbd', async () => {
    const creds = `tls-creds-x509,id=tls,endpoint=server,dir=${certificates},verify-peer=yes`;
    const { uri } = await qemuNbd(newImage('raw', '8M'), 'raw', '--object', creds, '--tls-creds=tls');
    const device = await open(secure(uri));
    await device.write(bytes(4096), Buffer.alloc(65536, 7), 0, 65536);
    expect(await read(device, 4096, 65536)).toEqual(Buffer.alloc(65536, 7));
    await device.flush();
  });

  it('is refused by a server whose authority did not sign its certificate, and refuses such a server', async () => {
    const { uri } = await nbdkitTls('memory', '1M');
    await expect(NbdDevice.open(secure(uri, join(certificates, 'stranger')))).rejects.toMatchObject({
      code: 'NBD_TLS',
    });
    await expect(NbdDevice.open(uri)).rejects.toMatchObject({ code: 'NBD_TLS' });
    const mixed = join(directory, 'mixed');
    cpSync(join(certificates, 'stranger'), mixed, { recursive: true });
    cpSync(join(certificates, 'ca-cert.pem'), join(mixed, 'ca-cert.pem'));
    await expect(NbdDevice.open(secure(uri, mixed))).rejects.toMatchObject({ code: expect.stringMatching(/^NBD_/) });
    await expect(NbdDevice.open(secure((await nbdkit('memory', '1M')).uri))).rejects.toMatchObject({
      code: 'NBD_TLS',
      errno: 'EOPNOTSUPP',
    });
  });

  it('refuses a size that is no multiple of 512', async () => {
    await expect(NbdDevice.open((await nbdkit('memory', '1000')).uri)).rejects.toMatchObject({ code: 'NBD_SIZE' });
  });

  it('goes on when the server is killed and started again', async () => {
    const image = newImage('raw', '8M');
    const socket = newSocket();
    const words = ['--persistent', '--format=raw', `--socket=${socket}`, image];
    const first = await started('qemu-nbd', words, socket);
    const device = await open(first.uri);
    const expected = Buffer.alloc(8 * MiB);
    for (let i = 0; i < 64; i++) {
      expected.fill(i + 1, i * 4096, (i + 1) * 4096);
      await device.write(bytes(i * 4096), expected, i * 4096, 4096);
    }
    await device.flush();
    const writes = [];
    for (let i = 64; i < 1024; i++) {
      expected.fill(i + 1, i * 4096, (i + 1) * 4096);
      writes.push(device.write(bytes(i * 4096), expected, i * 4096, 4096));
    }
    await kill(first.child);
    rmSync(socket, { force: true });
    const reads = read(device, 0, 64 * 4096);
    await started('qemu-nbd', words, socket);
    await Promise.all(writes);
    expect((await reads).equals(expected.subarray(0, 64 * 4096))).toBe(true);
    expect((await read(device, 0, 8 * MiB)).equals(expected)).toBe(true);
  });

  it('fails the flush after a killed server took unflushed writes with it', async () => {
    const words = ['--foreground', '--exit-with-parent', 'memory', '1M'];
    const socket = newSocket();
    const first = await started('nbdkit', ['--unix', socket, ...words], socket);
    const device = await open(first.uri);
    await device.write(bytes(0), Buffer.alloc(512, 1), 0, 512);
    await kill(first.child);
    rmSync(socket, { force: true });
    await started('nbdkit', ['--unix', socket, ...words], socket);
    expect(await read(device, 0, 512)).toEqual(Buffer.alloc(512));
    await expect(device.flush()).rejects.toMatchObject({ code: 'NBD_WRITES_LOST', errno: 'EIO' });
  });

  it('gives up on a server that stays away', async () => {
    const { uri, child } = await nbdkit('memory', '1M');
    const device = await open(uri, 'rw', { giveUpMs: 100 });
    await kill(child);
    await expect(read(device, 0, 512)).rejects.toMatchObject({ code: 'NBD_GONE', errno: 'EIO' });
  });
});
