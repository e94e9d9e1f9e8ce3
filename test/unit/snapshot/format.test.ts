/** What a persistent store is on disk, and what of it loads (dm-snapshot scenarios 1 to 18). */
import { describe, expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import {
  area,
  areaOf,
  closeAfterwards,
  header,
  headerOf,
  MAGIC,
  old,
  originData,
  Rig,
  rigWith,
  snapshotData,
} from '../../support/rig.ts';
import { sha256 } from '../golden.ts';

const CHUNK_0 = '5a872210e710e9cc20299008a3b8ab7b2e35099572916c97efcc7adaaeec273d';
const CHUNK_1 = '7322f7843e0f006805f8f9bdecff48476218923bd0298e938cdf47fe4225643d';
const CHUNK_0_INVALID = '3db6a732d390d4dc62ad3b952f9647e15d64f2b116a83b66fe4c53e8ebb871d9';

/** A COW device of `W` sectors that begins with `chunks`, under a snapshot table that is not loaded yet. */
function stand({ W = 1024, O = 4096, head = [] as Uint8Array[] } = {}) {
  const rig = new Rig();
  rig.disk(0, O, { content: old(0, O) });
  const cow = rig.disk(1, W, { content: Buffer.concat(head) });
  closeAfterwards(rig);
  return { rig, cow, line: (store: string) => `0 ${O} snapshot /dev/ram0 /dev/ram1 ${store}` };
}

describe('a new store', () => {
  test('1. is made when the table is loaded: a header, an empty area, nothing else', async () => {
    const { rig, cow, line } = stand();
    await rig.mapper.create('snap');
    await rig.load('snap', line('P 16'));
    expect(headerOf(rig, cow)).toEqual([MAGIC, 1, 1, 16]);
    expect(sha256(rig.peek(cow, 0, 16))).toBe(CHUNK_0);
    expect(rig.peek(cow, 16, 1024 - 16).every((byte) => byte === 0)).toBe(true);
    expect(cow.takeLog('RF')).toEqual(['W 16+16', 'W 0+16']);
  });

  test('2. is made where the first four bytes are zero, whatever follows; chunks behind the area keep what they had', async () => {
    const rubbish = Buffer.alloc(1024 * 512, 0xaa);
    rubbish.fill(0, 0, 4);
    const { rig, cow, line } = stand({ head: [rubbish] });
    await rig.create('snap', line('P 16'));
    expect(sha256(rig.peek(cow, 0, 16))).toBe(CHUNK_0);
    expect(rig.peek(cow, 16, 16).every((byte) => byte === 0)).toBe(true);
    expect(rig.peek(cow, 32, 1024 - 32).every((byte) => byte === 0xaa)).toBe(true);
  });

  test('17. of exactly two chunks loads, and overflows at the first write', async () => {
    const { rig, cow, line } = stand({ W: 16 });
    await rig.create('snap', line('PO 8'));
    expect(await rig.status('snap')).toBe('16/16 16');
    await expect(rig.write('snap', 0, snapshotData(0, 1))).rejects.toMatchObject({ errno: 'EIO' });
    expect(await rig.status('snap')).toBe('Overflow');
    await rig.recreate('snap', line('P 8'));
    await expect(rig.write('snap', 0, snapshotData(0, 1))).rejects.toMatchObject({ errno: 'EIO' });
    expect(await rig.status('snap')).toBe('Invalid');
    expect(headerOf(rig, cow)[1]).toBe(0);
  });

  test.each([8, 15])('18. on a COW of %i sectors is refused with EIO before anything is written', async (W) => {
    const { rig, cow, line } = stand({ W });
    await expect(rig.create('snap', line('P 8'))).rejects.toMatchObject({ code: 'COW_TOO_SMALL', errno: 'EIO' });
    expect(cow.takeLog('R')).toEqual([]);
    // The kernel leaves a header behind, and then refuses this one too.
    await rig.create('snap', line('P 1'));
    expect(await rig.status('snap')).toBe(`2/${W} 2`);
  });
});

describe('golden vector A', () => {
  async function written() {
    const rubbish = Buffer.alloc(4 * 8192, 0xaa);
    rubbish.fill(0, 0, 4);
    const { rig, cow, line } = stand({ head: [rubbish] });
    await rig.create('origin', '0 4096 snapshot-origin /dev/ram0');
    await rig.create('snap', line('P 16'));
    const steps = [await rig.status('snap')];
    await rig.write('origin', 160, originData(160, 1));
    steps.push(await rig.status('snap'));
    await rig.write('snap', 48, snapshotData(48, 16));
    steps.push(await rig.status('snap'));
    await rig.write('snap', 85, snapshotData(85, 2));
    await rig.flush('snap');
    steps.push(await rig.status('snap'));
    return { rig, cow, line, steps };
  }

  test("3. gives the kernel's bytes and the kernel's status after every step", async () => {
    const { rig, cow, steps } = await written();
    expect(steps).toEqual(['32/1024 32', '48/1024 32', '64/1024 32', '80/1024 32']);
    expect(sha256(rig.peek(cow, 0, 16))).toBe(CHUNK_0);
    expect(sha256(rig.peek(cow, 16, 16))).toBe(CHUNK_1);
    expect(rig.peek(cow, 32, 16)).toEqual(old(160, 16));
    expect(rig.peek(cow, 48, 16)).toEqual(snapshotData(48, 16));
    expect(rig.peek(cow, 64, 16)).toEqual(Buffer.concat([old(80, 5), snapshotData(85, 2), old(87, 9)]));
    expect(rig.peek(cow, 80, 16).every((byte) => byte === 0)).toBe(true);
  });

  test.each(['P 0', 'P 16', 'P 64'])(
    '4. opens again with the table %s: same status, chunk size and data',
    async (store) => {
      const { rig, line } = await written();
      await rig.recreate('snap', line(store));
      expect(await rig.status('snap')).toBe('80/1024 32');
      expect(await rig.table('snap')).toBe('1:0 1:1 P 16');
      const expected = old(0, 4096);
      snapshotData(48, 16).copy(expected, 48 * 512);
      snapshotData(85, 2).copy(expected, 85 * 512);
      expect(sha256(await rig.read('snap', 0, 4096))).toBe(sha256(expected));
    },
  );

  test('3. a header that was invalidated has the checksum that the rules give', async () => {
    const { rig, cow } = await rigWith();
    cow.fault = (operation, sector) => (operation === 'write' && sector >= 32 ? 'EIO' : undefined);
    await rig.write('origin', 0, originData(0, 1));
    expect(sha256(rig.peek(cow, 0, 16))).toBe(CHUNK_0_INVALID);
  });
});

describe('golden vector B', () => {
  test('5. forty origin writes one by one fill two areas', async () => {
    const { rig, cow } = await rigWith({ C: 1, O: 256, W: 128 });
    const seen: string[] = [await rig.status('snap')];
    for (let chunk = 0; chunk < 40; chunk++) {
      await rig.touch([chunk], 1);
      if ([30, 31, 39].includes(chunk)) seen.push(await rig.status('snap'));
    }
    expect(seen).toEqual(['2/128 2', '33/128 2', '35/128 3', '43/128 3']);
    expect(areaOf(rig, cow, 1)).toEqual(Array.from({ length: 32 }, (_, i) => [i, i + 2]));
    expect(areaOf(rig, cow, 1, 1)).toEqual(Array.from({ length: 8 }, (_, i) => [i + 32, i + 35]));
  });

  test('5. snapshot writes show the same numbers before anything is committed', async () => {
    const { rig } = await rigWith({ C: 1, O: 256, W: 128 });
    const seen: string[] = [];
    for (let chunk = 0; chunk < 40; chunk++) {
      await rig.write('snap', chunk, snapshotData(chunk, 1));
      if ([30, 31, 39].includes(chunk)) seen.push(await rig.status('snap'));
    }
    expect(seen).toEqual(['33/128 2', '35/128 3', '43/128 3']);
    await rig.flush('snap');
    expect(await rig.status('snap')).toBe('43/128 3');
  });

  test('6. a store of exactly one full area loads with its empty second one, and goes on behind it', async () => {
    const { rig, cow, line } = await rigWith({ C: 1, O: 256, W: 128 });
    await rig.touch(Array(32).keys(), 1);
    await rig.recreate('snap', line);
    expect(await rig.status('snap')).toBe('35/128 3');
    await rig.touch([77], 1);
    expect(areaOf(rig, cow, 1, 1)).toEqual([[77, 35]]);
    expect(rig.peek(cow, 35, 1)).toEqual(old(77, 1));
  });
});

describe('what is refused', () => {
  test.each([
    ['reversed', 0x536e4170],
    ['one too high', MAGIC + 1],
    ['one too low', MAGIC - 1],
  ])('8. a magic that is %s: ENXIO, and the disk is as it was', async (_, magic) => {
    const { rig, cow, line } = stand({ head: [header(magic, 1, 1, 16)] });
    await expect(rig.create('snap', line('P 16'))).rejects.toMatchObject({ code: 'COW_MAGIC', errno: 'ENXIO' });
    expect(cow.takeLog('R')).toEqual([]);
  });

  test.each([
    [0, 0],
    [0, 1],
    [2, 0],
    [2, 1],
  ])('9. version %i, valid %i: EINVAL', async (version, valid) => {
    const { rig, cow, line } = stand({ head: [header(MAGIC, valid, version, 16)] });
    await expect(rig.create('snap', line('P 16'))).rejects.toMatchObject({ code: 'COW_VERSION', errno: 'EINVAL' });
    expect(cow.takeLog('R')).toEqual([]);
  });

  test.each([0, 24, 4194304])('12. a chunk size on disk of %i: EINVAL', async (chunkSize) => {
    const { rig, line } = stand({ head: [header(MAGIC, 1, 1, chunkSize)] });
    await expect(rig.create('snap', line('P 16'))).rejects.toMatchObject({ code: 'COW_CHUNK_SIZE', errno: 'EINVAL' });
  });

  test('12. a chunk size on disk that is larger than the device: EIO', async () => {
    const { rig, line } = stand({ head: [header(MAGIC, 1, 1, 2048)] });
    await expect(rig.create('snap', line('P 16'))).rejects.toMatchObject({ errno: 'EIO' });
  });

  test.each([1n << 56n, (2n << 56n) | 5n, 1n << 53n, 1n << 40n])(
    'an entry that names new chunk %i, which no device has: EINVAL, and the disk is as it was',
    async (newChunk) => {
      const { rig, cow, line } = stand({ head: [header(MAGIC, 1, 1, 1), area(1, [[3, newChunk]])] });
      await expect(rig.create('snap', line('P 1'))).rejects.toMatchObject({ code: 'COW_ENTRY', errno: 'EINVAL' });
      expect(cow.takeLog('R')).toEqual([]);
    },
  );

  test('a list without an end, up to the end of the device: EIO', async () => {
    const full = area(
      1,
      Array.from({ length: 32 }, (_, i) => [i, i + 2]),
    );
    const { rig, line } = stand({ W: 34, head: [header(MAGIC, 1, 1, 1), full] });
    await expect(rig.create('snap', line('P 1'))).rejects.toMatchObject({ code: 'COW_TRUNCATED', errno: 'EIO' });
  });
});

describe('what loads', () => {
  test('10. an invalidated store: Invalid, EIO for reads and writes, success for a flush, no event', async () => {
    const { rig, cow, line } = stand({ head: [header(MAGIC, 0, 1, 16)] });
    await rig.create('snap', line('P 16'));
    expect(await rig.status('snap')).toBe('Invalid');
    await expect(rig.read('snap', 0, 1)).rejects.toMatchObject({ errno: 'EIO' });
    await expect(rig.write('snap', 0, snapshotData(0, 1))).rejects.toMatchObject({ errno: 'EIO' });
    cow.takeLog();
    await rig.flush('snap');
    expect(cow.takeLog()).toEqual(['F']);
    expect(await rig.event('snap')).toBe(0);
  });

  test.each([2, 0xffffffff])('11. valid=%i is valid', async (valid) => {
    const { rig, line } = stand({ head: [header(MAGIC, valid, 1, 1), area(1, [[3, 2]])] });
    await rig.create('snap', line('P 1'));
    expect(await rig.status('snap')).toBe('3/1024 2');
  });

  test('13. the chunk size on disk wins over a table that leaves it open', async () => {
    const { rig, line } = stand({ head: [header(MAGIC, 1, 1, 8), Buffer.alloc(7 * 512), area(8, [])] });
    await rig.create('snap', line('P 0'));
    expect(await rig.table('snap')).toBe('1:0 1:1 P 8');
    expect(await rig.status('snap')).toBe('16/1024 16');
  });

  test('7. entries in any order: every chunk reads from its place, and the next one goes behind the highest', async () => {
    const entries: [number, number][] = [
      [5, 9],
      [1, 3],
      [8, 33],
    ];
    const { rig, cow, line } = stand({ head: [header(MAGIC, 1, 1, 1), area(1, entries)] });
    for (const [oldChunk, newChunk] of entries) rig.poke(cow, newChunk, snapshotData(oldChunk, 1));
    await rig.create('origin', '0 4096 snapshot-origin /dev/ram0');
    await rig.create('snap', line('P 1'));
    expect(await rig.read('snap', 1, 1)).toEqual(snapshotData(1, 1));
    expect(await rig.read('snap', 5, 1)).toEqual(snapshotData(5, 1));
    expect(await rig.read('snap', 8, 1)).toEqual(snapshotData(8, 1));
    expect(await rig.read('snap', 2, 1)).toEqual(old(2, 1));
    // 34 holds the second area.
    await rig.touch([100], 1);
    expect(areaOf(rig, cow, 1).at(-1)).toEqual([100, 35]);
  });

  test('14. old chunk 0 is a chunk like any other', async () => {
    const { rig, cow, line } = stand({ head: [header(MAGIC, 1, 1, 1), area(1, [[0, 2]])] });
    rig.poke(cow, 2, snapshotData(0, 1));
    await rig.create('snap', line('P 1'));
    expect(await rig.read('snap', 0, 1)).toEqual(snapshotData(0, 1));
  });

  test('15. entries behind the end of the list do not map, and one more commit does not bring them back', async () => {
    const tail = area(1, [
      [3, 2],
      [0, 0],
      [7, 5],
    ]);
    const { rig, cow, line } = stand({ head: [header(MAGIC, 1, 1, 1), tail] });
    await rig.create('origin', '0 4096 snapshot-origin /dev/ram0');
    await rig.create('snap', line('P 1'));
    expect(await rig.status('snap')).toBe('3/1024 2');
    expect(await rig.read('snap', 7, 1)).toEqual(old(7, 1));
    cow.takeLog();
    await rig.touch([20], 1);
    // The list is written without the rest before anything is added to it.
    expect(cow.takeLog('R')).toEqual(['W 3+1', 'W 1+1', 'F', 'F', 'W 1+1', 'F']);
    expect(areaOf(rig, cow, 1)).toEqual([
      [3, 2],
      [20, 3],
    ]);
    await rig.recreate('snap', line('P 1'));
    expect(await rig.status('snap')).toBe('4/1024 2');
    expect(await rig.read('snap', 7, 1)).toEqual(old(7, 1));
  });

  test('16. an entry behind the end of the COW device: that chunk is EIO, the others are fine, no room for more', async () => {
    const { rig, cow, line } = stand({ W: 128, head: [header(MAGIC, 1, 1, 1), area(1, [[3, 500]])] });
    await rig.create('origin', '0 4096 snapshot-origin /dev/ram0');
    await rig.create('snap', line('P 1'));
    expect(await rig.status('snap')).toBe('501/128 2');
    await expect(rig.read('snap', 3, 1)).rejects.toMatchObject({ errno: 'EIO' });
    expect(await rig.status('snap')).toBe('501/128 2');
    expect(await rig.read('snap', 4, 8)).toEqual(old(4, 8));
    await rig.touch([4], 1);
    expect(await rig.status('snap')).toBe('Invalid');
    expect(headerOf(rig, cow)).toEqual([MAGIC, 0, 1, 1]);
  });

  test('two entries for one old chunk: the first counts; two for one new chunk: both read it', async () => {
    const entries: [number, number][] = [
      [3, 2],
      [3, 4],
      [6, 4],
      [9999, 5],
    ];
    const { rig, cow, line } = stand({ head: [header(MAGIC, 1, 1, 1), area(1, entries)] });
    rig.poke(cow, 2, snapshotData(2, 1));
    rig.poke(cow, 4, snapshotData(4, 1));
    await rig.create('snap', line('P 1'));
    expect(await rig.read('snap', 3, 1)).toEqual(snapshotData(2, 1));
    expect(await rig.read('snap', 6, 1)).toEqual(snapshotData(4, 1));
    expect(await rig.status('snap')).toBe('6/1024 2');
  });
});

test('the largest chunk of a transient snapshot, 1 GiB, costs nothing until it is used', async () => {
  const rig = new Rig();
  rig.disk(0, 4096, { content: old(0, 4096) });
  rig.disks.add(new MemoryDevice(2 ** 41, { name: '1:1' }), '/dev/ram1');
  closeAfterwards(rig);
  await rig.create('snap', '0 4096 snapshot /dev/ram0 /dev/ram1 N 2097152');
  expect(await rig.status('snap')).toBe(`0/${2 ** 32} 0`);
  expect(await rig.read('snap', 0, 64)).toEqual(old(0, 64));
});
