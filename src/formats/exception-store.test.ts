import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { sector } from '../units.ts';
import * as format from './exception-store.ts';

const sha = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

test('writes the header that the kernel writes', () => {
  const header = format.headerOf(format.layoutOf(sector(16)), true);
  expect(Buffer.from(header.subarray(0, 16)).toString('hex')).toBe('536e4170010000000100000010000000');
  expect(sha(header)).toBe('5a872210e710e9cc20299008a3b8ab7b2e35099572916c97efcc7adaaeec273d');
  expect(sha(format.headerOf(format.layoutOf(sector(16)), false))).toBe(
    '3db6a732d390d4dc62ad3b952f9647e15d64f2b116a83b66fe4c53e8ebb871d9',
  );
});

test('writes the area of golden vector A', () => {
  const area = new DataView(new ArrayBuffer(8192));
  for (const [index, entry] of [
    [10, 2],
    [3, 3],
    [5, 4],
  ].entries())
    format.setException(area, index, entry[0], entry[1]);
  expect(sha(new Uint8Array(area.buffer))).toBe('7322f7843e0f006805f8f9bdecff48476218923bd0298e938cdf47fe4225643d');
});

test.each([
  [1, 32, 34, 17_408],
  [8, 256, 258, 1_056_768],
  [16, 512, 514, 4_210_688],
  [32, 1024, 1026, 16_809_984],
  [128, 4096, 4098, 268_566_528],
  [1024, 32_768, 32_770, 17_180_917_760],
])('lays out chunks of %i sectors as the kernel does', (c, entries, area1, byte) => {
  const layout = format.layoutOf(sector(c));
  expect(layout.entries).toBe(entries);
  expect(format.areaChunk(layout, 1)).toBe(area1);
  expect(format.areaChunk(layout, 1) * layout.chunkBytes).toBe(byte);
});

test('never counts a metadata chunk as data', () => {
  fc.assert(
    fc.property(fc.constantFrom(1, 8, 16, 128), fc.nat(100_000), (c, i) => {
      const layout = format.layoutOf(sector(c));
      const n = 2 + i + Math.floor(i / layout.entries);
      expect(format.isMetadata(layout, n)).toBe(false);
      expect(format.nextData(layout, n)).toBe(2 + i + 1 + Math.floor((i + 1) / layout.entries));
      expect(format.chunksFor(layout, i + 1)).toBe(format.nextData(layout, n));
    }),
  );
});

test('reads back what it wrote, up to the first entry without a new chunk', () => {
  const entry = fc.tuple(fc.nat(format.MAX_CHUNK), fc.integer({ min: 1, max: format.MAX_CHUNK }));
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 32 }), (entries) => {
      const area = new DataView(new ArrayBuffer(512));
      for (const [i, [old, to]] of entries.entries()) format.setException(area, i, old, to);
      const seen: [number, number][] = [];
      expect(format.eachException(area, (old, to) => seen.push([old, to]))).toBe(entries.length);
      expect(seen).toEqual(entries);
    }),
  );
});

test.each([
  [0, 'power of 2'],
  [3, 'power of 2'],
  [24, 'power of 2'],
  [4, 'blocksize'],
  [8, undefined],
  [2097152, undefined],
  [4194304, 'too high'],
])('judges a chunk of %i sectors over 4096-byte blocks', (c, fault) => {
  if (fault) expect(format.chunkSizeFault(c, [512, 4096])).toContain(fault);
  else expect(format.chunkSizeFault(c, [512, 4096])).toBeUndefined();
});
