/** Who writes what where, and in which order (dm-snapshot scenarios 27 to 45). */
import { describe, expect, test } from 'vitest';
import {
  areaOf,
  closeAfterwards,
  old,
  originData,
  Rig,
  rigWith,
  snapshotData,
  turns,
  watch,
} from '../../support/rig.ts';

describe('a write through the origin', () => {
  test('27. copies the whole chunk, durably, before it reaches the origin', async () => {
    const { rig } = await rigWith({ C: 8 });
    await rig.write('origin', 83, originData(83, 1));
    expect(rig.log).toEqual(['1:0 R 80+8', '1:1 W 16+8', '1:1 F', '1:1 W 8+8', '1:1 F', '1:0 W 83+1']);
    expect(await rig.read('snap', 80, 8)).toEqual(old(80, 8));
    expect(await rig.read('origin', 80, 8)).toEqual(Buffer.concat([old(80, 3), originData(83, 1), old(84, 4)]));
  });

  test('28. to a chunk that has been copied touches no COW device', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('origin', 83, originData(83, 1));
    cow.takeLog();
    await rig.write('origin', 85, originData(85, 2));
    expect(cow.takeLog()).toEqual([]);
    expect(await rig.read('snap', 80, 8)).toEqual(old(80, 8));
  });

  test('37. that fills an area: the next one is zeroed and durable before', async () => {
    const { rig, cow } = await rigWith({ C: 1, O: 256, W: 128 });
    await rig.touch(Array(31).keys(), 1);
    cow.takeLog();
    await rig.touch([31], 1);
    expect(cow.takeLog()).toEqual(['W 33+1', 'W 34+1', 'F', 'W 1+1', 'F']);
  });

  test('39. straight to the device below shows in the snapshot and makes no exception', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    rig.poke(origin, 80, originData(80, 1));
    expect(await rig.read('snap', 80, 1)).toEqual(originData(80, 1));
    expect(await rig.status('snap')).toBe('16/1024 16');
  });

  test('zeroes copy as data does', async () => {
    const { rig } = await rigWith({ C: 8 });
    await rig.writeZeroes('origin', 84, 8);
    expect(await rig.read('snap', 80, 16)).toEqual(old(80, 16));
    expect(await rig.read('origin', 84, 8)).toEqual(Buffer.alloc(8 * 512));
    expect(await rig.status('snap')).toBe('32/1024 16');
  });
});

describe('a write through the snapshot', () => {
  test('29. of a whole chunk reads nothing: it succeeds over an origin that cannot be read', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    origin.fault = (operation) => (operation === 'read' ? 'EIO' : undefined);
    await rig.write('snap', 80, snapshotData(80, 8));
    expect(await rig.read('snap', 80, 8)).toEqual(snapshotData(80, 8));
    expect(await rig.status('snap')).toBe('24/1024 16');
  });

  test.each([false, true])('29. of a part fails there, and costs the snapshot (later: %s)', async (later) => {
    const { rig, origin } = await rigWith({ C: 8 });
    origin.later = later;
    origin.fault = (operation) => (operation === 'read' ? 'EIO' : undefined);
    await expect(rig.write('snap', 81, snapshotData(81, 1))).rejects.toMatchObject({ errno: 'EIO' });
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(1);
  });

  test('30. of a part keeps the other sectors of the chunk as the origin has them', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 81, snapshotData(81, 2));
    expect(await rig.read('snap', 80, 8)).toEqual(Buffer.concat([old(80, 1), snapshotData(81, 2), old(83, 5)]));
    // One write of the whole chunk; the kernel copies, commits, and writes the part over it.
    expect(cow.takeLog('R')).toEqual(['W 16+8']);
    await rig.flush('snap');
    expect(cow.takeLog()).toEqual(['F', 'W 8+8', 'F', 'F']);
  });

  test('31. of 16 sectors at sector 4 makes three exceptions, right at both edges', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 4, snapshotData(4, 16));
    await rig.flush('snap');
    expect(areaOf(rig, cow, 8)).toEqual([
      [0, 2],
      [1, 3],
      [2, 4],
    ]);
    expect(await rig.read('snap', 0, 32)).toEqual(Buffer.concat([old(0, 4), snapshotData(4, 16), old(20, 12)]));
  });

  test.each([false, true])(
    'of whole chunks is one write as far as they find places side by side (later: %s)',
    async (later) => {
      const { rig, cow, origin } = await rigWith({ C: 8 });
      cow.later = later;
      await rig.write('snap', 24, snapshotData(24, 8));
      cow.takeLog();
      await rig.write('snap', 4, snapshotData(4, 42));
      expect(origin.takeLog()).toEqual(['R 0+8', 'R 40+8']);
      // Chunk 3 has its place already.
      expect(cow.takeLog('R')).toEqual(['W 24+8', 'W 32+16', 'W 16+8', 'W 48+8', 'W 56+8']);
      expect(await rig.read('snap', 0, 48)).toEqual(Buffer.concat([old(0, 4), snapshotData(4, 42), old(46, 2)]));
      expect(await rig.status('snap')).toBe('64/1024 16');
    },
  );

  test.each([false, true])(
    'is acknowledged when its data is on the COW device, and its exception is durable with the next flush (later: %s)',
    async (later) => {
      const { rig, cow, line } = await rigWith({ C: 8 });
      cow.later = later;
      await rig.write('snap', 80, snapshotData(80, 8));
      expect(areaOf(rig, cow, 8)).toEqual([]);
      await rig.flush('snap');
      expect(areaOf(rig, cow, 8)).toEqual([[10, 2]]);
      await rig.write('snap', 88, snapshotData(88, 8));
      // And with the snapshot's end.
      await rig.recreate('snap', line);
      expect(await rig.read('snap', 80, 16)).toEqual(snapshotData(80, 16));
    },
  );

  test('is made durable by a write to the same chunk of the origin', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 80, snapshotData(80, 8));
    cow.takeLog();
    rig.log.length = 0;
    await rig.write('origin', 80, originData(80, 1));
    expect(rig.log).toEqual(['1:1 F', '1:1 W 8+8', '1:1 F', '1:0 W 80+1']);
    expect(areaOf(rig, cow, 8)).toEqual([[10, 2]]);
  });
});

describe('32. an origin of 250 sectors under chunks of 16', () => {
  const expected = Buffer.concat([old(0, 241), snapshotData(241, 4), old(245, 5)]);

  test('copies its last chunk short, and keeps all of it through a reload', async () => {
    const { rig, origin, cow, line } = await rigWith({ C: 16, O: 250 });
    await rig.write('origin', 249, originData(249, 1));
    expect(origin.takeLog()).toEqual(['R 240+10', 'W 249+1']);
    expect(cow.takeLog('RF')).toEqual(['W 32+10', 'W 16+8']);
    await rig.write('snap', 241, snapshotData(241, 4));
    await rig.recreate('snap', line);
    expect(await rig.read('snap', 0, 250)).toEqual(expected);
    expect(await rig.read('origin', 240, 10)).toEqual(Buffer.concat([old(240, 9), originData(249, 1)]));
  });

  test('keeps what a snapshot write into the last chunk leaves, and one of all of it', async () => {
    const { rig, line } = await rigWith({ C: 16, O: 250 });
    await rig.write('snap', 241, snapshotData(241, 4));
    await rig.recreate('snap', line);
    expect(await rig.read('snap', 0, 250)).toEqual(expected);
    const { rig: other } = await rigWith({ C: 16, O: 250 });
    await other.write('snap', 240, snapshotData(240, 10));
    expect(await other.read('snap', 239, 11)).toEqual(Buffer.concat([old(239, 1), snapshotData(240, 10)]));
  });
});

describe('while something is under way', () => {
  test('33. a chunk whose exception is pending reads from the origin at once', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    cow.hold = (operation) => operation === 'write';
    const written = rig.write('snap', 80, snapshotData(80, 8));
    await cow.held(1);
    expect(await rig.read('snap', 80, 8)).toEqual(old(80, 8));
    cow.go();
    await written;
    expect(await rig.read('snap', 80, 8)).toEqual(snapshotData(80, 8));
  });

  test('34. an origin write reaches the origin only after a snapshot read of the chunk that was sent there', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    let first = true;
    origin.hold = (operation) => operation === 'read' && first && !(first = false);
    const reading = rig.read('snap', 80, 8);
    await origin.held(1);
    const writing = rig.write('origin', 80, originData(80, 8));
    const state = watch(writing);
    await turns();
    expect(await rig.status('snap')).toBe('24/1024 16');
    expect(origin.takeLog('R')).toEqual([]);
    expect(state.done).toBe(false);
    origin.go();
    expect(await reading).toEqual(old(80, 8));
    await writing;
    expect(origin.takeLog('R')).toEqual(['W 80+8']);
  });

  test('34. a snapshot write of the whole chunk is acknowledged only then, though new reads find it before', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    origin.hold = (operation) => operation === 'read';
    const reading = rig.read('snap', 80, 8);
    await origin.held(1);
    const writing = rig.write('snap', 80, snapshotData(80, 8));
    const state = watch(writing);
    await turns();
    expect(state.done).toBe(false);
    expect(await rig.read('snap', 80, 8)).toEqual(snapshotData(80, 8));
    origin.go();
    expect(await reading).toEqual(old(80, 8));
    await writing;
  });

  test('35. eight first writes side by side: eight data writes, one flush, one durable area, in allocation order', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    cow.hold = (operation, sector) => operation === 'write' && sector >= 16;
    const chunks = [5, 3, 20, 11, 9, 40, 1, 30];
    const writes = chunks.map((chunk) => rig.write('origin', chunk * 8, originData(chunk * 8, 1)));
    await cow.held(8);
    cow.go();
    await Promise.all(writes);
    expect(cow.takeLog().slice(8)).toEqual(['F', 'W 8+8', 'F']);
    expect(areaOf(rig, cow, 8)).toEqual(chunks.map((chunk, i) => [chunk, i + 2]));
  });

  test('36. copies that end out of order still make entries in allocation order', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    cow.hold = (operation, sector) => operation === 'write' && sector >= 16;
    const chunks = [7, 3, 9, 4];
    const writes = chunks.map((chunk) => rig.write('origin', chunk * 8, originData(chunk * 8, 1)));
    await cow.held(4);
    for (const index of [3, 0, 1]) {
      cow.go(index);
      await turns(3);
    }
    cow.go();
    await Promise.all(writes);
    expect(areaOf(rig, cow, 8)).toEqual(chunks.map((chunk, i) => [chunk, i + 2]));
    for (const chunk of chunks) expect(await rig.read('snap', chunk * 8, 8)).toEqual(old(chunk * 8, 8));
  });
});

test('38. a flush of the snapshot reaches the COW device only, one of the origin the origin only', async () => {
  const { rig } = await rigWith({ C: 8 });
  await rig.write('origin', 0, originData(0, 1));
  rig.log.length = 0;
  await rig.flush('snap');
  expect(rig.log).toEqual(['1:1 F']);
  rig.log.length = 0;
  await rig.flush('origin');
  expect(rig.log).toEqual(['1:0 F']);
});

describe('which snapshots are copied into', () => {
  test('40. not one whose origin argument is the mapped origin: it is another device', async () => {
    const { rig } = await rigWith({ C: 8 });
    rig.disk(2, 1024);
    await rig.create('wrong', '0 4096 snapshot /dev/mapper/origin /dev/ram2 P 8');
    await rig.write('origin', 80, originData(80, 8));
    expect(await rig.read('wrong', 80, 8)).toEqual(originData(80, 8));
    expect(await rig.status('wrong')).toBe('16/1024 16');
    expect(await rig.status('snap')).toBe('24/1024 16');
  });

  test('41. one added without a suspend of the origin: every chunk of a large write is copied, not only the first', async () => {
    const { rig } = await rigWith({ C: 8 });
    rig.disk(2, 1024);
    await rig.create('late', '0 4096 snapshot /dev/ram0 /dev/ram2 P 8');
    await rig.write('origin', 64, originData(64, 64));
    expect(await rig.status('late')).toBe('80/1024 16');
    expect(await rig.read('late', 64, 64)).toEqual(old(64, 64));
  });

  test('42. not one that is loaded and was never resumed', async () => {
    const { rig } = await rigWith({ C: 8 });
    rig.disk(2, 1024);
    await rig.mapper.create('late');
    await rig.load('late', '0 4096 snapshot /dev/ram0 /dev/ram2 P 8');
    await rig.write('origin', 80, originData(80, 8));
    expect(await rig.status('late', true)).toBe('16/1024 16');
    await rig.resume('late');
    expect(await rig.read('late', 80, 8)).toEqual(originData(80, 8));
  });

  test('43. a snapshot of 128 sectors on an origin of 256: a write at 127 is copied, one at 128 is not', async () => {
    const rig = new Rig();
    rig.disk(0, 256, { content: old(0, 256) });
    rig.disk(1, 256);
    closeAfterwards(rig);
    await rig.create('origin', '0 256 snapshot-origin /dev/ram0');
    await rig.create('snap', '0 128 snapshot /dev/ram0 /dev/ram1 P 8');
    await rig.write('origin', 127, originData(127, 1));
    expect(await rig.status('snap')).toBe('24/256 16');
    await rig.write('origin', 128, originData(128, 8));
    expect(await rig.status('snap')).toBe('24/256 16');
    // One that covers both ends where the snapshot ends.
    await rig.write('origin', 100, originData(100, 100));
    expect(await rig.status('snap')).toBe('48/256 16');
    expect(await rig.read('snap', 0, 128)).toEqual(old(0, 128));
  });

  test('44. three snapshots of chunks of 8, 16 and 32: each copies its own, all read the old image', async () => {
    const rig = new Rig();
    rig.disk(0, 4096, { content: old(0, 4096) });
    closeAfterwards(rig);
    await rig.create('origin', '0 4096 snapshot-origin /dev/ram0');
    const stores = ['P 8', 'N 16', 'P 32'];
    for (const [i, store] of stores.entries()) {
      rig.disk(i + 1, 1024);
      await rig.create(`s${i}`, `0 4096 snapshot /dev/ram0 /dev/ram${i + 1} ${store}`);
    }
    const all = () => Promise.all(stores.map((_, i) => rig.status(`s${i}`)));
    await rig.write('origin', 40, originData(40, 1));
    expect(await all()).toEqual(['24/1024 16', '16/1024 0', '96/1024 64']);
    await rig.write('origin', 64, originData(64, 64));
    expect(await all()).toEqual(['88/1024 16', '80/1024 0', '160/1024 64']);
    for (const [i] of stores.entries()) expect(await rig.read(`s${i}`, 0, 256)).toEqual(old(0, 256));
  });

  test('45. a target that starts at sector 64 maps sector 64 of its device to sector 64 of the origin', async () => {
    const rig = new Rig();
    rig.disk(0, 256, { content: old(0, 256) });
    const cow = rig.disk(1, 1024);
    closeAfterwards(rig);
    await rig.create('origin', '0 64 zero', '64 192 snapshot-origin /dev/ram0');
    await rig.create('snap', '0 64 zero', '64 192 snapshot /dev/ram0 /dev/ram1 P 16');
    expect(await rig.read('snap', 64, 192)).toEqual(old(64, 192));
    await rig.write('origin', 70, originData(70, 1));
    await rig.write('snap', 100, snapshotData(100, 1));
    await rig.flush('snap');
    expect(areaOf(rig, cow, 16)).toEqual([
      [4, 2],
      [6, 3],
    ]);
    expect(await rig.read('snap', 70, 1)).toEqual(old(70, 1));
    expect(await rig.read('origin', 70, 1)).toEqual(originData(70, 1));
    expect(await rig.read('snap', 100, 1)).toEqual(snapshotData(100, 1));
  });
});
