/** Origin writes that are acknowledged from memory: who sees them when, and what reaches the disks in which order. */
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { OriginBuffer } from '../../../src/targets/snapshot/origin-buffer.ts';
import { bytes } from '../../../src/units.ts';
import {
  areaOf,
  old,
  originData,
  type Rig,
  type RigOptions,
  rigWith,
  snapshotData,
  turns,
  watch,
} from '../../support/rig.ts';

beforeEach(() => {
  const { enough } = OriginBuffer;
  OriginBuffer.pages = 16;
  onTestFinished(() => void Object.assign(OriginBuffer, { pages: 0, enough }));
});

/** With a second snapshot `more`, on /dev/ram2. */
async function rigWithTwo({ C = 8, O = 4096 }: RigOptions, other = C) {
  const made = await rigWith({ C, O });
  const second = made.rig.disk(2, 1024);
  await made.rig.create('more', `0 ${O} snapshot /dev/ram0 /dev/ram2 P ${other}`);
  second.takeLog();
  made.rig.log.length = 0;
  return { ...made, second };
}

describe('a first write', () => {
  test('is acknowledged before anything is read or written', async () => {
    const { rig } = await rigWith({ C: 8 });
    expect(rig.mapper.device({ name: 'origin' }).write(bytes(80 * 512), originData(80, 8), 0, 8 * 512)).toBeUndefined();
    expect(rig.log).toEqual([]);
    expect(await rig.read('origin', 80, 8)).toEqual(originData(80, 8));
    expect(rig.log).toEqual([]);
    expect(await rig.read('snap', 80, 8)).toEqual(old(80, 8));
  });

  test('reaches the origin with a flush, when its copy is durable', async () => {
    const { rig } = await rigWith({ C: 8 });
    await rig.write('origin', 83, originData(83, 1));
    await rig.flush('origin');
    expect(rig.log).toEqual(['1:0 R 80+8', '1:1 W 16+8', '1:1 F', '1:1 W 8+8', '1:1 F', '1:0 W 83+1', '1:0 F']);
    expect(await rig.read('snap', 80, 8)).toEqual(old(80, 8));
    expect(await rig.read('origin', 80, 8)).toEqual(Buffer.concat([old(80, 3), originData(83, 1), old(84, 4)]));
  });

  test('of part of a page lies over the rest of it', async () => {
    const { rig } = await rigWith({ C: 8 });
    await rig.write('origin', 83, originData(83, 2));
    await rig.write('origin', 86, originData(86, 4));
    const expected = Buffer.concat([old(80, 3), originData(83, 2), old(85, 1), originData(86, 4), old(90, 6)]);
    expect(await rig.read('origin', 80, 16)).toEqual(expected);
    await rig.flush('origin');
    expect(await rig.read('origin', 80, 16)).toEqual(expected);
  });

  test('that is larger than a copy in memory is worth waits for its copies', async () => {
    OriginBuffer.pages = 2048;
    const { rig } = await rigWith({ C: 16, W: 4096 });
    await rig.write('origin', 0, originData(0, 1024));
    expect(rig.log.at(-1)).toBe('1:0 W 0+1024');
  });

  test('of zeroes waits for its copies', async () => {
    const { rig } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    await rig.writeZeroes('origin', 84, 8);
    expect(rig.log.at(-1)).toBe('1:0 Z 84+8');
    expect(await rig.read('origin', 80, 16)).toEqual(
      Buffer.concat([originData(80, 4), Buffer.alloc(4096), old(92, 4)]),
    );
    expect(await rig.read('snap', 80, 16)).toEqual(old(80, 16));
  });

  test('costs a snapshot that has no room for its copy, not the origin', async () => {
    const { rig } = await rigWith({ C: 8, W: 16 });
    await rig.write('origin', 80, originData(80, 8));
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(1);
    expect(await rig.read('origin', 80, 8)).toEqual(originData(80, 8));
  });

  test('reads nothing for a snapshot that has no room', async () => {
    const { rig } = await rigWith({ C: 8, W: 16 });
    await rig.write('origin', 80, originData(80, 8));
    await rig.flush('origin');
    expect(rig.log.filter((entry) => entry.startsWith('1:0'))).toEqual(['1:0 W 80+8', '1:0 F']);
  });

  test('while another snapshot is merged waits for its copies', async () => {
    const { rig } = await rigWithTwo({ C: 8 });
    await rig.write('snap', 0, snapshotData(0, 8));
    await rig.remove('snap');
    await rig.create('merge', '0 4096 snapshot-merge /dev/ram0 /dev/ram1 P 8');
    rig.log.length = 0;
    await rig.write('origin', 80, originData(80, 8));
    expect(rig.log).toContain('1:0 W 80+8');
  });
});

describe('beside somebody who always writes there', () => {
  /** Writes `count` times a turn apart, whoever else waits. */
  async function busy(rig: Rig, count: number): Promise<Promise<void>[]> {
    const writes: Promise<void>[] = [];
    for (let i = 0; i < count; i++) {
      writes.push(rig.write('origin', 80, originData(80, 8)));
      await turns(1);
    }
    return writes;
  }

  test('a read asks the disk once', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 1));
    origin.hold = (operation, _sector, count) => operation === 'read' && count === 16;
    const reading = rig.read('origin', 80, 16);
    await origin.held(1);
    await rig.write('origin', 81, originData(81, 1));
    await rig.flush('origin');
    await rig.write('origin', 82, originData(82, 1));
    origin.go(0);
    await turns();
    const again = origin.waiting;
    origin.go();
    expect((await reading).subarray(0, 512)).toEqual(originData(80, 1));
    expect(again).toBe(0);
  });

  test.each([
    ['zeroes', (rig: Rig) => rig.writeZeroes('origin', 84, 8), 'Z 84+8'],
    ['large writes', (rig: Rig) => rig.write('origin', 80, originData(80, 1024)), 'W 80+1024'],
  ])('%s wait for one batch', async (_what, write, entry) => {
    OriginBuffer.enough = 1;
    const { rig, origin } = await rigWith({ C: 8, W: 4096 });
    origin.later = true;
    await rig.write('origin', 80, originData(80, 8));
    const writing = write(rig);
    const writes = await busy(rig, 100);
    expect(origin.log).toContain(entry);
    await Promise.all([writing, ...writes]);
    expect(await rig.read('snap', 80, 16)).toEqual(old(80, 16));
  });
});

describe('a batch', () => {
  test('reads each chunk once for all snapshots, writes each COW device in one go, and commits once', async () => {
    const { rig } = await rigWithTwo({ C: 8 });
    await rig.touch([10, 40, 20], 8);
    await rig.flush('origin');
    expect(rig.log.filter((entry) => entry.startsWith('1:0'))).toEqual([
      ...['1:0 R 80+8', '1:0 R 320+8', '1:0 R 160+8'],
      ...['1:0 W 80+1', '1:0 W 320+1', '1:0 W 160+1', '1:0 F'],
    ]);
    for (const cow of ['1:1', '1:2'])
      expect(rig.log.filter((entry) => entry.startsWith(cow))).toEqual(
        ['W 16+24', 'F', 'W 8+8', 'F'].map((entry) => `${cow} ${entry}`),
      );
    for (const name of ['snap', 'more']) expect(await rig.read(name, 0, 400)).toEqual(old(0, 400));
  });

  test('for snapshots of differing chunk sizes, one of them shorter than the origin, copies for each what it needs', async () => {
    const { rig, origin, cow } = await rigWith({ C: 8, O: 256 });
    rig.disk(2, 1024);
    await rig.create('more', '0 100 snapshot /dev/ram0 /dev/ram2 P 16');
    await rig.touch([1, 12, 13, 14], 8);
    await rig.flush('origin');
    expect(areaOf(rig, cow, 8).map(([oldChunk]) => oldChunk)).toEqual([1, 12, 13, 14]);
    expect(await rig.read('snap', 0, 256)).toEqual(old(0, 256));
    expect(await rig.read('more', 0, 100)).toEqual(old(0, 100));
    expect(await rig.status('more')).toBe('64/1024 32');
    expect(origin.log).not.toContain('R 112+16');
  });

  test('writes what lies side by side in one go', async () => {
    const { rig, origin } = await rigWith({ C: 32 });
    for (let sector = 0; sector < 64; sector += 8) await rig.write('origin', sector, originData(sector, 8));
    await rig.flush('origin');
    expect(origin.takeLog()).toEqual(['R 0+64', 'W 0+64', 'F']);
  });

  test('is shared by all who flush', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    cow.hold = (operation) => operation === 'flush';
    await rig.touch([10], 8);
    const flushes = [rig.flush('origin')];
    await cow.held(1);
    await rig.touch([20, 30], 8);
    for (let i = 0; i < 8; i++) flushes.push(rig.flush('origin'));
    await turns();
    cow.go();
    await Promise.all(flushes);
    expect(cow.takeLog()).toEqual(['W 16+8', 'F', 'W 8+8', 'F', 'W 24+16', 'F', 'W 8+8', 'F']);
  });

  test('begins when enough is gathered, without a flush', async () => {
    OriginBuffer.enough = 3;
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.touch([10, 20], 8);
    await turns();
    expect(areaOf(rig, cow, 8)).toEqual([]);
    await rig.touch([30], 8);
    await turns();
    expect(areaOf(rig, cow, 8).length).toBe(3);
  });

  test('lets writers wait that find no room', async () => {
    OriginBuffer.pages = 2;
    const { rig, cow } = await rigWith({ C: 8 });
    cow.hold = (operation) => operation === 'flush';
    await rig.touch([10, 20], 8);
    const flushed = rig.flush('origin');
    await cow.held(1);
    await rig.touch([30, 40], 8);
    const writing = rig.write('origin', 400, originData(400, 8));
    const again = rig.write('origin', 240, originData(240, 8));
    const state = watch(writing);
    await again;
    await turns();
    expect(state.done).toBe(false);
    cow.go();
    await Promise.all([flushed, writing]);
    await rig.flush('origin');
    expect(await rig.read('origin', 400, 8)).toEqual(originData(400, 8));
    expect(await rig.read('origin', 240, 8)).toEqual(originData(240, 8));
    expect(await rig.read('snap', 0, 480)).toEqual(old(0, 480));
  });
});

test('a flush waits for two batches at most, however many writers wait for room', async () => {
  const size = 64 * 2 ** 20;
  const disk = new MemoryDevice(bytes(size));
  const write = disk.write.bind(disk);
  disk.write = async (...args) => {
    await new Promise((resolve) => setImmediate(resolve));
    await write(...args);
  };
  let batches = 0;
  const buffer = new OriginBuffer(disk, async () => void batches++);
  let ended = false;
  const page = originData(0, 8);
  const writer = async (from: number) => {
    for (let at = from; at < size && !ended; at += 64 * 4096)
      while (!buffer.put(at, page, 0, page.length)) await buffer.room(page.length);
  };
  const writers = Array.from({ length: 64 }, (_, i) => writer(i * 4096));
  const before = batches;
  await buffer.drained();
  expect(batches - before).toBeLessThanOrEqual(2);
  ended = true;
  await Promise.all(writers);
});

test('a write beyond what pages have numbers for goes another way', () => {
  const buffer = new OriginBuffer(new MemoryDevice(bytes(4096)), async () => {});
  expect(buffer.put(2 ** 52 - 4096, originData(0, 8), 0, 4096)).toBe(false);
  expect(buffer.empty).toBe(true);
});

test('copies that are under way side by side keep to themselves', async () => {
  // Chunks that are copied one at a time.
  const C = 4096;
  const { rig, cow } = await rigWith({ C, O: 4 * C, W: 8 * C });
  cow.hold = (operation) => operation === 'write';
  await rig.touch([0, 1], C);
  const flushed = rig.flush('origin');
  await cow.held(2);
  cow.go();
  await flushed;
  expect((await rig.read('snap', 0, 2 * C)).equals(old(0, 2 * C))).toBe(true);
});

test('a snapshot that goes gets nothing of a batch that begins then', async () => {
  OriginBuffer.enough = 2;
  // Of chunks that are copied one at a time.
  const C = 4096;
  const { rig, cow } = await rigWith({ C, O: 8 * C, W: 12 * C });
  cow.hold = (operation, sector) => operation === 'write' && sector >= 2 * C;
  await rig.touch([0, 1], C);
  await cow.held(1);
  await rig.touch([2, 3], C);
  const removing = rig.remove('snap');
  await turns();
  // Those that the removal waits for have been copied when these are.
  cow.go(0);
  for (let chunk = 1; chunk < 4; chunk++) {
    await cow.held(1);
    if (chunk === 3) await rig.touch([4, 5], C);
    cow.go(0);
  }
  await cow.held(1);
  await turns();
  cow.go();
  await removing;
  await rig.flush('origin');
  expect(cow.takeLog('RF').filter((entry) => entry.endsWith(`+${C}`) && !entry.startsWith(`W ${C}+`))).toHaveLength(5);
});

describe('a write over one that is on its way', () => {
  test('comes behind it, whatever the disks do', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    origin.hold = (operation) => operation === 'write';
    const flushed = rig.flush('origin');
    await origin.held(1);
    await rig.write('origin', 82, snapshotData(82, 2));
    const expected = Buffer.concat([originData(80, 2), snapshotData(82, 2), originData(84, 4)]);
    expect(await rig.read('origin', 80, 8)).toEqual(expected);
    origin.go();
    await flushed;
    expect(await rig.read('origin', 80, 8)).toEqual(expected);
    await rig.flush('origin');
    expect(rig.peek(origin, 80, 8)).toEqual(expected);
  });

  test('comes behind it too when it finds no room', async () => {
    OriginBuffer.pages = 1;
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    origin.hold = (operation) => operation === 'write';
    const flushed = rig.flush('origin');
    await origin.held(1);
    const writing = rig.write('origin', 80, snapshotData(80, 16));
    await turns();
    origin.go();
    await Promise.all([flushed, writing]);
    expect(rig.peek(origin, 80, 16)).toEqual(snapshotData(80, 16));
  });
});

test('a read that began before a batch reached the origin does not miss it', async () => {
  const { rig, origin } = await rigWith({ C: 8 });
  await rig.write('origin', 83, originData(83, 1));
  // A read that is answered long after the disk was looked at.
  let answer = () => {};
  const read = origin.read.bind(origin);
  origin.read = (...request) => {
    origin.read = read;
    read(...request);
    return new Promise((resolve) => (answer = resolve));
  };
  const reading = rig.read('origin', 80, 8);
  await rig.flush('origin');
  answer();
  expect(await reading).toEqual(Buffer.concat([old(80, 3), originData(83, 1), old(84, 4)]));
});

test('a copy waits for a read of the snapshot that is on its way', async () => {
  const { rig, origin } = await rigWith({ C: 8 });
  await rig.write('origin', 80, originData(80, 8));
  let first = true;
  origin.hold = (operation) => operation === 'read' && first;
  const reading = rig.read('snap', 80, 8);
  await origin.held(1);
  first = false;
  const flushed = rig.flush('origin');
  const state = watch(flushed);
  await turns();
  expect(state.done).toBe(false);
  origin.go();
  await flushed;
  expect(await reading).toEqual(old(80, 8));
});

test('a hole that was written to is none', async () => {
  const { rig, origin } = await rigWith({ C: 8 });
  await rig.write('origin', 80, originData(80, 8));
  await rig.mapper.device({ name: 'origin' }).extents(bytes(0), 4096 * 512);
  expect(origin.takeLog('R')).toEqual(['W 80+8', 'E 0+4096']);
});

describe('what was acknowledged is on the disk', () => {
  test.each([true, false])('when the device is suspended (noflush: %s)', async (noflush) => {
    const { rig, origin, cow } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    await rig.mapper.suspend({ name: 'origin' }, { noflush });
    expect(rig.peek(origin, 80, 8)).toEqual(originData(80, 8));
    expect(areaOf(rig, cow, 8)).toEqual([[10, 2]]);
  });

  test('when the device is removed', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    await rig.remove('origin');
    expect(rig.peek(origin, 80, 8)).toEqual(originData(80, 8));
  });

  test('when a snapshot is taken, with the origin in use', async () => {
    const { rig } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    rig.disk(2, 1024);
    await rig.create('late', '0 4096 snapshot /dev/ram0 /dev/ram2 P 8');
    await rig.write('origin', 80, snapshotData(80, 8));
    await rig.flush('origin');
    expect(await rig.read('late', 80, 8)).toEqual(originData(80, 8));
    expect(await rig.read('snap', 80, 8)).toEqual(old(80, 8));
  });

  test('when a snapshot is made equal to its origin', async () => {
    const { rig } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    await rig.mapper.revert({ name: 'snap' });
    expect(await rig.read('snap', 80, 8)).toEqual(originData(80, 8));
  });

  test('when the snapshot is removed: loaded again, it has its copy', async () => {
    const { rig, line } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    await rig.recreate('snap', line);
    await rig.flush('origin');
    expect(await rig.read('snap', 80, 8)).toEqual(old(80, 8));
  });

  test('when the status of the snapshot is asked for, unless it is asked for as it is', async () => {
    const { rig } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    expect((await rig.mapper.status({ name: 'snap' }, { noflush: true }))[0].text).toBe('16/1024 16');
    expect(await rig.status('snap')).toBe('24/1024 16');
  });

  test('when it is asked what differs from the origin', async () => {
    const { rig } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    const found = await rig.mapper.device({ name: 'snap' }).changed(bytes(0), 4096 * 512);
    expect(found.map(({ changed }) => changed)).toEqual([false, true, false]);
  });

  test('when its snapshot is handed over to a merge', async () => {
    const { rig } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    await rig.create('second', '0 4096 snapshot-origin /dev/ram0');
    await rig.write('second', 160, originData(160, 8));
    await rig.load('origin', '0 4096 snapshot-merge /dev/ram0 /dev/ram1 P 8');
    await rig.suspend('origin');
    await rig.write('second', 240, originData(240, 8));
    await rig.suspend('snap');
    await rig.resume('origin');
    expect(await rig.read('origin', 0, 400)).toEqual(old(0, 400));
  });

  test('a second later', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    onTestFinished(() => void vi.useRealTimers());
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.write('origin', 80, originData(80, 8));
    await vi.advanceTimersByTimeAsync(999);
    await turns();
    expect(rig.log).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    await turns();
    expect(rig.peek(origin, 80, 8)).toEqual(originData(80, 8));
    await vi.advanceTimersByTimeAsync(5000);
    expect(vi.getTimerCount()).toBe(0);
  });
});

test('memory is given back when nothing is written for a second', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  const disk = new MemoryDevice(65536, { name: 'disk' });
  const buffer = new OriginBuffer(disk, async () => {});
  const write = () => buffer.put(0, originData(0, 8), 0, 4096);
  write();
  await buffer.drained();
  await vi.advanceTimersByTimeAsync(999);
  write();
  await vi.advanceTimersByTimeAsync(1000);
  await turns();
  expect(buffer.memory).toBeGreaterThan(0);
  await vi.advanceTimersByTimeAsync(1000);
  expect(buffer.memory).toBe(0);
  expect(vi.getTimerCount()).toBe(0);
});

afterEach(() => void vi.useRealTimers());
