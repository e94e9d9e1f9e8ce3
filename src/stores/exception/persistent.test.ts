import { describe, expect, test } from 'vitest';
import { MemoryDevice } from '../../device/memory.ts';
import { PowerSupply, SimulatedDisk } from '../../device/simulated.ts';
import { areaChunk, eachException, layoutOf } from '../../formats/exception-store.ts';
import { type Bytes, bytes, SECTOR, sector } from '../../units.ts';
import { fullCowSize, PersistentStore } from './persistent.ts';

const C = sector(1);
const status = (store: PersistentStore) => {
  const { allocated, total, metadata } = store.usage();
  return `${allocated}/${total} ${metadata}`;
};

async function put(store: PersistentStore, device: MemoryDevice | SimulatedDisk, old: number): Promise<number> {
  const to = store.allocate(old);
  const { chunkBytes } = store.layout;
  await device.write(bytes(to * chunkBytes), new Uint8Array(chunkBytes).fill(old + 1), 0, chunkBytes);
  store.settle(to, true);
  return to;
}

function area(device: MemoryDevice, index: number, c = C): [number, number][] {
  const layout = layoutOf(c);
  const view = new Uint8Array(layout.chunkBytes);
  device.read((areaChunk(layout, index) * layout.chunkBytes) as Bytes, view, 0, view.length);
  const found: [number, number][] = [];
  eachException(new DataView(view.buffer), (old, to) => found.push([old, to]));
  return found;
}

describe('golden vector B: crossing an area', () => {
  test('5. forty exceptions one by one fill the areas as the kernel does', async () => {
    const device = new MemoryDevice(128 * SECTOR);
    const store = await PersistentStore.open(device, C);
    expect(status(store)).toBe('2/128 2');
    for (let old = 0; old < 40; old++) {
      const to = await put(store, device, old);
      expect(await store.commit(to)).toBe('durable');
      if (old === 30) expect(status(store)).toBe('33/128 2');
      if (old === 31) expect(status(store)).toBe('35/128 3');
    }
    expect(status(store)).toBe('43/128 3');
    expect(area(device, 0)).toEqual(Array.from({ length: 32 }, (_, i) => [i, i + 2]));
    expect(area(device, 1)).toEqual(Array.from({ length: 8 }, (_, i) => [i + 32, i + 35]));
  });

  test('5. one batch over two areas leaves the same bytes', async () => {
    const one = new MemoryDevice(128 * SECTOR);
    const two = new MemoryDevice(128 * SECTOR);
    const single = await PersistentStore.open(one, C);
    const batched = await PersistentStore.open(two, C);
    for (let old = 0; old < 40; old++) await single.commit(await put(single, one, old));
    for (let old = 0; old < 40; old++) await put(batched, two, old);
    await batched.commit(batched.lastSettled);
    expect(status(batched)).toBe(status(single));
    const bytesOf = (device: MemoryDevice) => {
      const all = new Uint8Array(128 * SECTOR);
      device.read(bytes(0), all, 0, all.length);
      return all;
    };
    expect(bytesOf(two)).toEqual(bytesOf(one));
  });

  test('6. after exactly one full area the next exception goes past the next area', async () => {
    const device = new MemoryDevice(128 * SECTOR);
    const store = await PersistentStore.open(device, C);
    for (let old = 0; old < 32; old++) await put(store, device, old);
    await store.commit(store.lastSettled);
    const again = await PersistentStore.open(device, C);
    expect(status(again)).toBe('35/128 3');
    expect(again.allocate(99)).toBe(35);
  });
});

test('exceptions whose copies end out of order are committed in order of allocation', async () => {
  const device = new MemoryDevice(64 * SECTOR);
  const store = await PersistentStore.open(device, C);
  const chunks = [7, 3, 9].map((old) => store.allocate(old));
  const commits: Promise<unknown>[] = [];
  for (const i of [2, 0, 1]) {
    store.settle(chunks[i], true);
    commits.push(Promise.resolve(store.commit(chunks[i])));
  }
  expect(await Promise.all(commits)).toEqual(['durable', 'durable', 'durable']);
  expect(area(device, 0)).toEqual([
    [7, 2],
    [3, 3],
    [9, 4],
  ]);
});

test('7. entries in any order load, and the next free chunk is behind the highest', async () => {
  const device = new MemoryDevice(64 * SECTOR);
  await PersistentStore.open(device, C);
  const view = new DataView(new ArrayBuffer(SECTOR));
  for (const [i, [old, to]] of [
    [5, 9],
    [1, 3],
    [8, 33],
  ].entries()) {
    view.setUint32(i * 16, old, true);
    view.setUint32(i * 16 + 8, to, true);
  }
  device.write(bytes(SECTOR), new Uint8Array(view.buffer), 0, SECTOR);
  const store = await PersistentStore.open(device, C);
  expect([5, 1, 8, 2].map((old) => store.lookup(old))).toEqual([9, 3, 33, -1]);
  expect(store.allocate(100)).toBe(35);
});

test('entries beyond any device are refused and nothing is written', async () => {
  const device = new MemoryDevice(64 * SECTOR);
  await PersistentStore.open(device, C);
  const entry = new DataView(new ArrayBuffer(SECTOR));
  entry.setUint32(8, 5, true);
  entry.setUint32(12, 2 << 24, true);
  device.write(bytes(SECTOR), new Uint8Array(entry.buffer), 0, SECTOR);
  await expect(PersistentStore.open(device, C)).rejects.toMatchObject({ code: 'COW_ENTRY', errno: 'EINVAL' });
});

test('a store of a million exceptions opens without a promise an area, in at most 24 bytes each', async () => {
  const c = sector(8);
  const device = new MemoryDevice(fullCowSize(bytes(1_000_000 * 4096), c));
  const store = await PersistentStore.open(device, c);
  for (let old = 0; old < 1_000_000; old++) store.settle(store.allocate((old * 7919) % 1_000_003), true);
  expect(await store.commit(store.lastSettled)).toBe('durable');
  const again = await PersistentStore.open(device, c);
  expect(again.size).toBe(1_000_000);
  expect(again.lookup(7919)).toBe(store.lookup(7919));
  expect(again.memory).toBeLessThanOrEqual(24_000_000);
});

test('what is written of an area larger than 4 KiB is all that changed, in batches of any length', async () => {
  const c = sector(16);
  const device = new MemoryDevice(fullCowSize(bytes(3000 * 8192), c));
  const store = await PersistentStore.open(device, c);
  let old = 0;
  // An area has 512 entries, a block of it 256.
  for (const count of [1, 254, 2, 100, 600, 67, 1, 511, 1030]) {
    for (let i = 0; i < count; i++) store.settle(store.allocate(old++), true);
    expect(await store.commit(store.lastSettled)).toBe('durable');
    expect((await PersistentStore.open(device, c)).size).toBe(old);
  }
  const again = await PersistentStore.open(device, c);
  for (let i = 0; i < old; i++) expect(again.lookup(i)).toBe(store.lookup(i));
});

test('no space below for the metadata is reported and made good later', async () => {
  const disk = new SimulatedDisk(128 * SECTOR, { power: new PowerSupply() });
  const store = await PersistentStore.open(disk, C);
  const to = await put(store, disk, 5);
  disk.fault = (kind) => (kind === 'write' ? 'ENOSPC' : undefined);
  expect(await store.commit(to)).toBe('full');
  expect(store.valid).toBe(true);
  disk.fault = undefined;
  expect(await store.commit(to)).toBe('durable');
  expect((await PersistentStore.open(disk, C)).lookup(5)).toBe(to);
});

test('a chunk given up last is allocated again', async () => {
  const store = await PersistentStore.open(new MemoryDevice(64 * SECTOR), C);
  expect(store.allocate(1)).toBe(2);
  store.settle(2, false);
  expect(store.allocate(1)).toBe(2);
  expect(store.allocate(2)).toBe(3);
  store.settle(2, false);
  expect(store.allocate(3)).toBe(4);
  store.settle(3, true);
  store.settle(4, true);
  expect(await store.commit(4)).toBe('durable');
});
