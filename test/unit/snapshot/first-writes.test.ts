/** First writes of parts of chunks through a snapshot of files: whole chunks are written by a thread, many on their way at once. */
import fs, { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { Disks } from '../../../src/device/open.ts';
import { writer } from '../../../src/device/writer.ts';
import { prng } from '../../../src/lib/prng.ts';
import { Mapper } from '../../../src/mapper/mapper.ts';
import { bytes, SECTOR } from '../../../src/units.ts';
import { pattern, readAll } from '../golden.ts';

const CHUNK = 128;
/** 150 chunks and a part of one. */
const SECTORS = 150 * CHUNK + 24;

async function snapshot() {
  const folder = mkdtempSync(join(tmpdir(), 'dmkit-first-'));
  const [image, cow] = ['image', 'cow'].map((name) => join(folder, name));
  writeFileSync(image, pattern('a', 0, SECTORS));
  writeFileSync(cow, '');
  truncateSync(cow, 160 * CHUNK * SECTOR);
  const mapper = new Mapper({ opener: new Disks() });
  onTestFinished(async () => {
    vi.restoreAllMocks();
    await mapper.removeAll();
    rmSync(folder, { recursive: true });
  });
  const create = async () => {
    await mapper.create('snap');
    await mapper.load({ name: 'snap' }, [
      { start: 0, length: SECTORS, type: 'snapshot', args: `${image} ${cow} P ${CHUNK}` },
    ]);
    await mapper.resume({ name: 'snap' });
    return mapper.device({ name: 'snap' });
  };
  const again = async () => {
    await mapper.remove({ name: 'snap' });
    return create();
  };
  return { snap: await create(), again };
}

/** Until the thread takes part. */
const started = () => vi.waitUntil(() => writer.wants(0, 1 << 16) || writer.wants(0, 1 << 16));

test('the rest of each chunk is what the origin has, also after the snapshot was closed', async () => {
  const { snap, again } = await snapshot();
  const model = pattern('a', 0, SECTORS);
  const random = prng(5);
  await started();
  const aside = vi.spyOn(writer, 'write');
  for (let turn = 0; turn < 10; turn++) {
    const waits: (void | Promise<void>)[] = [];
    // Writes that overlap would have no order among each other; two that share a chunk may.
    for (let at = random.below(300); at < SECTORS - 150; at += 150 + random.below(3000)) {
      const data = pattern('b', turn * SECTORS + at, 1 + random.below(150));
      waits.push(snap.write(bytes(at * SECTOR), data, 0, data.length));
      model.set(data, at * SECTOR);
    }
    await Promise.all(waits);
  }
  expect(aside).toHaveBeenCalled();
  expect((await readAll(snap)).equals(model)).toBe(true);
  expect((await readAll(await again())).equals(model)).toBe(true);
});

test('a chunk that finds no space fails its write, and is written when there is some', async () => {
  const { snap } = await snapshot();
  const data = pattern('b', 0, 8);
  const write = (chunk: number) => snap.write(bytes(chunk * CHUNK * SECTOR), data, 0, data.length);
  await started();
  const aside = vi.spyOn(writer, 'write').mockImplementation((_fd, _from, _start, _length, _at, tell) => {
    setImmediate(tell, false);
  });
  vi.spyOn(fs, 'writeSync').mockImplementation(() => {
    throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' });
  });
  const failed = await Promise.allSettled([0, 1, 2, 3].map(async (chunk) => write(chunk)));
  expect(aside).toHaveBeenCalled();
  expect(failed.map((result) => result.status === 'rejected' && result.reason.errno)).toEqual(Array(4).fill('ENOSPC'));
  vi.restoreAllMocks();
  await Promise.all([0, 1, 2, 3].map(write));
  expect((await readAll(snap)).subarray(CHUNK * SECTOR).indexOf(data)).toBe(0);
});
