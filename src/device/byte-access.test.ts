import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Bytes, bytes } from '../units.ts';
import type { BlockDevice } from './block-device.ts';
import { ByteAccess } from './byte-access.ts';
import { MemoryDevice } from './memory.ts';

const SIZE = 8192;

/** A device that takes whole blocks only, and answers some turns later, in any order. */
function blockDevice(block: number, turns: () => number) {
  const memory = new MemoryDevice(SIZE);
  const check = (at: number, length: number) => {
    if (at % block !== 0 || (length % block !== 0 && at + length !== SIZE))
      throw new Error(`unaligned: ${length} at ${at}`);
  };
  const later = async (work: () => void) => {
    for (let left = turns(); left > 0; left--) await turn();
    work();
    for (let left = turns(); left > 0; left--) await turn();
  };
  const device: Pick<BlockDevice, 'size' | 'read' | 'write' | 'writeZeroes' | 'discard'> = {
    size: bytes(SIZE),
    read(at, into, start, length) {
      check(at, length);
      return later(() => memory.read(at, into, start, length));
    },
    write(at, from, start, length) {
      check(at, length);
      const data = Uint8Array.from(from.subarray(start, start + length));
      return later(() => memory.write(at, data, 0, length));
    },
    writeZeroes(at, length) {
      check(at, length);
      return later(() => memory.writeZeroes(at, length));
    },
    discard(at, length) {
      check(at, length);
      return later(() => memory.discard(at, length));
    },
  };
  return { memory, device };
}

const operation = fc.record({
  zero: fc.boolean(),
  at: fc.nat(SIZE - 1),
  length: fc.oneof(fc.nat(20), fc.nat(SIZE)),
  align: fc.boolean(),
  fill: fc.integer({ min: 1, max: 255 }),
});

describe('ByteAccess', () => {
  it.each([512, 4096])('gives requests of any alignment on blocks of %d the result of bytes', async (block) => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(operation, { maxLength: 12 }),
        fc.infiniteStream(fc.nat(3)),
        async (operations, turns) => {
          const { memory, device } = blockDevice(block, () => turns.next().value);
          const access = new ByteAccess(device, block);
          const model = new Uint8Array(SIZE);
          const busy: [number, number][] = [];
          const pending: (void | Promise<void>)[] = [];
          for (const { zero, fill, align, ...wish } of operations) {
            let at = wish.at;
            let length = Math.min(wish.length, SIZE - at);
            if (align) {
              at -= at % block;
              length = Math.min(Math.ceil(length / block) * block, SIZE - at);
            }
            // Only requests whose bytes overlap have no order; those that share blocks must not disturb each other.
            if (length === 0 || busy.some(([from, to]) => at < to && at + length > from)) continue;
            busy.push([at, at + length]);
            model.fill(zero ? 0 : fill, at, at + length);
            const data = new Uint8Array(length + 3).fill(fill);
            pending.push(
              zero ? access.writeZeroes(at as Bytes, length, true) : access.write(at as Bytes, data, 3, length),
            );
          }
          await Promise.all(pending);
          const found = new Uint8Array(SIZE);
          memory.read(bytes(0), found, 0, SIZE);
          expect(found).toEqual(model);
          const part = new Uint8Array(300);
          await access.read(bytes(1001), part, 7, 200);
          expect(part.subarray(7, 207)).toEqual(model.subarray(1001, 1201));
        },
      ),
      { numRuns: 60 },
    );
  });

  it('discards only the whole blocks within a range', async () => {
    const { memory, device } = blockDevice(512, () => 1);
    memory.write(bytes(0), new Uint8Array(SIZE).fill(1), 0, SIZE);
    const access = new ByteAccess(device, 512);
    await access.discard(bytes(100), 1500);
    await access.discard(bytes(5000), 10);
    const found = new Uint8Array(SIZE);
    memory.read(bytes(0), found, 0, SIZE);
    expect(found.subarray(0, 512).every((byte) => byte === 1)).toBe(true);
    expect(found.subarray(512, 1536).every((byte) => byte === 0)).toBe(true);
    expect(found.subarray(1536).every((byte) => byte === 1)).toBe(true);
  });

  it('goes on after a failed read-modify-write', async () => {
    const { memory, device } = blockDevice(512, () => 1);
    const access = new ByteAccess({ ...device, read: () => Promise.reject(new Error('bad sector')) }, 512);
    await expect(access.write(bytes(1), new Uint8Array(5), 0, 5)).rejects.toThrow('bad sector');
    await access.write(bytes(512), new Uint8Array(512).fill(7), 0, 512);
    const found = new Uint8Array(512);
    memory.read(bytes(512), found, 0, 512);
    expect(found[0]).toBe(7);
  });

  it('answers aligned requests at once when the device does', () => {
    const access = new ByteAccess(new MemoryDevice(SIZE), 512);
    expect(access.write(bytes(512), new Uint8Array(512), 0, 512)).toBeUndefined();
    expect(access.read(bytes(512), new Uint8Array(512), 0, 512)).toBeUndefined();
  });
});
