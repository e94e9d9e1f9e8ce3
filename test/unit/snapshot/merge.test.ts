/** `snapshot-merge` (dm-snapshot scenarios 63 to 69, 73, 74, 77, 77a, 77b, and the merge halves of 32, 38, 59, 70 to 72). */
import { describe, expect, onTestFinished, test } from 'vitest';
import { Merging } from '../../../src/targets/snapshot/merging.ts';
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
  type RigOptions,
  rigWith,
  snapshotData,
  turns,
  watch,
} from '../../support/rig.ts';

const EIO = { errno: 'EIO' };
const EINVAL = { errno: 'EINVAL' };

const mergeLine = (rig: { O?: number; C?: number; store?: string } = {}) =>
  `0 ${rig.O ?? 4096} snapshot-merge /dev/ram0 /dev/ram1 ${rig.store ?? 'P'} ${rig.C ?? 16}`;

/** The snapshot's table gives its exceptions to a merge table on the origin's device, which begins. */
async function handOver(rig: Rig, line: string): Promise<void> {
  await rig.load('origin', line);
  await rig.suspend('origin');
  await rig.suspend('snap');
  await rig.resume('origin');
}

/** Until nothing is left to merge, or the merge failed. */
async function ended(rig: Rig, name = 'origin'): Promise<string> {
  for (;;) {
    const text = await rig.status(name);
    const [, allocated, metadata] = /^(\d+)\/\d+ (\d+)$/.exec(text) ?? [];
    if (allocated === undefined || allocated === metadata) return text;
    await turns(1);
  }
}

async function merging(options: RigOptions & { chunks?: readonly number[] } = {}) {
  const { C = 8, O = 4096, W = 1024, chunks = [] } = options;
  const found = await rigWith({ C, O, W, ...options });
  for (const chunk of chunks) await found.rig.write('snap', chunk * C, snapshotData(chunk * C, C));
  await found.rig.flush('snap');
  const line = mergeLine({ C, O });
  return { ...found, C, O, line };
}

/** As `merging`, with batches of one chunk. */
async function oneByOne(chunks: readonly number[]) {
  const usual = Merging.batch;
  Merging.batch = 1;
  onTestFinished(() => void (Merging.batch = usual));
  return merging({ chunks });
}

/** Vector C: exceptions in this order, new chunks 2 to 8. */
const VECTOR_C = [10, 20, 21, 22, 23, 1, 2];

test('63. the last exceptions first, runs in one piece each, the origin flushed before the list is cut', async () => {
  const { rig, origin, cow, line } = await merging({ chunks: VECTOR_C });
  await rig.suspend('origin');
  await rig.suspend('snap');
  await rig.load('origin', line);
  rig.log.length = 0;
  await rig.resume('origin');
  expect(await ended(rig)).toBe('16/1024 16');
  // One batch: three writes share one flush, and one write of the area.
  expect(rig.log.filter((entry) => !entry.includes('R'))).toEqual([
    '1:0 W 8+16',
    '1:0 W 160+32',
    '1:0 W 80+8',
    '1:0 F',
    '1:1 W 8+8',
    '1:1 F',
  ]);
  expect(areaOf(rig, cow, 8)).toEqual([]);
  for (const chunk of VECTOR_C) expect(rig.peek(origin, chunk * 8, 8)).toEqual(snapshotData(chunk * 8, 8));
  expect(await rig.table('origin')).toBe('1:0 1:1 P 8');
});

describe('64. a sector of the origin that cannot be written', () => {
  /** Vector D: sector 100 of the origin is bad. */
  async function vectorD() {
    const found = await merging({ C: 1, W: 128, chunks: [5, 6, 7, 100, 20, 21, 22, 23, 8, 9] });
    const { origin } = found;
    origin.fault = (operation, sector, count) =>
      operation === 'write' && sector <= 100 && sector + count > 100 ? 'EIO' : undefined;
    await handOver(found.rig, found.line);
    expect(await ended(found.rig)).toBe('Merge failed');
    return found;
  }

  test('stops the merge behind it; what came before is merged, the rest stays', async () => {
    const { rig, cow } = await vectorD();
    expect(areaOf(rig, cow, 1)).toEqual([
      [5, 2],
      [6, 3],
      [7, 4],
      [100, 5],
    ]);
    expect(headerOf(rig, cow)).toEqual([MAGIC, 1, 1, 1]);
    cow.takeLog();
    for (const chunk of [5, 6, 7, 100]) expect(await rig.read('origin', chunk, 1)).toEqual(snapshotData(chunk, 1));
    expect(cow.takeLog()).toHaveLength(4);
    for (const chunk of [8, 9, 20, 23]) expect(await rig.read('origin', chunk, 1)).toEqual(snapshotData(chunk, 1));
    expect(cow.takeLog()).toEqual([]);
    await rig.write('origin', 5, originData(5, 1));
    await rig.write('origin', 50, originData(50, 1));
    expect(cow.takeLog('RF')).toEqual(['W 2+1']);
    expect((await rig.mapper.info({ name: 'origin' })).note).toContain('merging failed: write of sectors 100+1');
  });

  test('after a repair, suspend and resume finish the merge under the same status; a fresh table tells', async () => {
    const { rig, origin, cow, line } = await vectorD();
    origin.fault = undefined;
    await rig.suspend('origin');
    await rig.resume('origin');
    while (areaOf(rig, cow, 1).length > 0) await turns(1);
    expect(await rig.status('origin')).toBe('Merge failed');
    expect(rig.peek(origin, 100, 1)).toEqual(snapshotData(100, 1));
    await rig.remove('snap');
    await rig.recreate('origin', line);
    expect(await rig.status('origin')).toBe('2/128 2');
  });

  test('77b. a snapshot table takes over what is left: numbers again, and the chunk can be read', async () => {
    const { rig, cow } = await vectorD();
    await rig.remove('snap');
    await rig.load('origin', '0 4096 snapshot /dev/ram0 /dev/ram1 P 1');
    await rig.resume('origin');
    expect(await rig.status('origin')).toBe('6/128 2');
    expect(await rig.read('origin', 100, 1)).toEqual(snapshotData(100, 1));
    expect(await rig.read('origin', 20, 1)).toEqual(snapshotData(20, 1));
    // New exceptions come behind those that are left.
    await rig.write('origin', 200, snapshotData(200, 1));
    await rig.flush('origin');
    expect(areaOf(rig, cow, 1).at(-1)).toEqual([200, 6]);
  });
});

test('65. forty exceptions over two areas: both are zero afterwards, the header stays, no event', async () => {
  const chunks = Array.from({ length: 40 }, (_, i) => i * 2);
  const { rig, origin, cow, line } = await merging({ C: 1, W: 128, chunks });
  await handOver(rig, line);
  expect(await ended(rig)).toBe('2/128 2');
  for (const at of [1, 34]) expect(rig.peek(cow, at, 1).every((byte) => byte === 0)).toBe(true);
  expect(headerOf(rig, cow)).toEqual([MAGIC, 1, 1, 1]);
  expect(await rig.event('origin')).toBe(0);
  for (const chunk of chunks) expect(rig.peek(origin, chunk, 1)).toEqual(snapshotData(chunk, 1));
});

describe('66. in use while a batch is on its way', () => {
  /** Chunk 5 is the batch: the store's first write to the origin is held. Chunk 2 comes in the next one. */
  async function inFlight() {
    const found = await oneByOne([2, 5]);
    const { origin, rig } = found;
    origin.hold = (operation) => operation === 'write';
    await handOver(rig, found.line);
    await origin.held(1);
    origin.hold = undefined;
    found.cow.takeLog();
    origin.takeLog();
    return found;
  }

  test('a mapped chunk is read from the COW device, be it in the batch or not', async () => {
    const { rig, cow, origin, C } = await inFlight();
    for (const chunk of [5, 2]) expect(await rig.read('origin', chunk * C, 1)).toEqual(snapshotData(chunk * C, 1));
    expect(cow.takeLog()).toHaveLength(2);
    expect(await rig.read('origin', 0, 1)).toEqual(old(0, 1));
    origin.go();
    await ended(rig);
  });

  test('a write outside the batch goes to the COW device and is what gets merged', async () => {
    const { rig, cow, origin, C } = await inFlight();
    await rig.write('origin', 2 * C, originData(7, 1));
    expect(cow.takeLog()).toEqual([`W ${2 * C}+1`]);
    origin.go();
    await ended(rig);
    expect(rig.peek(origin, 2 * C, 2)).toEqual(Buffer.concat([originData(7, 1), snapshotData(2 * C + 1, 1)]));
  });

  test('a write into the batch waits for it and lands on the origin; one to an unmapped chunk does not', async () => {
    const { rig, cow, origin, C } = await inFlight();
    const waiting = rig.write('origin', 5 * C + 3, originData(9, 1));
    const state = watch(waiting);
    await rig.write('origin', 0, originData(0, 1));
    await turns();
    expect(state.done).toBe(false);
    expect(rig.peek(origin, 0, 1)).toEqual(originData(0, 1));
    cow.takeLog();
    origin.go();
    await waiting;
    expect(rig.peek(origin, 5 * C + 2, 3)).toEqual(
      Buffer.concat([snapshotData(5 * C + 2, 1), originData(9, 1), snapshotData(5 * C + 4, 1)]),
    );
    await ended(rig);
  });

  test('the write that waited is let go only when the list is cut, durably', async () => {
    const { rig, cow, origin, C } = await inFlight();
    cow.hold = (operation) => operation === 'flush';
    const waiting = watch(rig.write('origin', 5 * C, originData(9, 1)));
    origin.go();
    await cow.held(1);
    await turns();
    expect(waiting.done).toBe(false);
    expect(areaOf(rig, cow, 8)).toHaveLength(1);
    cow.go();
    while (!waiting.done) await turns(1);
    await ended(rig);
  });

  test('a write that spans the batch, a mapped and an unmapped chunk reaches each', async () => {
    const { rig, origin, C } = await inFlight();
    const waiting = rig.write('origin', 5 * C - 1, originData(5 * C - 1, 2));
    const other = rig.write('origin', 3 * C - 1, originData(3 * C - 1, 2));
    await other;
    origin.go();
    await waiting;
    await ended(rig);
    for (const at of [5 * C - 1, 3 * C - 1]) expect(rig.peek(origin, at, 2)).toEqual(originData(at, 2));
  });

  test('zeroes go where data would go', async () => {
    const { rig, origin, C } = await inFlight();
    const waiting = rig.writeZeroes('origin', 5 * C - 1, 2);
    await rig.writeZeroes('origin', 2 * C, 1);
    origin.go();
    await waiting;
    await ended(rig);
    for (const [at, count] of [
      [5 * C - 1, 2],
      [2 * C, 1],
    ])
      expect(rig.peek(origin, at, count).every((byte) => byte === 0)).toBe(true);
  });

  test('a write that is on its way to the COW device when its batch begins is part of what is merged', async () => {
    const { rig, cow, origin, C } = await inFlight();
    cow.hold = (operation) => operation === 'write';
    const written = rig.write('origin', 2 * C, originData(9, 1));
    await cow.held(1);
    cow.hold = undefined;
    origin.go();
    // The batch of chunk 2 has begun, and waits.
    while (areaOf(rig, cow, 8).length > 1) await turns(1);
    await turns();
    expect(origin.takeLog().filter((entry) => entry === `W ${2 * C}+8`)).toEqual([]);
    cow.go();
    await written;
    await ended(rig);
    expect(rig.peek(origin, 2 * C, 1)).toEqual(originData(9, 1));
  });

  test('a write into a batch that waits for another one before it copies lands on the origin', async () => {
    const { rig, cow, origin, C } = await inFlight();
    cow.hold = (operation, sector) => operation === 'write' && sector >= 16;
    const first = rig.write('origin', 2 * C, originData(9, 1));
    await cow.held(1);
    origin.go();
    while (areaOf(rig, cow, 8).length > 1) await turns(1);
    await turns();
    const second = rig.write('origin', 2 * C + 1, originData(10, 1));
    await turns();
    cow.go(0);
    await first;
    await ended(rig);
    cow.go();
    await second;
    expect(rig.peek(origin, 2 * C, 2)).toEqual(Buffer.concat([originData(9, 1), originData(10, 1)]));
  });
});

describe('67. another snapshot of the origin', () => {
  async function beside(W = 1024, store = 'P') {
    const found = await merging({ chunks: [3, 4, 7] });
    const { rig } = found;
    const other = rig.disk(2, W);
    await rig.suspend('origin');
    await rig.create('other', `0 4096 snapshot /dev/ram0 /dev/ram2 ${store} 16`);
    await rig.resume('origin');
    rig.log.length = 0;
    return { ...found, other };
  }

  test('has its copies, durably, before a batch overwrites the origin, and never changes', async () => {
    const { rig, line } = await beside();
    await handOver(rig, line);
    await ended(rig);
    expect(await rig.read('other', 0, 4096)).toEqual(old(0, 4096));
    expect(await rig.status('other')).toBe('80/1024 32');
    const first = rig.log.findIndex((entry) => entry.startsWith('1:0 W'));
    const area = rig.log.indexOf('1:2 W 16+8');
    expect(area).toBeGreaterThanOrEqual(0);
    expect(rig.log.indexOf('1:2 F', area)).toBeLessThan(first);
  });

  test('writes to the merging device are copied for it, and not for the one that merges', async () => {
    const { rig, cow, line } = await beside();
    await handOver(rig, line);
    await ended(rig);
    cow.takeLog();
    await rig.write('origin', 800, originData(800, 1));
    expect(cow.takeLog()).toEqual([]);
    expect(await rig.read('other', 800, 1)).toEqual(old(800, 1));
  });

  test.each(['P', 'PO'])('68. with no room left (%s) it goes Invalid, and the merge finishes', async (store) => {
    const { rig, origin, line } = await beside(48, store);
    await handOver(rig, line);
    expect(await ended(rig)).toBe('16/1024 16');
    expect(await rig.status('other')).toBe('Invalid');
    for (const chunk of [3, 4, 7]) expect(rig.peek(origin, chunk * 8, 8)).toEqual(snapshotData(chunk * 8, 8));
  });
});

describe('handover to a merge', () => {
  test('69. resumed before the source is suspended: EINVAL, the device suspended, the new table live', async () => {
    const { rig, line } = await merging({ chunks: [3] });
    await rig.load('origin', line);
    await rig.suspend('origin');
    await expect(rig.resume('origin')).rejects.toMatchObject(EINVAL);
    expect(await rig.mapper.info({ name: 'origin' })).toMatchObject({ suspended: true, live: true, inactive: false });
    expect(await rig.status('origin')).toBe('0/1024 0');
    await rig.suspend('snap');
    await rig.resume('origin');
    await ended(rig);
  });

  test('70. the source cannot resume while the merge waits; afterwards it is Invalid and answers EIO', async () => {
    const { rig, line } = await merging({ chunks: [3] });
    await rig.load('origin', line);
    await rig.suspend('origin');
    await rig.suspend('snap');
    await expect(rig.resume('snap')).rejects.toMatchObject(EINVAL);
    await rig.resume('origin');
    await rig.resume('snap');
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.table('snap')).toBe('1:0 1:1 P 0');
    await expect(rig.read('snap', 0, 1)).rejects.toMatchObject(EIO);
    await expect(rig.write('snap', 0, old(0, 1))).rejects.toMatchObject(EIO);
    await ended(rig);
  });

  test('the device shows the snapshot from its first moment on', async () => {
    const { rig, origin, line } = await merging({ chunks: [3] });
    await rig.write('origin', 100, originData(100, 1));
    origin.hold = (operation) => operation === 'write';
    await handOver(rig, line);
    expect(await rig.read('origin', 24, 8)).toEqual(snapshotData(24, 8));
    expect(await rig.read('origin', 100, 1)).toEqual(old(100, 1));
    origin.go();
    await ended(rig);
    expect(rig.peek(origin, 24, 8)).toEqual(snapshotData(24, 8));
    expect(rig.peek(origin, 100, 1)).toEqual(old(100, 1));
  });

  test('71. the source removed before: the merge is Invalid and shows the origin; a fresh table merges', async () => {
    const { rig, origin, cow, line } = await merging({ chunks: [3] });
    await rig.load('origin', line);
    await rig.suspend('origin');
    await rig.remove('snap');
    await rig.resume('origin');
    expect(await rig.status('origin')).toBe('Invalid');
    expect(await rig.read('origin', 24, 8)).toEqual(old(24, 8));
    await rig.write('origin', 800, originData(800, 1));
    await rig.flush('origin');
    expect(headerOf(rig, cow)).toEqual([MAGIC, 1, 1, 8]);
    await rig.recreate('origin', line);
    expect(await ended(rig)).toBe('16/1024 16');
    expect(rig.peek(origin, 24, 8)).toEqual(snapshotData(24, 8));
    expect(rig.peek(origin, 800, 1)).toEqual(originData(800, 1));
  });

  test('72. a second merge into the origin, and a third table on the COW device, are refused', async () => {
    const { rig, origin, line } = await merging({ chunks: [3] });
    rig.disk(2, 1024);
    await rig.mapper.create('second');
    await rig.load('origin', line);
    await expect(rig.load('second', line)).rejects.toMatchObject(EINVAL);
    await expect(rig.load('second', line.replace('ram1', 'ram2'))).rejects.toMatchObject(EINVAL);
    await expect(rig.load('second', line.replace('-merge', ''))).rejects.toMatchObject(EINVAL);
    origin.hold = (operation) => operation === 'write';
    await rig.suspend('snap');
    await rig.resume('origin');
    await expect(rig.load('second', line.replace('ram1', 'ram2'))).rejects.toMatchObject(EINVAL);
    origin.go();
    await ended(rig);
  });

  test('73. a transient store cannot be merged, and of two merge tables without sources the second is refused', async () => {
    const { rig } = await rigWith({ C: 8, store: 'N' });
    await rig.mapper.create('merge');
    for (const store of ['P', 'N'])
      await expect(rig.load('merge', mergeLine({ C: 8, store }))).rejects.toMatchObject(EINVAL);
    await rig.remove('snap');
    await expect(rig.load('merge', mergeLine({ C: 8, store: 'N' }))).rejects.toMatchObject(EINVAL);
    rig.disk(2, 1024);
    await rig.load('merge', mergeLine({ C: 8 }));
    await rig.mapper.create('second');
    await expect(rig.load('second', mergeLine({ C: 8 }).replace('ram1', 'ram2'))).rejects.toMatchObject(EINVAL);
  });

  test('an origin that cannot be written is refused', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.remove('snap');
    Object.defineProperty(origin, 'readOnly', { value: true });
    await rig.mapper.create('merge');
    await expect(rig.load('merge', mergeLine({ C: 8 }))).rejects.toMatchObject({ errno: 'EACCES' });
  });

  test('copies that writers of the origin began after the suspend are in the list before the merge reads it', async () => {
    const { rig, cow, line } = await merging({ chunks: [3] });
    await rig.create('side', '0 4096 snapshot-origin /dev/ram0');
    await rig.load('origin', line);
    await rig.suspend('origin');
    await rig.suspend('snap');
    cow.hold = (operation) => operation === 'write';
    const written = rig.write('side', 800, originData(800, 1));
    await cow.held(1);
    const resumed = rig.resume('origin');
    await turns();
    cow.go();
    await Promise.all([written, resumed]);
    await ended(rig);
    // Of the two the snapshot's came first: the write had been acknowledged by nobody.
    expect(await rig.status('origin')).toBe('16/1024 16');
  });
});

test('74. over an invalid store: Invalid, and everything goes to the origin', async () => {
  const { rig, origin, cow, line } = await merging({ chunks: [3] });
  cow.fault = (operation, sector) => (operation === 'write' && sector > 0 ? 'EIO' : undefined);
  await rig.write('origin', 800, originData(800, 1));
  cow.fault = undefined;
  expect(await rig.status('snap')).toBe('Invalid');
  await rig.remove('snap');
  await rig.recreate('origin', line);
  expect(await rig.status('origin')).toBe('Invalid');
  await rig.write('origin', 24, originData(24, 1));
  expect(rig.peek(origin, 24, 1)).toEqual(originData(24, 1));
  expect(await rig.read('origin', 25, 1)).toEqual(old(25, 1));
});

test('77. an overflowed snapshot is merged on disk while the status says Overflow', async () => {
  const { rig, origin, cow } = await merging({ C: 8, W: 32, store: 'PO', chunks: [3, 4] });
  await expect(rig.write('snap', 800, snapshotData(800, 1))).rejects.toMatchObject(EIO);
  expect(await rig.status('snap')).toBe('Overflow');
  await handOver(rig, mergeLine({ C: 8, store: 'PO' }));
  while (areaOf(rig, cow, 8).length > 0) await turns(1);
  await turns();
  expect(await rig.status('origin')).toBe('Overflow');
  for (const chunk of [3, 4]) expect(rig.peek(origin, chunk * 8, 8)).toEqual(snapshotData(chunk * 8, 8));
});

describe('77a. a live merge table', () => {
  test('is not replaced by another merge table', async () => {
    const { rig, line } = await merging({ chunks: [3] });
    await handOver(rig, line);
    await rig.remove('snap');
    await expect(rig.load('origin', line)).rejects.toMatchObject(EINVAL);
    await ended(rig);
  });

  test('replaced by a snapshot table it pauses, with the full image and numbers; merged again it finishes', async () => {
    const { rig, origin, cow, C, line } = await oneByOne([2, 5, 7]);
    origin.hold = (operation) => operation === 'write';
    await handOver(rig, line);
    await origin.held(1);
    await rig.remove('snap');
    await rig.load('origin', line.replace('-merge', ''));
    const resumed = rig.resume('origin');
    const state = watch(resumed);
    await turns();
    // The batch under way is finished first.
    expect(state.done).toBe(false);
    origin.go();
    await resumed;
    expect(areaOf(rig, cow, C)).toEqual([
      [2, 2],
      [5, 3],
    ]);
    expect(await rig.status('origin')).toBe(`${4 * C}/1024 ${2 * C}`);
    for (const chunk of [2, 5, 7]) expect(await rig.read('origin', chunk * C, 1)).toEqual(snapshotData(chunk * C, 1));
    await rig.write('origin', 0, snapshotData(0, 1));
    await rig.load('origin', line);
    await rig.suspend('origin');
    await rig.resume('origin');
    await ended(rig);
    for (const chunk of [2, 5, 7]) expect(rig.peek(origin, chunk * C, 1)).toEqual(snapshotData(chunk * C, 1));
  });
});

test('32. the last chunk of an origin that is no multiple of the chunk size is merged short', async () => {
  const { rig, origin, line } = await merging({ C: 16, O: 250, chunks: [2] });
  await rig.write('snap', 240, snapshotData(240, 10));
  await handOver(rig, line);
  expect(await ended(rig)).toBe('32/1024 32');
  expect(rig.peek(origin, 240, 10)).toEqual(snapshotData(240, 10));
  expect(rig.peek(origin, 32, 16)).toEqual(snapshotData(32, 16));
});

test('38. a flush reaches the origin and the COW device', async () => {
  const { rig, origin, cow, line } = await merging({ chunks: [3] });
  await handOver(rig, line);
  await ended(rig);
  origin.takeLog();
  cow.takeLog();
  await rig.flush('origin');
  expect([origin.takeLog(), cow.takeLog()]).toEqual([['F'], ['F']]);
});

test('59. discards: refused without the feature, without effect with it', async () => {
  const { rig, origin, cow, line } = await merging({ chunks: [3] });
  await handOver(rig, line);
  await ended(rig);
  await expect(rig.discard('origin', 0, 16)).rejects.toMatchObject({ errno: 'EOPNOTSUPP' });
  await rig.remove('snap');
  await rig.recreate('origin', `${line} 1 discard_zeroes_cow`);
  origin.takeLog();
  cow.takeLog();
  await rig.discard('origin', 0, 16);
  expect([...origin.takeLog(), ...cow.takeLog()]).toEqual([]);
});

describe('suspend', () => {
  test('waits for the batch under way, and resume goes on', async () => {
    const { rig, origin, cow, C, line } = await oneByOne([2, 5]);
    origin.hold = (operation) => operation === 'write';
    await handOver(rig, line);
    await origin.held(1);
    const suspended = watch(rig.suspend('origin'));
    await turns();
    expect(suspended.done).toBe(false);
    origin.go();
    while (!suspended.done) await turns(1);
    origin.takeLog();
    await turns();
    expect(origin.takeLog()).toEqual([]);
    expect(areaOf(rig, cow, C)).toEqual([[2, 2]]);
    await rig.resume('origin');
    await ended(rig);
    expect(areaOf(rig, cow, C)).toEqual([]);
  });

  test('of a device whose writes wait for the batch lets them end', async () => {
    const { rig, origin, C, line } = await oneByOne([2, 5]);
    origin.hold = (operation) => operation === 'write';
    await handOver(rig, line);
    await origin.held(1);
    const written = rig.write('origin', 5 * C, originData(1, 1));
    const suspended = rig.suspend('origin');
    origin.go();
    await Promise.all([written, suspended]);
    expect(rig.peek(origin, 5 * C, 1)).toEqual(originData(1, 1));
    await rig.resume('origin');
  });
});

describe('when the list cannot be cut', () => {
  /** The flush of the COW device fails: nobody knows which exceptions are on the disk. */
  async function torn() {
    const found = await oneByOne([3, 9]);
    const { rig, cow, line } = found;
    await rig.load('origin', line);
    await rig.suspend('origin');
    await rig.suspend('snap');
    cow.fault = (operation) => (operation === 'flush' ? 'EIO' : undefined);
    await rig.resume('origin');
    expect(await ended(rig)).toBe('Merge failed');
    return found;
  }

  test('writes to the batch fail, since no place would keep them; reads and other writes go on', async () => {
    const { rig } = await torn();
    await expect(rig.write('origin', 72, originData(72, 1))).rejects.toMatchObject(EIO);
    expect(await rig.read('origin', 72, 8)).toEqual(snapshotData(72, 8));
    await rig.write('origin', 24, originData(24, 1));
    await rig.write('origin', 800, originData(800, 1));
  });

  test('no other table takes over until it is; resumed, the merge tries again', async () => {
    const { rig, origin, cow, line } = await torn();
    await rig.remove('snap');
    await rig.load('origin', line.replace('-merge', ''));
    await expect(rig.resume('origin')).rejects.toMatchObject(EIO);
    cow.fault = undefined;
    await rig.resume('origin');
    expect(await rig.status('origin')).toBe('24/1024 16');
    await rig.write('origin', 72, snapshotData(7, 8));
    expect(rig.peek(origin, 72, 8)).toEqual(snapshotData(72, 8));
  });

  test('a resume cuts it, and then writes go to the origin, those too that came before', async () => {
    const { rig, origin, cow } = await torn();
    cow.fault = undefined;
    await rig.suspend('origin');
    await rig.resume('origin');
    await rig.write('origin', 72, originData(72, 1));
    expect(rig.peek(origin, 72, 1)).toEqual(originData(72, 1));
    await rig.write('origin', 24, originData(24, 1));
    while (areaOf(rig, cow, 8).length > 0) await turns(1);
    expect(rig.peek(origin, 24, 1)).toEqual(originData(24, 1));
    expect(areaOf(rig, cow, 8)).toEqual([]);
  });
});

test('a list that another program has changed is not merged', async () => {
  const { rig, origin, cow, line } = await merging({ C: 1, W: 128, chunks: Array.from({ length: 40 }, (_, i) => i) });
  await rig.remove('snap');
  await rig.recreate('origin', '0 4096 snapshot /dev/ram0 /dev/ram1 P 1');
  await rig.load('origin', line);
  await rig.suspend('origin');
  const first = rig.peek(cow, 1, 1);
  first.writeBigUInt64LE(999n, 0);
  rig.poke(cow, 1, first);
  await rig.resume('origin');
  expect(await ended(rig)).toBe('Merge failed');
  expect(rig.peek(origin, 0, 1)).toEqual(old(0, 1));
});

test('an exception that leads to metadata is not merged', async () => {
  const rig = new Rig();
  closeAfterwards(rig);
  const origin = rig.disk(0, 64, { content: old(0, 64) });
  const cow = rig.disk(1, 4096);
  rig.poke(cow, 0, header(MAGIC, 1, 1, 8));
  // Area 1 of the store.
  rig.poke(cow, 8, area(8, [[3, 258]]));
  await rig.create('origin', '0 64 snapshot-merge /dev/ram0 /dev/ram1 P 8');
  expect(await ended(rig)).toBe('Merge failed');
  expect(rig.peek(origin, 0, 64)).toEqual(old(0, 64));
});

test('an exception beyond the origin stops the merge before anything is written', async () => {
  const rig = new Rig();
  closeAfterwards(rig);
  const origin = rig.disk(0, 64, { content: old(0, 64) });
  const wider = rig.disk(3, 128, { content: old(0, 128) });
  rig.disk(1, 1024);
  await rig.create('snap', '0 128 snapshot /dev/ram3 /dev/ram1 P 8');
  await rig.write('snap', 120, snapshotData(120, 8));
  await rig.remove('snap');
  await rig.create('origin', '0 64 snapshot-merge /dev/ram0 /dev/ram1 P 8');
  expect(await ended(rig)).toBe('Merge failed');
  expect((await rig.mapper.info({ name: 'origin' })).note).toContain('beyond the origin');
  expect(rig.peek(origin, 0, 64)).toEqual(old(0, 64));
  expect(rig.peek(wider, 120, 8)).toEqual(old(120, 8));
});
