/** A server that takes only blocks which are larger than what its clients write. */
import { describe, expect, it, onTestFinished, test } from 'vitest';
import { NbdDevice } from '../../src/device/nbd.ts';
import { CMD } from '../../src/formats/nbd/constants.ts';
import { PersistentStore } from '../../src/stores/exception/persistent.ts';
import { bytes, SECTOR, sector } from '../../src/units.ts';
import { pattern } from './golden.ts';
import { fakeServer } from './nbd-fake-server.ts';
import { MiB } from './nbd-support.ts';

const BLOCK = 65536;

/** It refuses everything else. */
async function serverOfBlocks(size: number) {
  const memory = Buffer.alloc(size);
  const fake = await fakeServer((request, connection) => {
    const { type, offset, length, data } = request;
    if (offset % BLOCK !== 0 || length % BLOCK !== 0) return connection.simple(request, 22);
    if (type === CMD.WRITE) data.copy(memory, offset);
    connection.simple(request, 0, type === CMD.READ ? memory.subarray(offset, offset + length) : undefined);
  });
  fake.size = size;
  fake.blocks = { minimum: BLOCK, maximum: 2 * BLOCK };
  const open = async () => {
    const device = await NbdDevice.open(fake.uri);
    onTestFinished(() => device.close());
    return device;
  };
  return { open };
}

async function read(device: NbdDevice, at: number, length: number) {
  const data = Buffer.alloc(length, 0xee);
  await device.read(bytes(at), data, 0, length);
  return data;
}

test('what is written anywhere is read back, and nothing beside it has changed', async () => {
  const { open } = await serverOfBlocks(MiB);
  const device = await open();
  expect(device.blockSize).toBe(4096);
  await device.write(bytes(512), Buffer.alloc(300_032, 7), 0, 300_032);
  expect(await read(device, 0, 512)).toEqual(Buffer.alloc(512));
  expect(await read(device, 512, 300_032)).toEqual(Buffer.alloc(300_032, 7));
  expect(await read(device, 300_544, 512)).toEqual(Buffer.alloc(512));
});

describe.each([8, 16, 128, 256])('an exception store with chunks of %d sectors', (chunkSize) => {
  const chunkBytes = chunkSize * SECTOR;

  it('commits beside writes to the same blocks, and is opened again with all of it', async () => {
    // Small chunks fill an area and more.
    const count = Math.min(600, (5 * MiB) / chunkBytes);
    const { open } = await serverOfBlocks(Math.ceil(((count + 4) * chunkBytes) / BLOCK) * BLOCK);
    const device = await open();
    const store = await PersistentStore.open(device, sector(chunkSize));
    const data = (old: number) => pattern('b', old * chunkSize, chunkSize);
    const commits: unknown[] = [];
    for (let old = 0; old < count; ) {
      const batch = Array.from({ length: 8 }, () => ({ old, newChunk: store.allocate(old++) }));
      const put = ({ old, newChunk }: (typeof batch)[number]) =>
        device.write(bytes(newChunk * chunkBytes), data(old), 0, chunkBytes);
      await Promise.all(batch.map(put));
      for (const { newChunk } of batch) store.settle(newChunk, true);
      commits.push(store.commit(batch[7].newChunk));
    }
    expect(new Set(await Promise.all(commits))).toEqual(new Set(['durable']));
    const again = await open();
    const found = await PersistentStore.open(again, sector(chunkSize));
    expect([found.valid, found.size]).toEqual([true, count]);
    for (let old = 0; old < count; old++)
      expect((await read(again, found.lookup(old) * chunkBytes, chunkBytes)).equals(data(old))).toBe(true);
  });
});
