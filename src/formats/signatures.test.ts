import { expect, test } from 'vitest';
import { recognise, SIGNATURE_BYTES, SIGNATURES } from './signatures.ts';

test.each(SIGNATURES.map((signature) => [signature.name, signature] as const))('recognises %s', (name, signature) => {
  const disk = new Uint8Array(SIGNATURE_BYTES);
  disk.set(signature.bytes, signature.at);
  expect(recognise(disk)?.name).toBe(name);
});

test('recognises nothing in zeroes, in nothing, or in a signature that is cut off', () => {
  expect(recognise(new Uint8Array(SIGNATURE_BYTES))).toBeUndefined();
  expect(recognise(new Uint8Array(0))).toBeUndefined();
  expect(recognise(Uint8Array.from([0x51, 0x46, 0x49]))).toBeUndefined();
});

test('takes the image format for what a file is, not the file system that it may hold', () => {
  const disk = new Uint8Array(SIGNATURE_BYTES);
  for (const { at, bytes, name } of SIGNATURES) if (name === 'qcow2' || name.startsWith('ext2')) disk.set(bytes, at);
  expect(recognise(disk)?.name).toBe('qcow2');
});

test('reads far enough for every signature', () => {
  expect(Math.max(...SIGNATURES.map(({ at, bytes }) => at + bytes.length))).toBe(SIGNATURE_BYTES);
});
