/** A persistent store on a COW device that fails, is slow or full. */
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../device/memory.ts';
import { areaChunk, eachException, layoutOf, setException } from '../../formats/exception-store.ts';
import { ScriptedDevice } from '../../testing/scripted-device.ts';
import { bytes, SECTOR, sector } from '../../units.ts';
import { PersistentStore } from './persistent.ts';

const C = sector(1);
const make = (sectors = 128) => new ScriptedDevice(new MemoryDevice(sectors * SECTOR));

function put(store: PersistentStore, device: ScriptedDevice, old: number): number {
  const to = store.allocate(old);
  device.disk.write(bytes(to * SECTOR), new Uint8Array(SECTOR).fill(old + 1), 0, SECTOR);
  store.settle(to, true);
  return to;
}

function entries(device: ScriptedDevice, index: number): [number, number][] {
  const area = new Uint8Array(SECTOR);
  device.disk.read(bytes(areaChunk(layoutOf(C), index) * SECTOR), area, 0, SECTOR);
  const found: [number, number][] = [];
  eachException(new DataView(area.buffer), (old, to) => found.push([old, to]));
  return found;
}

test('a commit does not wait for a chunk that was given up meanwhile', async () => {
  const device = make();
  const store = await PersistentStore.open(device, C);
  const first = put(store, device, 5);
  const second = store.allocate(6);
  const committed = store.commit(first);
  store.settle(second, false);
  expect(await committed).toBe('durable');
  expect(entries(device, 0)).toEqual([[5, first]]);
  expect(store.allocate(7)).toBe(second);
});

test('a commit that waits for a copy is answered when the store becomes invalid', async () => {
  const device = make();
  const store = await PersistentStore.open(device, C);
  const first = put(store, device, 5);
  store.allocate(6);
  const committed = store.commit(first);
  await new Promise((resolve) => setImmediate(resolve));
  await store.invalidate();
  expect(await committed).toBe('invalid');
});

test('a batch that found no space behind its flush is repeated as it was, before anything is added', async () => {
  const device = make();
  const store = await PersistentStore.open(device, C);
  for (let old = 0; old < 40; old++) put(store, device, old);
  let flushes = 0;
  device.fault = (operation) => (operation === 'flush' && ++flushes === 2 ? 'ENOSPC' : undefined);
  expect(await store.commit(store.lastSettled)).toBe('full');
  // The first area may be on the disk, full: a reader goes on to the second.
  for (let old = 40; old < 50; old++) put(store, device, old);
  device.fault = undefined;
  device.takeLog();
  const after: number[] = [];
  device.fault = (operation) => {
    if (operation === 'flush') after.push(entries(device, 1).length);
    return undefined;
  };
  expect(await store.commit(store.lastSettled)).toBe('durable');
  expect(after[0]).toBe(8);
  expect(entries(device, 1).length).toBe(18);
  expect((await PersistentStore.open(device, C)).size).toBe(50);
});

/** A store of `full` full areas and an empty one. */
function filled(full: number): ScriptedDevice {
  const device = make(33 * 32);
  const layout = layoutOf(C);
  const head = new DataView(new ArrayBuffer(SECTOR));
  for (const [i, value] of [0x70416e53, 1, 1, 1].entries()) head.setUint32(i * 4, value, true);
  device.disk.write(bytes(0), new Uint8Array(head.buffer), 0, SECTOR);
  for (let index = 0; index < full; index++) {
    const area = new DataView(new ArrayBuffer(SECTOR));
    for (let i = 0; i < 32; i++) setException(area, i, index * 32 + i, areaChunk(layout, index) + 1 + i);
    device.disk.write(bytes(areaChunk(layout, index) * SECTOR), new Uint8Array(area.buffer), 0, SECTOR);
  }
  return device;
}

test.each([true, false])('areas read ahead that nobody needs may fail (later: %s)', async (later) => {
  const device = filled(3);
  device.later = later;
  device.fault = (operation, at) => (operation === 'read' && at > 1 + 3 * 33 ? 'EIO' : undefined);
  const store = await PersistentStore.open(device, C);
  expect(store.size).toBe(96);
});

test.each([true, false])('an area that is needed may not, and no read is left behind (later: %s)', async (later) => {
  const device = filled(3);
  device.later = later;
  let ended = 0;
  device.fault = (operation, at) => {
    if (operation !== 'read') return undefined;
    ended++;
    return at > 33 ? 'EIO' : undefined;
  };
  await expect(PersistentStore.open(device, C)).rejects.toMatchObject({ errno: 'EIO' });
  expect(ended).toBe(device.takeLog().length);
});

/** A commit of which the area has been sent to the disk, and waits there. */
async function batchOnItsWay() {
  const device = make();
  const store = await PersistentStore.open(device, C);
  put(store, device, 5);
  device.hold = (operation, at) => operation === 'write' && at === 1;
  const committed = store.commit(store.lastSettled);
  await device.held(1);
  return { device, store, committed };
}

test('a reset waits for a batch on its way to the disk: nothing of it is in the emptied store', async () => {
  const { device, store, committed } = await batchOnItsWay();
  device.hold = undefined;
  const reset = store.reset();
  await new Promise((resolve) => setImmediate(resolve));
  device.go();
  expect(await committed).toBe('durable');
  await reset;
  expect(store.size).toBe(0);
  expect((await PersistentStore.open(device, C)).size).toBe(0);
});

test('a reset waits for a batch on its way to the disk, and for the header of an invalid store', async () => {
  const { device, store, committed } = await batchOnItsWay();
  device.hold = (operation, at) => operation === 'write' && at <= 1;
  const invalidated = store.invalidate();
  await device.held(2);
  device.hold = undefined;
  const reset = store.reset();
  await new Promise((resolve) => setImmediate(resolve));
  device.go();
  expect(await committed).toBe('invalid');
  await invalidated;
  await reset;
  expect(store.valid).toBe(true);
  expect(store.usage()).toEqual({ allocated: 2, total: 128, metadata: 2 });
  const again = await PersistentStore.open(device, C);
  expect(again.valid).toBe(true);
  expect(again.size).toBe(0);
});

/** Two chunks given up, the first one first, so that it stays in the queue. */
function giveUpTwo(store: PersistentStore): void {
  const first = store.allocate(50);
  const second = store.allocate(51);
  store.settle(first, false);
  store.settle(second, false);
}

test('a merge of an empty list shows that it is empty, whatever was given up before', async () => {
  const device = make();
  const store = await PersistentStore.open(device, C);
  giveUpTwo(store);
  expect(await store.lastRuns(100)).toEqual([]);
  expect(store.usage()).toMatchObject({ allocated: 2, metadata: 2 });
});

test('after a merge that was not finished a commit covers chunks whose numbers were given up before it', async () => {
  const device = make();
  const store = await PersistentStore.open(device, C);
  const kept = put(store, device, 5);
  const merged = put(store, device, 7);
  giveUpTwo(store);
  expect(await store.commit(merged)).toBe('durable');
  giveUpTwo(store);
  await store.lastRuns(1);
  await store.removeLast(1);
  store.resumeAllocating();
  const again = put(store, device, 9);
  expect(again).toBe(merged);
  expect(await store.commit(again)).toBe('durable');
  expect(entries(device, 0)).toEqual([
    [5, kept],
    [9, again],
  ]);
});

test('after a merge that was not finished no chunk is given out that is in use behind a gap', async () => {
  const device = make();
  const store = await PersistentStore.open(device, C);
  const gap = store.allocate(4);
  const kept = put(store, device, 5);
  const merged = put(store, device, 7);
  store.settle(gap, false);
  expect(await store.commit(merged)).toBe('durable');
  await store.lastRuns(1);
  await store.removeLast(1);
  store.resumeAllocating();
  const again = put(store, device, 9);
  expect([gap, kept]).not.toContain(again);
  expect(store.lookup(5)).toBe(kept);
});
