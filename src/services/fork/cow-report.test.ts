import { describe, expect, test } from 'vitest';
import { MemoryDevice } from '../../device/memory.ts';
import { diskException, diskHeader, headerOf, layoutOf, MAGIC, setException } from '../../formats/exception-store.ts';
import { bytes, sector } from '../../units.ts';
import { inspectCow } from './cow-report.ts';

/** A store of one-sector chunks (32 entries an area) with these entries in order, as the kernel would lay it out. */
function store(entries: [oldChunk: number, newChunk: number][], chunks = 128) {
  const layout = layoutOf(sector(1));
  const device = new MemoryDevice(chunks * 512);
  device.write(bytes(0), headerOf(layout, true), 0, 512);
  for (let area = 0; area <= Math.floor(entries.length / layout.entries); area++) {
    const view = new DataView(new ArrayBuffer(512));
    const mine = entries.slice(area * layout.entries, (area + 1) * layout.entries);
    for (const [index, [oldChunk, newChunk]] of mine.entries()) setException(view, index, oldChunk, newChunk);
    if (1 + area * 33 < chunks) device.write(bytes((1 + area * 33) * 512), new Uint8Array(view.buffer), 0, 512);
  }
  return device;
}

/** The first `count` exceptions of a store that never crashed. */
const clean = (count: number): [number, number][] =>
  Array.from({ length: count }, (_, i) => [i, 2 + i + Math.floor(i / 32)]);

describe('a store in order', () => {
  test.each([
    [0, 2, 1],
    [1, 3, 1],
    [31, 33, 1],
    [32, 35, 2],
    [40, 43, 2],
  ])('with %i exceptions takes %i chunks', async (count, allocated, areas) => {
    const report = await inspectCow(store(clean(count)), { size: 256 * 512 });
    expect(report).toMatchObject({ valid: true, version: 1, chunkSize: 512, exceptions: count, areas, problems: [] });
    expect(report.allocated).toBe(allocated * 512);
    expect(report.originReach).toBe(count * 512);
  });

  test('that was never written is blank', async () => {
    expect(await inspectCow(new MemoryDevice(4096))).toMatchObject({ blank: true, problems: [] });
  });

  test('whose last area was torn by a power cut has leftovers, which are no problem', async () => {
    const device = store([[1, 2]]);
    const view = new DataView(new ArrayBuffer(512));
    setException(view, 0, 1, 2);
    setException(view, 2, 9, 9);
    device.write(bytes(512), new Uint8Array(view.buffer), 0, 512);
    expect(await inspectCow(device)).toMatchObject({ exceptions: 1, leftovers: true, problems: [] });
  });

  test('of chunks larger than the buffer is read in pieces', async () => {
    const layout = layoutOf(sector(8192));
    const device = new MemoryDevice(layout.chunkBytes * 4);
    device.write(bytes(0), headerOf(layout, true).subarray(0, 512), 0, 512);
    const view = new DataView(new ArrayBuffer(layout.chunkBytes));
    for (let i = 0; i < 70_000; i++) setException(view, i, i, i === 0 ? 2 : 3);
    device.write(bytes(layout.chunkBytes), new Uint8Array(view.buffer), 0, layout.chunkBytes);
    const report = await inspectCow(device);
    expect(report.exceptions).toBe(70_000);
    expect(report.problems).toEqual([
      { kind: 'new-twice', message: expect.stringMatching(/^entry 2 of area 0 maps chunk 2 to 3,/), count: 69_998 },
    ]);
  });
});

describe('says what is wrong and where', () => {
  const header = (fields: Partial<Record<'magic' | 'valid' | 'version' | 'chunkSize', number>>) => {
    const device = store([]);
    const block = new Uint8Array(512);
    const plain = { magic: MAGIC, valid: 1, version: 1, chunkSize: 1, ...fields };
    diskHeader.set(new DataView(block.buffer), 0, { ...plain, chunkSize: sector(plain.chunkSize) });
    device.write(bytes(0), block, 0, 512);
    return device;
  };
  const full = () => store(clean(32), 34);
  const high = () => {
    const device = store([]);
    const view = new DataView(new ArrayBuffer(512));
    diskException.set(view, 0, { oldChunk: 3 as never, newChunk: (2 ** 57 + 5) as never });
    device.write(bytes(512), new Uint8Array(view.buffer), 0, 512);
    return device;
  };

  test.each<[string, () => MemoryDevice, RegExp]>([
    ['too-small', () => new MemoryDevice(0), /0 bytes/],
    ['magic', () => header({ magic: 0x58465342 }), /0x58465342, expected 0x70416e53/],
    ['invalidated', () => header({ valid: 0 }), /cannot be recovered/],
    ['version', () => header({ version: 2 }), /version is 2/],
    ['chunk-size', () => header({ chunkSize: 24 }), /24 sectors: .*power of 2/],
    ['old-beyond-origin', () => store([[9999, 2]]), /entry 0 of area 0 maps chunk 9999 to 2, .* 256 chunks/],
    ['new-beyond-store', () => store([[3, 500]]), /3 to 500, .* 128 chunks/],
    ['new-too-high', high, /highest byte/],
    ['new-in-metadata', () => store([[3, 34]]), /header or an area/],
    [
      'old-twice',
      () =>
        store([
          [3, 2],
          [3, 3],
        ]),
      /entry 1 of area 0/,
    ],
    [
      'new-twice',
      () =>
        store([
          [3, 2],
          [4, 2],
        ]),
      /entry 1 of area 0/,
    ],
    ['area-beyond-store', full, /area 1 is missing.*34 chunks/],
  ])('%s', async (kind, make, message) => {
    const report = await inspectCow(make(), { size: 256 * 512 });
    expect(report.problems).toEqual([{ kind, message: expect.stringMatching(message), count: 1 }]);
  });
});
