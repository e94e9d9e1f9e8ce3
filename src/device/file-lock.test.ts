/** Who may have a file open, and how a reader becomes a writer. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { describe, expect, test, vi } from 'vitest';
import { device, failure, make, open, path, read, useFile } from '../../test/support/disk-file.ts';
import { type Bytes, bytes } from '../units.ts';
import { FileDevice } from './file.ts';

useFile();

/** Another process that holds the file's lock. */
async function lockedElsewhere(kind: 'exclusive' | 'shared'): Promise<ChildProcess> {
  const script = `
    const koffi = require(${JSON.stringify(createRequire(import.meta.url).resolve('koffi'))});
    const flock = koffi.load(null).func('int flock(int, int)');
    const got = flock(require('node:fs').openSync(process.argv[1], 'r+'), ${kind === 'exclusive' ? 2 : 1} | 4);
    process.stdout.write(got === 0 ? 'locked' : 'busy');
    process.stdin.resume();`;
  const child = spawn(process.execPath, ['-e', script, path], { stdio: ['pipe', 'pipe', 'inherit'] });
  const [said] = await once(child.stdout!, 'data');
  expect(String(said)).toBe('locked');
  return child;
}

async function stop(child: ChildProcess): Promise<void> {
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

describe('the lock of a file', () => {
  test('keeps a second writer out and names the first', async () => {
    make(4096);
    const other = await lockedElsewhere('exclusive');
    for (const mode of ['r', 'rw'] as const) {
      const error = await failure(() => open(mode));
      expect(error).toMatchObject({ code: 'DEVICE_IN_USE', errno: 'EBUSY' });
      expect(error.message).toContain(`(pid ${other.pid})`);
      expect(error.message).toMatch(/: \S+ \(pid/);
    }
    await stop(other);
    await open('rw');
  });

  test('lets readers share, and keeps a writer out', async () => {
    make(4096);
    const other = await lockedElsewhere('shared');
    await open('r');
    expect(await failure(() => FileDevice.open(path, 'rw'))).toMatchObject({ errno: 'EBUSY' });
    await stop(other);
  });

  test('holds within one process too', async () => {
    make(4096);
    await open('rw');
    expect((await failure(() => FileDevice.open(path, 'rw'))).message).toContain('this process has it open');
  });
});

describe('allowing writes', () => {
  const size = 4 * 2 ** 20;

  test.each(['0', '1'])('swaps the descriptor under reads in flight (DMKIT_NO_FFI=%s)', async (noFfi) => {
    vi.stubEnv('DMKIT_NO_FFI', noFfi);
    fs.writeFileSync(
      path,
      Uint8Array.from({ length: size }, (_, i) => (i >>> 9) % 251),
    );
    await open('r');
    const reads: { at: number; into: Uint8Array; wait: unknown }[] = [];
    const start = () => {
      const at = ((reads.length * 7919) % (size / 512 - 4096)) * 512;
      const into = new Uint8Array(2 ** 20 + 512); // Too long to be read at once.
      reads.push({ at, into, wait: device!.read(at as Bytes, into, 0, into.length) });
    };
    for (let i = 0; i < 20; i++) start();
    const upgraded = Promise.all([device!.allowWrites(), device!.allowWrites()]);
    for (let i = 0; i < 20; i++) start();
    await upgraded;
    for (let i = 0; i < 20; i++) start();
    for (const { at, into, wait } of reads) {
      await wait;
      expect(into.every((byte, i) => byte === ((at + i) >>> 9) % 251)).toBe(true);
    }
    expect(device!.readOnly).toBe(false);
    await device!.write(bytes(0), new Uint8Array(512).fill(0xff), 0, 512);
    await device!.flush();
    expect(fs.readFileSync(path)[511]).toBe(0xff);
    await device!.allowWrites();
  });

  test('leaves the old descriptor to a read that waits for its thread', async () => {
    vi.stubEnv('DMKIT_NO_FFI', '1');
    make(4096, 6);
    await open('r');
    const realRead = fs.read as (...words: unknown[]) => void;
    let begin = () => {};
    vi.spyOn(fs, 'read').mockImplementationOnce(((...words: unknown[]) => {
      begin = () => realRead(...words);
    }) as unknown as typeof fs.read);
    const waiting = read(0, 4096);
    await device!.allowWrites();
    begin();
    expect(await waiting).toEqual(new Uint8Array(4096).fill(6));
  });

  test('takes the lock of a writer', async () => {
    make(4096);
    await open('r');
    await device!.allowWrites();
    await expect(lockedElsewhere('shared')).rejects.toThrow();
  });

  test('is refused while another process reads, and the device stays as it was', async () => {
    make(4096, 1);
    const other = await lockedElsewhere('shared');
    await open('r');
    const error = await failure(() => device!.allowWrites());
    expect(error).toMatchObject({ code: 'DEVICE_IN_USE', errno: 'EBUSY' });
    expect(error.message).toContain(`(pid ${other.pid})`);
    expect(device!.readOnly).toBe(true);
    expect(await read(0, 4096)).toEqual(new Uint8Array(4096).fill(1));
    await stop(other);
    await expect(lockedElsewhere('exclusive')).rejects.toThrow();
    await device!.allowWrites();
    expect(device!.readOnly).toBe(false);
  });

  test('is refused when another file has taken its place', async () => {
    make(4096);
    await open('r');
    fs.renameSync(path, `${path}.old`);
    make(4096);
    expect(await failure(() => device!.allowWrites())).toMatchObject({ code: 'REPLACED', errno: 'EBUSY' });
    expect(device!.readOnly).toBe(true);
  });
});
