import { expect, test } from 'vitest';
import { crc32c } from './crc32c.ts';

const sum = (bytes: Uint8Array) => (crc32c(0xffffffff, bytes, 0, bytes.length) ^ 0xffffffff) >>> 0;

test.each([
  // RFC 3720, B.4
  [new Uint8Array(32), 0x8a9136aa],
  [new Uint8Array(32).fill(0xff), 0x62a8ab43],
  [Uint8Array.from({ length: 32 }, (_, i) => i), 0x46dd794e],
  [new TextEncoder().encode('123456789'), 0xe3069283],
])('%s', (bytes, expected) => {
  expect(sum(bytes)).toBe(expected);
});

test('any part, and in parts', () => {
  const bytes = Uint8Array.from({ length: 100 }, (_, i) => i * 7);
  for (let from = 0; from < 20; from++)
    for (let to = from; to <= 100; to++) {
      let bitwise = 0xffffffff;
      for (const byte of bytes.subarray(from, to)) {
        bitwise ^= byte;
        for (let bit = 0; bit < 8; bit++) bitwise = bitwise & 1 ? (bitwise >>> 1) ^ 0x82f63b78 : bitwise >>> 1;
      }
      const middle = Math.floor((from + to) / 2);
      expect(crc32c(0xffffffff, bytes, from, to)).toBe(bitwise >>> 0);
      expect(crc32c(crc32c(0xffffffff, bytes, from, middle), bytes, middle, to)).toBe(bitwise >>> 0);
    }
});
