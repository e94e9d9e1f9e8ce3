import { closeSync, openSync, writeSync } from 'node:fs';
import { prng } from '../src/lib/prng.ts';

/** `size` in bytes. No zeroes and no holes, which a server could take for less than they are; all of it is allocated. */
export function makeImage(path: string, size: number): void {
  const random = prng(1);
  const block = Buffer.alloc(1 << 20);
  for (let at = 0; at < block.length; at += 4) block.writeUInt32LE(random.below(2 ** 32), at);
  const file = openSync(path, 'w');
  for (let at = 0; at < size; at += block.length) {
    block.writeUInt32LE(at / block.length, 0);
    writeSync(file, block, 0, Math.min(block.length, size - at), at);
  }
  closeSync(file);
}
