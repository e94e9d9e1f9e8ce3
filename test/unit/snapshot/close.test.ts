import { expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { PersistentStore } from '../../../src/stores/exception/persistent.ts';
import { Exceptions } from '../../../src/targets/snapshot/exceptions.ts';
import { ScriptedDevice } from '../../../src/testing/scripted-device.ts';
import { bytes, SECTOR, sector } from '../../../src/units.ts';

test('a snapshot that became invalid is closed when a commit that goes on beside has ended', async () => {
  const cow = new ScriptedDevice(new MemoryDevice(bytes(128 * SECTOR)));
  const store = await PersistentStore.open(cow, sector(1));
  const exceptions = new Exceptions(store, cow, cow);
  const first = store.allocate(5);
  store.settle(first, true);
  let flushes = 0;
  cow.hold = (operation) => operation === 'flush' && ++flushes === 1;
  const committed = store.commit(first);
  await cow.held(1);
  await store.invalidate();
  let closed = false;
  const closing = exceptions.close().then(() => (closed = true));
  await new Promise((resolve) => setImmediate(resolve));
  expect(closed).toBe(false);
  cow.go();
  await closing;
  expect(await committed).toBe('invalid');
});
