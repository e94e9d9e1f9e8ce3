/** The server with the clients people use. Needs nbdinfo and nbdcopy (libnbd-bin), qemu-img and qemu-io (qemu-utils), fio. */
import { execFile, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import type { BlockDevice } from '../../src/device/block-device.ts';
import { FileDevice } from '../../src/device/file.ts';
import { MemoryDevice } from '../../src/device/memory.ts';
import { CMD } from '../../src/formats/nbd/constants.ts';
import { NbdServer } from '../../src/services/nbd/server.ts';
import { tlsDirectory } from '../../src/services/nbd/tls.ts';
import { bytes } from '../../src/units.ts';
import { delayed, FixedExports, filled, MiB, RawClient, start } from '../unit/nbd-support.ts';

// Not synchronously: the server runs in this process.
const execute = promisify(execFile);
async function run(program: string, ...words: string[]): Promise<string> {
  const { stdout } = await execute(program, words, { maxBuffer: 64 * MiB });
  return stdout;
}

const dist = join(import.meta.dirname, '../../dist');
const SIZE = 64 * MiB;
const image = Buffer.alloc(SIZE);
filled(8 * MiB).read(bytes(0), image, 16 * MiB, 8 * MiB);
filled(MiB, 9).read(bytes(0), image, SIZE - MiB, MiB);

const contents = (device: MemoryDevice) => {
  const data = Buffer.alloc(device.size);
  device.read(bytes(0), data, 0, data.length);
  return data;
};

let directory: string;
let served: Awaited<ReturnType<typeof start>>;
let files: BlockDevice[];
const devices = {
  memory: new MemoryDevice(SIZE),
  slow: new MemoryDevice(SIZE),
  readOnly: new MemoryDevice(SIZE),
  big: new MemoryDevice(16 * 2 ** 40),
  blocks4096: new MemoryDevice(SIZE, { blockSize: 4096 }),
  snapshot: Object.assign(new MemoryDevice(SIZE), {
    changed: (at: number, length: number) =>
      [
        { length: bytes(Math.max(0, 16 * MiB - at)), changed: false },
        { length: bytes(Math.max(0, at + length - Math.max(at, 16 * MiB))), changed: true },
      ].filter((extent) => extent.length > 0),
  }),
};

const uri = (name: string) => served.uri(name);
const imagePath = () => join(directory, 'image');

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-tools-'));
  writeFileSync(imagePath(), image);
  for (const name of ['file', 'target'])
    writeFileSync(join(directory, name), name === 'file' ? image : Buffer.alloc(SIZE));
  const [file, target] = (files = [
    await FileDevice.open(join(directory, 'file'), 'rw'),
    await FileDevice.open(join(directory, 'target'), 'rw'),
  ]);
  devices.readOnly.write(bytes(0), image, 0, SIZE);
  devices.readOnly.readOnly = true;
  served = await start({ ...devices, slow: delayed(devices.slow, () => 2), file, target });
});

afterAll(async () => {
  await served.stop();
  for (const file of files) await file.close();
  rmSync(directory, { recursive: true });
});

describe('nbdinfo', () => {
  it('shows what is offered', async () => {
    const info = JSON.parse(await run('nbdinfo', '--json', uri('memory')));
    expect(info).toMatchObject({ protocol: 'newstyle-fixed', TLS: false, structured: true });
    expect(info.exports[0]).toMatchObject({
      'export-name': 'memory',
      description: 'memory of the test',
      'export-size': SIZE,
      is_read_only: false,
      can_cache: true,
      can_df: true,
      can_fast_zero: true,
      can_flush: true,
      can_fua: true,
      can_multi_conn: true,
      can_trim: true,
      can_zero: true,
      block_size_minimum: 512,
      block_size_preferred: 4096,
      block_size_maximum: 32 * MiB,
      contexts: ['base:allocation'],
    });
  });

  it('lists all exports', async () => {
    const { exports } = JSON.parse(await run('nbdinfo', '--list', '--json', uri('')));
    expect(exports.map((each: { 'export-name': string }) => each['export-name'])).toEqual(
      Object.keys({ ...devices, file: 0, target: 0 }),
    );
  });

  it('maps allocation, and what a snapshot changed', async () => {
    const map = async (context: string) =>
      JSON.parse(await run('nbdinfo', `--map=${context}`, '--json', uri('snapshot'))).map(
        ({ offset, length, type }: Record<string, number>) => [offset, length, type],
      );
    devices.snapshot.write(bytes(32 * MiB), image, 16 * MiB, MiB);
    expect(await map('base:allocation')).toEqual([
      [0, 32 * MiB, 3],
      [32 * MiB, MiB, 0],
      [33 * MiB, SIZE - 33 * MiB, 3],
    ]);
    expect(await map('dmkit:changed')).toEqual([
      [0, 16 * MiB, 0],
      [16 * MiB, SIZE - 16 * MiB, 1],
    ]);
  });

  it('says what is wrong with a name', async () => {
    await expect(run('nbdinfo', uri('nope'))).rejects.toThrow(/nope/);
  });
});

describe('nbdcopy', () => {
  it.each(['memory', 'slow', 'target', 'blocks4096'])('copies an image into %s and back', async (name) => {
    const back = join(directory, `back-${name}`);
    await run('nbdcopy', imagePath(), uri(name));
    await run('nbdcopy', uri(name), back);
    expect(readFileSync(back).equals(image)).toBe(true);
    rmSync(back);
  });

  it('copies between two exports over many connections', async () => {
    devices.snapshot.writeZeroes(bytes(0), SIZE);
    await run('nbdcopy', '--connections=4', '--requests=32', uri('file'), uri('snapshot'));
    expect(contents(devices.snapshot).equals(image)).toBe(true);
  });
});

describe('qemu', () => {
  it('converts qcow2 to an export and back, and finds them alike', async () => {
    const qcow = join(directory, 'image.qcow2');
    await run('qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', imagePath(), qcow);
    await run('qemu-img', 'convert', '-n', '-f', 'qcow2', '-O', 'raw', '-m', '16', '-W', qcow, uri('memory'));
    expect(contents(devices.memory).equals(image)).toBe(true);
    expect(await run('qemu-img', 'compare', '-f', 'qcow2', '-F', 'raw', qcow, uri('memory'))).toMatch(/identical/);
    expect(await run('qemu-img', 'compare', '-f', 'raw', '-F', 'raw', uri('readOnly'), uri('memory'))).toMatch(
      /identical/,
    );
  });

  it('maps holes and data', async () => {
    const map = JSON.parse(await run('qemu-img', 'map', '-f', 'raw', '--output=json', uri('file')));
    const data = map.filter((extent: { zero: boolean }) => !extent.zero);
    expect(data.length).toBeGreaterThan(0);
    expect(map.reduce((sum: number, { length }: { length: number }) => sum + length, 0)).toBe(SIZE);
  });

  it('reads, writes, zeroes and discards at any byte', async () => {
    const commands = [
      'write -P 5 1000 70001',
      'read -P 5 1000 70001',
      'write -z 2000 9000',
      'read -P 0 2000 9000',
      'read -P 5 11000 100',
    ];
    commands.push(
      'write -f -P 6 1M 64k',
      'read -P 6 1M 64k',
      'discard 1M 64k',
      'write -z -u 2M 1M',
      'aio_write -P 8 4M 1M',
      'aio_flush',
      'flush',
      'read -P 8 4M 1M',
    );
    const output = await run('qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri('memory'));
    expect(output).not.toMatch(/fail|error|Pattern/i);
    expect(output.match(/^(read|wrote|discard)/gm)).toHaveLength(11);
  });

  it('is refused a write to a read-only export', async () => {
    await expect(run('qemu-io', '-f', 'raw', '-c', 'write 0 512', uri('readOnly'))).rejects.toThrow(
      /read-only|permission/i,
    );
  });

  it('reads and writes at the end of 16 TiB', async () => {
    const at = `${16 * 2 ** 40 - 4096}`;
    const output = await run(
      'qemu-io',
      '-f',
      'raw',
      '-c',
      `write -P 3 ${at} 4096`,
      '-c',
      `read -P 3 ${at} 4096`,
      uri('big'),
    );
    expect(output).not.toMatch(/fail|Pattern/);
  });
});

describe('fio', () => {
  it.each([
    ['memory', '4k'],
    ['slow', '4k'],
    ['target', '4k'],
    ['memory', '128k'],
    ['target', '1m'],
  ])('verifies what it wrote to %s at random in blocks of %s, with several jobs', async (name, blocks) => {
    const words = [
      '--name=verify',
      '--ioengine=nbd',
      `--uri=${uri(name)}`,
      '--rw=randwrite',
      `--bs=${blocks}`,
      '--iodepth=16',
    ];
    words.push(
      '--numjobs=3',
      '--size=16m',
      '--offset_increment=16m',
      '--verify=crc32c',
      '--verify_state_save=0',
      '--verify_fatal=1',
      '--fsync=64',
      '--output-format=json',
    );
    const { jobs } = JSON.parse((await run('fio', ...words)).replace(/^[^{]*/, ''));
    expect(jobs).toHaveLength(3);
    for (const job of jobs) {
      expect(job.error).toBe(0);
      expect(job.read.total_ios).toBe(job.write.total_ios);
      expect(job.write.io_bytes).toBe(16 * MiB);
    }
  });
});

describe('the socket', () => {
  it('can be in the root of a file system', async () => {
    const server = new NbdServer(new FixedExports({ disk: devices.readOnly }));
    const path = `/dev/shm/dmkit-test-${process.pid}.sock`;
    await server.listenUnix(path);
    try {
      expect((await run('nbdinfo', '--size', `nbd+unix:///disk?socket=${path}`)).trim()).toBe(`${SIZE}`);
    } finally {
      await server.stop();
    }
  });
});

describe('TCP', () => {
  it('serves nbdcopy on loopback', async () => {
    const server = new NbdServer(new FixedExports({ disk: devices.readOnly }));
    const port = await server.listenTcp({ port: 0 });
    const back = join(directory, 'back-tcp');
    try {
      await run('nbdcopy', `nbd://127.0.0.1:${port}/disk`, back);
    } finally {
      await server.stop();
    }
    expect(readFileSync(back).equals(image)).toBe(true);
  });
});

describe('TLS', () => {
  const certificates = join(import.meta.dirname, '../fixtures/tls');
  const strangers = join(certificates, 'stranger');
  let server: NbdServer;
  let port: number;
  const secure = (directory = certificates) => `nbds://localhost:${port}/disk?tls-certificates=${directory}`;
  const device = new MemoryDevice(SIZE);

  beforeAll(async () => {
    server = new NbdServer(new FixedExports({ disk: device }), { tls: tlsDirectory(certificates) });
    port = await server.listenTcp({ port: 0 });
  });
  afterAll(() => server.stop());

  it('is shown by nbdinfo', async () => {
    const info = JSON.parse(await run('nbdinfo', '--json', secure()));
    expect(info).toMatchObject({ protocol: 'newstyle-fixed', TLS: true, structured: true });
    expect(info.exports[0]['export-size']).toBe(SIZE);
  });

  it('carries nbdcopy, over four connections, both ways', async () => {
    const back = join(directory, 'back-tls');
    await run('nbdcopy', '--connections=4', imagePath(), secure());
    expect(contents(device).equals(image)).toBe(true);
    await run('nbdcopy', secure(), back);
    expect(readFileSync(back).equals(image)).toBe(true);
  });

  it('is demanded, with a certificate of the right authority', async () => {
    await expect(run('nbdinfo', `nbd://localhost:${port}/disk`)).rejects.toThrow(/not supported|TLS/i);
    await expect(run('nbdinfo', secure(strangers))).rejects.toThrow();
  });

  it('carries qemu-img', async () => {
    const creds = (from: string) => `tls-creds-x509,id=tls,dir=${from},endpoint=client,verify-peer=yes`;
    const disk = `driver=nbd,host=localhost,port=${port},export=disk,tls-creds=tls`;
    const words = (from: string) => ['compare', '--object', creds(from), '--image-opts'];
    const raw = `driver=raw,file.driver=file,file.filename=${imagePath()}`;
    expect(await run('qemu-img', ...words(certificates), raw, disk)).toMatch(/identical/);
    await expect(run('qemu-img', ...words(strangers), raw, disk)).rejects.toThrow();
  });

  it('is offered over a Unix socket, and not demanded', async () => {
    const path = join(directory, 'tls.sock');
    await server.listenUnix(path);
    const words = ['--size', `nbds+unix:///disk?socket=${path}&tls-certificates=${certificates}`];
    expect((await run('nbdinfo', ...words)).trim()).toBe(`${SIZE}`);
    expect((await run('nbdinfo', '--size', `nbd+unix:///disk?socket=${path}`)).trim()).toBe(`${SIZE}`);
  });
});

describe('256 clients that take memory and give none back', () => {
  it('do not make the server grow beyond its bound, and others are served', async () => {
    const script = `
      import { MemoryDevice } from '${dist}/device/memory.js';
      import { NbdServer } from '${dist}/services/nbd/server.js';
      const device = new MemoryDevice(${64 * MiB});
      const server = new NbdServer({
        list: async () => [{ name: 'disk' }],
        open: async () => ({ device, readOnly: false, close: async () => {} }),
      });
      await server.listenUnix(process.argv[1]);
      console.log('ready');`;
    const path = join(directory, 'hostile.sock');
    const child = spawn(process.execPath, ['--input-type=module', '-e', script, path]);
    onTestFinished(() => void child.kill('SIGKILL'));
    await new Promise((resolve) => child.stdout.once('data', resolve));
    const status = () => readFileSync(`/proc/${child.pid}/status`, 'utf8');
    const peak = () => Number(/^VmHWM:\s+(\d+) kB/m.exec(status())?.[1]) * 1024;
    const before = peak();
    for (let i = 0; i < 250; i++) {
      const client = await RawClient.go(path, 'disk');
      client.reader.release();
      if (i % 2 === 0) for (let k = 0; k < 3; k++) client.request(CMD.READ, 0, 32 * MiB, { cookie: k });
      else client.request(CMD.WRITE, 0, 32 * MiB, { data: Buffer.alloc(256 * 1024) });
    }
    const good = await RawClient.go(path, 'disk');
    for (let i = 0; i < 1000; i++) {
      good.write(i * 4096, Buffer.alloc(4096, i));
      expect((await good.reply()).error).toBe(0);
    }
    // 512 MiB, what each of 250 has for itself, and Node's own: without the bound, more than 4 GiB.
    expect(peak() - before).toBeLessThan(900 * MiB);
    expect(peak() - before).toBeGreaterThan(100 * MiB);
  });
});
