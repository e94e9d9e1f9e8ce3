import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ChunkMap, MAX_CHUNK } from './chunk-map.ts';

const number = fc.oneof(
  fc.nat(100),
  fc.integer({ min: 2 ** 32 - 20, max: 2 ** 32 + 20 }),
  fc.integer({ min: MAX_CHUNK - 20, max: MAX_CHUNK }),
  fc.nat(2 ** 31 - 1),
);

test('equals a Map in which the first entry of a key stays', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(number, number), { maxLength: 500 }), (entries) => {
      const map = new ChunkMap();
      const model = new Map<number, number>();
      for (const [key, value] of entries) {
        expect(map.add(key, value)).toBe(!model.has(key));
        if (!model.has(key)) model.set(key, value);
      }
      for (const [key, value] of model) expect(map.get(key)).toBe(value);
      for (const [key] of entries)
        for (const near of [key + 1, key - 1]) expect(map.get(near)).toBe(model.get(near) ?? -1);
      const seen = new Map<number, number>();
      map.each((key, value) => seen.set(key, value));
      expect(seen).toEqual(model);
      expect(map.size).toBe(model.size);
    }),
    { numRuns: 300 },
  );
});

test('equals a Map when entries are removed and added again', () => {
  const step = fc.tuple(
    fc.constantFrom('add', 'delete'),
    fc.oneof(
      fc.nat(40),
      fc.nat(40).map((n) => n * 1024),
      number,
    ),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 500 }), (steps) => {
      const map = new ChunkMap();
      const model = new Map<number, number>();
      for (const [what, key] of steps) {
        if (what === 'add') {
          map.add(key, key);
          model.set(key, key);
        } else expect(map.delete(key)).toBe(model.delete(key));
      }
      for (const [, key] of steps) expect(map.get(key)).toBe(model.get(key) ?? -1);
      expect(map.size).toBe(model.size);
      const seen = new Map<number, number>();
      map.each((key, value) => seen.set(key, value));
      expect(seen).toEqual(model);
    }),
    { numRuns: 500 },
  );
});

test('refuses numbers that it could not tell apart', () => {
  expect(() => new ChunkMap().add(MAX_CHUNK + 1, 0)).toThrow(RangeError);
  expect(() => new ChunkMap().add(0, MAX_CHUNK + 1)).toThrow(RangeError);
});

test.each([
  ['sequential', 1],
  ['strided', 977],
])('stays within 24 bytes an exception, %s', (_name, step) => {
  const map = new ChunkMap();
  for (let i = 0; i < 3_000_000; i++) {
    map.add((i * step) % 0xfffffff0, i + 2);
    if (i > 1000 && (i & 0xfff) === 0 && map.memory > 24 * map.size)
      expect(map.memory / map.size).toBeLessThanOrEqual(24);
  }
  expect(map.get(2_999_999 * step)).toBe(3_000_001);
});
