/** The log that a real kernel's log-writes target wrote (test/fixtures/log-writes): read, replayed, and written again. */
import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { LogReader } from '../../src/stores/log-writes/log-reader.ts';
import { replay } from '../../src/stores/log-writes/replay.ts';
import { logWrites } from '../../src/targets/log-writes.ts';
import { bytes, sector } from '../../src/units.ts';

const SIZE = 2048 * 512;
const fixture = (name: string) =>
  gunzipSync(readFileSync(new URL(`../fixtures/log-writes/${name}.img.gz`, import.meta.url)));

function diskOf(content?: Uint8Array): MemoryDevice {
  const disk = new MemoryDevice(SIZE);
  if (content) disk.write(bytes(0), content, 0, SIZE);
  return disk;
}

function contentOf(disk: MemoryDevice): Buffer {
  const content = Buffer.alloc(SIZE);
  disk.read(bytes(0), content, 0, SIZE);
  return content;
}

test('is listed', async () => {
  const reader = await LogReader.open(diskOf(fixture('log')));
  const found: string[] = [];
  for (let entry = await reader.next(); entry; entry = await reader.next()) {
    const { kind, at, length, mark, fua } = entry;
    found.push(
      [kind, ...(length > 0 ? [at, length] : []), mark, fua ? 'FUA' : undefined]
        .filter((w) => w !== undefined)
        .join(' '),
    );
  }
  expect(found).toEqual([
    'write 0 4096',
    'flush',
    'flush',
    'mark m1',
    'write 4096 4096 FUA',
    'flush',
    'discard 8192 4096',
    'flush',
    'write 131072 131072',
    'write 196608 131072',
    'flush',
    'write 20480 4096',
    'mark dm-log-writes-end',
  ]);
});

test('leads to the disk that the kernel had', async () => {
  const disk = diskOf();
  await replay(await LogReader.open(diskOf(fixture('log'))), disk);
  expect(contentOf(disk).equals(fixture('disk'))).toBe(true);
});

test('is written to the byte by the same requests, but for the FUA that does not reach a target', async () => {
  const [disk, log] = [diskOf(), diskOf()];
  const target = await logWrites.create({
    start: sector(0),
    length: sector(2048),
    args: ['disk', 'log'],
    readOnly: false,
    open: async (word) => (word === 'disk' ? disk : log),
    event: () => {},
    owner: new MemoryDevice(0),
    enlarge: () => false,
  });
  target.resume!();
  const write = (at: number, letter: string, length = 4096) =>
    target.write(bytes(at), Buffer.alloc(length, letter), 0, length);
  const statuses: string[] = [];
  const status = () => statuses.push(target.status('info'));
  write(0, 'a');
  status();
  await target.flush();
  await target.flush();
  status();
  await target.message!(['mark', 'm1']);
  status();
  write(4096, 'b');
  await target.flush();
  status();
  await target.discard(bytes(8192), 4096);
  status();
  await target.flush();
  status();
  write(131072, 'c', 131072);
  await target.writeZeroes(bytes(196608), 131072, false);
  await target.flush();
  status();
  write(20480, 'a');
  await target.close();
  expect(statuses).toEqual(['0 0', '3 11', '4 12', '6 22', '6 22', '8 24', '11 539']);
  const expected = fixture('log');
  expected[6656 + 16] = 0;
  expect(contentOf(log).equals(expected)).toBe(true);
  expect(contentOf(disk).equals(fixture('disk'))).toBe(true);
});
