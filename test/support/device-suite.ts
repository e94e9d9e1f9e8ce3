import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { BlockDevice, Maybe } from '../../src/device/block-device.ts';
import { DmError, type Errno } from '../../src/errors.ts';
import { bytes, SECTOR } from '../../src/units.ts';

/** The part of the device that the tests use. */
const AREA = 2 * 2 ** 20;
const AREA_SECTORS = AREA / SECTOR;

interface DeviceUnderTest {
  /** Writable, of at least 4 MiB, with any content. */
  device: BlockDevice;
  /** Called after the device was closed. */
  cleanup(): Promise<void> | void;
}

/** The tests that every BlockDevice passes. They run on one device, in order, and compare it with a model of its bytes. */
export function deviceSuite(name: string, make: () => Promise<DeviceUnderTest>): void {
  describe(`${name} as a block device`, () => {
    let device: BlockDevice;
    let made: DeviceUnderTest | undefined;
    const model = new Uint8Array(AREA);

    beforeAll(async () => {
      made = await make();
      device = made.device;
      await device.read(bytes(0), model, 0, AREA);
    });
    afterAll(async () => {
      await made?.device.close();
      await made?.cleanup();
    });

    async function write(at: number, data: Uint8Array): Promise<void> {
      await device.write(bytes(at), data, 0, data.length);
      model.set(data, at);
    }
    async function content(at = 0, length = AREA): Promise<Uint8Array> {
      const into = new Uint8Array(length);
      await device.read(bytes(at), into, 0, length);
      return into;
    }
    async function expectModel(): Promise<void> {
      expectSame(await content(), model);
    }

    test('says what it is', () => {
      expect(device.name).not.toBe('');
      expect(device.size).toBeGreaterThanOrEqual(2 * AREA);
      expect(device.size % SECTOR).toBe(0);
      expect([512, 4096]).toContain(device.blockSize);
      expect(device.readOnly).toBe(false);
    });

    test.each([
      [1, 1],
      [3, 5],
      [7, 1],
      [8, 8],
      [127, 3],
      [255, 257],
    ])('reads back what was written to sector %i, %i long', async (first, count) => {
      await write(first * SECTOR, pattern(count * SECTOR, first));
      await expectModel();
    });

    test.each([
      [0, AREA],
      [3 * SECTOR, 2 ** 20 + 5 * SECTOR],
      [2 ** 16 - SECTOR, 2 ** 17 + 2 * SECTOR],
    ])('moves much at once: at %i, %i bytes', async (at, length) => {
      await write(at, pattern(length, length));
      await expectModel();
    });

    test('takes any part of a buffer and touches nothing else of it', async () => {
      for (const start of [0, 1, 7, 512, 4095]) {
        const from = pattern(3 * SECTOR + 8192, start);
        await device.write(bytes(11 * SECTOR), from, start, 3 * SECTOR);
        model.set(from.subarray(start, start + 3 * SECTOR), 11 * SECTOR);
        const into = new Uint8Array(3 * SECTOR + 8192).fill(0xee);
        await device.read(bytes(11 * SECTOR), into, start, 3 * SECTOR);
        const expected = new Uint8Array(3 * SECTOR + 8192).fill(0xee);
        expected.set(model.subarray(11 * SECTOR, 14 * SECTOR), start);
        expectSame(into, expected);
      }
    });

    test('has done with the buffer when a write completes', async () => {
      const data = pattern(8 * SECTOR, 99);
      await write(64 * SECTOR, data);
      data.fill(0xdd);
      await expectModel();
    });

    test('reads and writes its last sector', async () => {
      const at = device.size - SECTOR;
      const data = pattern(SECTOR, 1234);
      await device.write(bytes(at), data, 0, SECTOR);
      expectSame(await content(at, SECTOR), data);
      await expectModel();
    });

    test('refuses what lies beyond its end, and stays as it is', async () => {
      const { size } = device;
      const buffer = pattern(2 * SECTOR, 5);
      for (const at of [size - SECTOR, size, size + SECTOR, 2 ** 52]) {
        await expectError(() => device.read(bytes(at), buffer, 0, 2 * SECTOR));
        await expectError(() => device.write(bytes(at), buffer, 0, 2 * SECTOR));
        await expectError(() => device.writeZeroes(bytes(at), 2 * SECTOR, true));
        await expectError(() => device.writeZeroes(bytes(at), 2 * SECTOR, false));
        await expectError(() => device.discard(bytes(at), 2 * SECTOR));
      }
      expect(device.size).toBe(size);
      await expectModel();
    });

    test.each([true, false])('zeroes a range, mayUnmap %s', async (mayUnmap) => {
      const ranges = [
        [3, 1],
        [9, 22],
        [128, 128],
        [1001, 2047],
      ];
      await write(0, pattern(AREA, 7));
      for (const [first, count] of ranges) {
        await device.writeZeroes(bytes(first * SECTOR), count * SECTOR, mayUnmap);
        model.fill(0, first * SECTOR, (first + count) * SECTOR);
      }
      await expectModel();
    });

    test('discards to old data or zeroes, and nothing beside it', async () => {
      await write(0, pattern(AREA, 8));
      const [at, length] = [129 * SECTOR, 1025 * SECTOR];
      if (!device.canDiscard) return expectError(() => device.discard(bytes(at), length), 'EOPNOTSUPP');
      await device.discard(bytes(at), length);
      takeDiscarded(model, await content(), at, length);
      await expectModel();
    });

    test('tiles any range with extents, and a zero extent reads as zeroes', async () => {
      await write(0, pattern(AREA, 9));
      await device.writeZeroes(bytes(2 ** 20), 2 ** 19, true);
      model.fill(0, 2 ** 20, 2 ** 20 + 2 ** 19);
      for (const [from, length] of [
        [0, AREA],
        [SECTOR, SECTOR],
        [2 ** 20 - SECTOR, 2 ** 19 + 2 * SECTOR],
        [2 ** 20 + SECTOR, 4 * SECTOR],
      ]) {
        const end = from + length;
        for (let at = from; at < end; ) {
          const extents = await device.extents(bytes(at), end - at);
          expect(extents.length).toBeGreaterThan(0);
          for (const extent of extents) {
            expect(extent.length).toBeGreaterThan(0);
            expect(extent.length % SECTOR).toBe(0);
            expect(at + extent.length).toBeLessThanOrEqual(end);
            if (extent.zero) expect(model.subarray(at, at + extent.length).every((byte) => byte === 0)).toBe(true);
            at += extent.length;
          }
        }
      }
    });

    test('flushes: with nothing to flush, after a write, and many at once beside writes', async () => {
      await device.flush();
      await write(0, pattern(SECTOR, 10));
      await device.flush();
      await device.flush();
      const waits: Maybe[] = [];
      for (let i = 0; i < 20; i++) {
        const data = pattern(SECTOR, 100 + i);
        waits.push(device.write(bytes(i * 9 * SECTOR), data, 0, SECTOR), device.flush());
        model.set(data, i * 9 * SECTOR);
      }
      await Promise.all(waits);
      await expectModel();
    });

    test('agrees with the model under operations in flight together', async () => {
      await fc.assert(
        fc.asyncProperty(fc.array(batch, { minLength: 1, maxLength: 12 }), async (batches) => {
          for (const operations of batches) await runBatch(device, model, operations);
          await expectModel();
        }),
        { numRuns: 60 },
      );
    });
  });
}

type Kind = 'read' | 'write' | 'zero' | 'unmap' | 'discard' | 'flush';

interface Operation {
  kind: Kind;
  /** Sectors left untouched before this operation's range. */
  gap: number;
  count: number;
  seed: number;
}

/** Operations whose ranges follow one another, so they do not overlap. */
const batch: fc.Arbitrary<Operation[]> = fc.array(
  fc.record({
    kind: fc.constantFrom<Kind>('read', 'write', 'write', 'zero', 'unmap', 'discard', 'flush'),
    gap: fc.oneof(fc.constant(0), fc.nat({ max: 40 }), fc.nat({ max: 1000 })),
    count: fc.oneof(fc.integer({ min: 1, max: 17 }), fc.integer({ min: 1, max: 400 })),
    seed: fc.nat({ max: 2 ** 16 }),
  }),
  { minLength: 1, maxLength: 8 },
);

/** Starts all operations before it waits for any, then brings the model to the same state. */
async function runBatch(device: BlockDevice, model: Uint8Array, operations: Operation[]): Promise<void> {
  const waits: Maybe[] = [];
  const checks: (() => Promise<void> | void)[] = [];
  let first = 0;
  for (const { kind, gap, count, seed } of operations) {
    first += gap;
    if (first + count > AREA_SECTORS) break;
    const at = first * SECTOR;
    const length = count * SECTOR;
    first += count;
    if (kind === 'flush') waits.push(device.flush());
    else if (kind === 'read') {
      const into = new Uint8Array(length);
      waits.push(device.read(bytes(at), into, 0, length));
      checks.push(() => expectSame(into, model.subarray(at, at + length)));
    } else if (kind === 'write') {
      const data = pattern(length, seed);
      waits.push(device.write(bytes(at), data, 0, length));
      checks.push(() => model.set(data, at));
    } else if (kind !== 'discard') {
      waits.push(device.writeZeroes(bytes(at), length, kind === 'unmap'));
      checks.push(() => void model.fill(0, at, at + length));
    } else if (device.canDiscard) {
      waits.push(device.discard(bytes(at), length));
      checks.push(async () => {
        const now = model.slice();
        await device.read(bytes(at), now, at, length);
        takeDiscarded(model, now, at, length);
      });
    }
  }
  await Promise.all(waits);
  for (const check of checks) await check();
}

/** Every discarded sector is its old self or zero; the model takes over which. */
function takeDiscarded(model: Uint8Array, now: Uint8Array, at: number, length: number): void {
  for (let sector = at; sector < at + length; sector += SECTOR) {
    const found = now.subarray(sector, sector + SECTOR);
    if (!found.every((byte) => byte === 0)) expectSame(found, model.subarray(sector, sector + SECTOR));
    model.set(found, sector);
  }
}

/** Never zero, different in every sector and for every seed. */
function pattern(length: number, seed: number): Uint8Array {
  const data = new Uint8Array(length);
  let state = (seed * 2654435761 + 12345) >>> 0;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    data[i] = (state >>> 24) | 1;
  }
  return data;
}

/** Says where two arrays differ; printing megabytes helps nobody. */
function expectSame(found: Uint8Array, expected: Uint8Array): void {
  if (Buffer.compare(found, expected) === 0) return;
  const at = found.findIndex((byte, index) => byte !== expected[index]);
  expect.fail(`byte ${at} (sector ${Math.floor(at / SECTOR)}) is ${found[at]}, expected ${expected[at]}`);
}

/** The operation throws or rejects with a DmError. */
async function expectError(operation: () => Maybe, errno?: Errno): Promise<void> {
  const error = await Promise.resolve()
    .then(operation)
    .then(
      () => expect.fail('the operation succeeded'),
      (reason: unknown) => reason,
    );
  expect(error).toBeInstanceOf(DmError);
  if (errno) expect((error as DmError).errno).toBe(errno);
}
