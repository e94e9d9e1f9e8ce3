/** A merge of files: large runs are copied inside the kernel where it can, and the origin is the same where it cannot. */
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test, vi } from 'vitest';
import { FileDevice } from '../../../src/device/file.ts';
import { Disks } from '../../../src/device/open.ts';
import { prng } from '../../../src/lib/prng.ts';
import { Mapper } from '../../../src/mapper/mapper.ts';
import { bytes, SECTOR } from '../../../src/units.ts';
import { pattern, readAll } from '../golden.ts';

/** 6 MiB, and a part of a chunk. */
const SECTORS = 12_292;

test.each([
  ['inside the kernel', false],
  ['by reading and writing', true],
])('copied %s, the origin becomes the snapshot, and another snapshot stays what it was', async (_, refuses) => {
  const folder = mkdtempSync(join(tmpdir(), 'dmkit-merge-'));
  const [image, cow, other] = ['image', 'cow', 'other'].map((name) => join(folder, name));
  writeFileSync(image, pattern('a', 0, SECTORS));
  for (const path of [cow, other]) {
    writeFileSync(path, '');
    truncateSync(path, 2 * SECTORS * SECTOR);
  }
  const mapper = new Mapper({ opener: new Disks() });
  onTestFinished(async () => {
    vi.restoreAllMocks();
    await mapper.removeAll();
    rmSync(folder, { recursive: true });
  });
  const create = async (name: string, type: string, args: string) => {
    await mapper.create(name);
    await mapper.load({ name }, [{ start: 0, length: SECTORS, type, args }]);
    await mapper.resume({ name });
  };
  await create('snap', 'snapshot', `${image} ${cow} P 8`);
  await create('other', 'snapshot', `${image} ${other} P 16`);
  const snap = mapper.device({ name: 'snap' });
  const random = prng(3);
  for (const size of [4096, 3000, 2000, ...Array.from({ length: 40 }, () => 1 + random.below(20))]) {
    const content = pattern('b', random.below(1000), size);
    await snap.write(bytes(random.below(SECTORS - size) * SECTOR), content, 0, content.length);
  }
  await snap.write(bytes((SECTORS - 1) * SECTOR), pattern('b', 0, 1), 0, SECTOR);
  const shown = await readAll(snap);
  await mapper.remove({ name: 'snap' });

  const copyFrom = vi.spyOn(FileDevice.prototype, 'copyFrom');
  if (refuses) copyFrom.mockResolvedValue(false);
  await create('origin', 'snapshot-merge', `${image} ${cow} P 8`);
  for (;;) {
    const [{ text }] = await mapper.status({ name: 'origin' });
    if (/^(\d+)\/\d+ \1$/.test(text)) break;
    expect(text).toMatch(/^\d+\/\d+ \d+$/);
    await new Promise((resolve) => setImmediate(resolve));
  }
  expect(copyFrom).toHaveBeenCalled();
  expect(readFileSync(image).equals(shown)).toBe(true);
  expect((await readAll(mapper.device({ name: 'other' }))).equals(pattern('a', 0, SECTORS))).toBe(true);
});
