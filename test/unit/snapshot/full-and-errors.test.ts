/** A COW device that is full or fails (dm-snapshot scenarios 46 to 58). */
import { describe, expect, test } from 'vitest';
import {
  areaOf,
  closeAfterwards,
  headerOf,
  MAGIC,
  old,
  originData,
  Rig,
  rigWith,
  snapshotData,
  turns,
} from '../../support/rig.ts';

const EIO = { errno: 'EIO' };
const INVALID = [MAGIC, 0, 1, 1];
const VALID = [MAGIC, 1, 1, 1];

describe.each([false, true])('full (answers later: %s)', (later) => {
  const stand = async (store: string, W = 8) => {
    const found = await rigWith({ C: 1, O: 256, W, store });
    found.cow.later = later;
    found.origin.later = later;
    return found;
  };

  test('46. origin writes all succeed, the snapshot becomes Invalid on disk too, with one event', async () => {
    const { rig, cow } = await stand('P');
    await rig.touch(Array(9).keys(), 1);
    expect(await rig.read('origin', 0, 9)).toEqual(originData(0, 9));
    expect(await rig.status('snap')).toBe('Invalid');
    expect(headerOf(rig, cow)).toEqual(INVALID);
    expect(await rig.event('snap')).toBe(1);
  });

  test('46. the origin write waits until the disk says that the snapshot is invalid', async () => {
    const { rig } = await stand('P');
    await rig.touch(Array(6).keys(), 1);
    rig.log.length = 0;
    await rig.touch([6], 1);
    expect(rig.log).toEqual(['1:1 W 0+1', '1:1 F', '1:0 W 6+1']);
  });

  test('47. an invalid snapshot created again is still Invalid', async () => {
    const { rig, line } = await stand('P');
    await rig.touch(Array(9).keys(), 1);
    await rig.recreate('snap', line);
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(0);
  });

  test('48. P: the snapshot write that finds no space fails, and the snapshot becomes Invalid, with one event', async () => {
    const { rig, cow } = await stand('P');
    for (let chunk = 0; chunk < 6; chunk++) await rig.write('snap', chunk, snapshotData(chunk, 1));
    expect(await rig.status('snap')).toBe('8/8 2');
    await expect(rig.write('snap', 6, snapshotData(6, 1))).rejects.toMatchObject(EIO);
    await expect(rig.write('snap', 7, snapshotData(7, 1))).rejects.toMatchObject(EIO);
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(1);
    await turns();
    expect(headerOf(rig, cow)).toEqual(INVALID);
    // Acknowledged writes that were not durable went with it: whoever asks for them to be is told.
    await expect(rig.flush('snap')).rejects.toMatchObject(EIO);
  });

  test('49. PO: the write fails, the snapshot overflows; reads and flushes work, no write does', async () => {
    const { rig, cow } = await stand('PO');
    for (let chunk = 0; chunk < 6; chunk++) await rig.write('snap', chunk, snapshotData(chunk, 1));
    await expect(rig.write('snap', 6, snapshotData(6, 1))).rejects.toMatchObject(EIO);
    expect(await rig.status('snap')).toBe('Overflow');
    expect(await rig.event('snap')).toBe(0);
    expect(headerOf(rig, cow)).toEqual(VALID);
    expect(await rig.read('snap', 0, 8)).toEqual(Buffer.concat([snapshotData(0, 6), old(6, 2)]));
    await expect(rig.write('snap', 0, snapshotData(0, 1))).rejects.toMatchObject(EIO);
    await rig.flush('snap');
    expect(areaOf(rig, cow, 1).length).toBe(6);
  });

  test('50. an overflowed snapshot stands origin writes to mapped chunks, and becomes Invalid by one to another', async () => {
    const { rig, cow } = await stand('PO');
    for (let chunk = 0; chunk < 6; chunk++) await rig.write('snap', chunk, snapshotData(chunk, 1));
    await expect(rig.write('snap', 6, snapshotData(6, 1))).rejects.toMatchObject(EIO);
    await rig.touch([0, 5], 1);
    expect(await rig.status('snap')).toBe('Overflow');
    await rig.touch([9], 1);
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(1);
    expect(headerOf(rig, cow)).toEqual(INVALID);
    expect(await rig.read('origin', 9, 1)).toEqual(originData(9, 1));
  });

  test('51. a grown COW does not end an overflow, but takes copies; creating the snapshot again does', async () => {
    const { rig, cow, line } = await stand('PO');
    for (let chunk = 0; chunk < 6; chunk++) await rig.write('snap', chunk, snapshotData(chunk, 1));
    await expect(rig.write('snap', 6, snapshotData(6, 1))).rejects.toMatchObject(EIO);
    rig.resize(cow, 64);
    expect(await rig.status('snap')).toBe('Overflow');
    await expect(rig.write('snap', 6, snapshotData(6, 1))).rejects.toMatchObject(EIO);
    await rig.touch([9], 1);
    expect(await rig.status('snap')).toBe('Overflow');
    expect(await rig.read('snap', 9, 1)).toEqual(old(9, 1));
    await rig.load('snap', line);
    await rig.resume('snap');
    expect(await rig.status('snap')).toBe('Overflow');
    await rig.recreate('snap', line);
    expect(await rig.status('snap')).toBe('9/64 2');
    await rig.write('snap', 6, snapshotData(6, 1));
    expect(await rig.status('snap')).toBe('10/64 2');
  });

  test('52. a COW that grows before it is full is used at once', async () => {
    const { rig, cow } = await stand('P');
    await rig.touch(Array(6).keys(), 1);
    expect(await rig.status('snap')).toBe('8/8 2');
    rig.resize(cow, 12);
    expect(await rig.status('snap')).toBe('8/12 2');
    await rig.touch([6, 7], 1);
    expect(await rig.status('snap')).toBe('10/12 2');
  });

  test.each(['P', 'PO'])(
    '53. %s: where the COW ends behind the last data chunk of an area, that chunk is lost',
    async (store) => {
      const { rig, cow } = await stand(store, 34);
      await rig.touch(Array(31).keys(), 1);
      expect(await rig.status('snap')).toBe('33/34 2');
      await rig.touch([31], 1);
      expect(await rig.read('origin', 31, 1)).toEqual(originData(31, 1));
      expect(await rig.status('snap')).toBe('Invalid');
      expect(headerOf(rig, cow)).toEqual(INVALID);
      expect(await rig.event('snap')).toBe(1);
    },
  );

  test.each(['P', 'PO'])('53. %s: with one chunk more it fits', async (store) => {
    const { rig } = await stand(store, 35);
    await rig.touch(Array(32).keys(), 1);
    expect(await rig.status('snap')).toBe('35/35 3');
    expect(await rig.read('snap', 0, 40)).toEqual(old(0, 40));
  });

  test('54. N: the write fails, the snapshot becomes Invalid, the disk holds nothing but data', async () => {
    const { rig, cow } = await stand('N');
    for (let chunk = 0; chunk < 8; chunk++) await rig.write('snap', chunk, snapshotData(chunk, 1));
    expect(await rig.status('snap')).toBe('8/8 0');
    await expect(rig.write('snap', 8, snapshotData(8, 1))).rejects.toMatchObject(EIO);
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(1);
    expect(rig.peek(cow, 0, 8)).toEqual(snapshotData(0, 8));
  });

  test('55. a COW that fails while an origin write is copied costs the snapshot, not the write', async () => {
    const { rig, cow } = await stand('P', 64);
    await rig.touch([0, 1], 1);
    cow.fault = (operation, sector) => (operation === 'write' && sector >= 4 ? 'EIO' : undefined);
    await rig.touch([2], 1);
    expect(await rig.read('origin', 2, 1)).toEqual(originData(2, 1));
    expect(await rig.status('snap')).toBe('Invalid');
    expect(areaOf(rig, cow, 1)).toEqual([
      [0, 2],
      [1, 3],
    ]);
    expect(headerOf(rig, cow)).toEqual(INVALID);
  });

  test('55. so does an origin that cannot be read', async () => {
    const { rig, origin } = await stand('P', 64);
    origin.fault = (operation) => (operation === 'read' ? 'EIO' : undefined);
    await rig.touch([2], 1);
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(1);
  });

  test('56. an area that cannot be written: the flush that needs it fails, the snapshot is Invalid on disk too', async () => {
    const { rig, cow } = await stand('P', 64);
    cow.fault = (operation, sector) => (operation === 'write' && sector === 1 ? 'EIO' : undefined);
    await rig.write('snap', 5, snapshotData(5, 1));
    await expect(rig.flush('snap')).rejects.toMatchObject(EIO);
    expect(await rig.status('snap')).toBe('Invalid');
    expect(headerOf(rig, cow)).toEqual(INVALID);
    expect(await rig.event('snap')).toBe(1);
  });

  test('56. a header that cannot be written either: the same, and the disk still says valid', async () => {
    const { rig, cow } = await stand('P', 64);
    cow.fault = (operation, sector) => (operation === 'write' && sector <= 1 ? 'EIO' : undefined);
    await rig.touch([5], 1);
    expect(await rig.read('origin', 5, 1)).toEqual(originData(5, 1));
    expect(await rig.status('snap')).toBe('Invalid');
    expect(headerOf(rig, cow)).toEqual(VALID);
    expect(await rig.event('snap')).toBe(1);
  });

  test('57. a COW that fails on a mapped chunk: the error, and no other change', async () => {
    const { rig, cow } = await stand('P', 64);
    await rig.write('snap', 5, snapshotData(5, 1));
    cow.fault = (operation, sector) => (operation !== 'flush' && sector === 2 ? 'EIO' : undefined);
    await expect(rig.read('snap', 5, 1)).rejects.toMatchObject(EIO);
    await expect(rig.write('snap', 5, snapshotData(5, 1))).rejects.toMatchObject(EIO);
    cow.fault = undefined;
    expect(await rig.status('snap')).toBe('3/64 2');
    expect(await rig.read('snap', 5, 1)).toEqual(snapshotData(5, 1));
  });
});

test('58. who waits when the snapshot becomes Invalid: snapshot writes get EIO, origin writes succeed', async () => {
  const { rig, cow } = await rigWith({ C: 8, O: 256, W: 64 });
  cow.hold = (operation, sector) => operation === 'write' && sector >= 16;
  const snapshotWrites = [rig.write('snap', 0, snapshotData(0, 8)), rig.write('snap', 9, snapshotData(9, 1))];
  const originWrites = [rig.write('origin', 16, originData(16, 8)), rig.write('origin', 8, originData(8, 8))];
  const answers = Promise.allSettled(snapshotWrites);
  await cow.held(3);
  cow.fault = (operation, sector) => (operation === 'write' && sector >= 16 ? 'EIO' : undefined);
  // The copy for the origin fails first.
  cow.go(2);
  await turns();
  expect(await rig.status('snap')).toBe('Invalid');
  cow.fault = undefined;
  cow.go();
  await Promise.all(originWrites);
  for (const answer of await answers) expect(answer).toMatchObject({ status: 'rejected', reason: EIO });
  expect(await rig.read('origin', 8, 16)).toEqual(originData(8, 16));
  expect(await rig.event('snap')).toBe(1);
});

describe.each([false, true])('no space in the file system below the COW (answers later: %s)', (later) => {
  const stand = async () => {
    const found = await rigWith({ C: 8, O: 256, W: 256 });
    found.cow.later = later;
    return found;
  };

  test.each([8, 1])('a snapshot write of %i sectors fails with ENOSPC and can be repeated', async (count) => {
    const { rig, cow } = await stand();
    await rig.write('snap', 0, snapshotData(0, 8));
    cow.fault = (operation) => (operation === 'write' ? 'ENOSPC' : undefined);
    await expect(rig.write('snap', 80, snapshotData(80, count))).rejects.toMatchObject({ errno: 'ENOSPC' });
    expect(await rig.status('snap')).toBe('24/256 16');
    expect(await rig.read('snap', 80, 8)).toEqual(old(80, 8));
    cow.fault = undefined;
    await rig.write('snap', 80, snapshotData(80, count));
    await rig.flush('snap');
    expect(areaOf(rig, cow, 8)).toEqual([
      [0, 2],
      [10, 3],
    ]);
    expect(await rig.event('snap')).toBe(0);
  });

  test('a flush fails with ENOSPC, loses nothing and can be repeated', async () => {
    const { rig, cow, line } = await stand();
    await rig.write('snap', 0, snapshotData(0, 8));
    cow.fault = (operation, sector) => (operation === 'write' && sector === 8 ? 'ENOSPC' : undefined);
    await expect(rig.flush('snap')).rejects.toMatchObject({ errno: 'ENOSPC' });
    expect(await rig.read('snap', 0, 8)).toEqual(snapshotData(0, 8));
    cow.fault = undefined;
    await rig.flush('snap');
    await rig.recreate('snap', line);
    expect(await rig.read('snap', 0, 8)).toEqual(snapshotData(0, 8));
  });

  test('a suspend fails with ENOSPC and the snapshot goes on', async () => {
    const { rig, cow } = await stand();
    await rig.write('snap', 0, snapshotData(0, 8));
    cow.fault = (operation, sector) => (operation === 'write' && sector === 8 ? 'ENOSPC' : undefined);
    await expect(rig.suspend('snap')).rejects.toMatchObject({ errno: 'ENOSPC' });
    expect((await rig.mapper.info({ name: 'snap' })).suspended).toBe(false);
    expect(await rig.read('snap', 0, 8)).toEqual(snapshotData(0, 8));
  });

  test.each(['copy', 'area'])('an origin write whose %s finds none costs the snapshot, and succeeds', async (step) => {
    const { rig, cow } = await stand();
    const full = step === 'copy' ? 16 : 8;
    cow.fault = (operation, sector) => (operation === 'write' && sector === full ? 'ENOSPC' : undefined);
    await rig.write('origin', 80, originData(80, 1));
    expect(await rig.read('origin', 80, 1)).toEqual(originData(80, 1));
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(1);
    expect(headerOf(rig, cow)[1]).toBe(0);
  });

  test('a revert does not mind', async () => {
    const { rig, cow } = await stand();
    await rig.write('snap', 0, snapshotData(0, 8));
    let full = true;
    cow.fault = (operation, sector) => (full && operation === 'write' && sector === 8 ? 'ENOSPC' : undefined);
    await expect(rig.flush('snap')).rejects.toMatchObject({ errno: 'ENOSPC' });
    cow.fault = (operation) => (operation === 'write' && full && !(full = false) ? 'ENOSPC' : undefined);
    await rig.mapper.revert({ name: 'snap' });
    expect(await rig.read('snap', 0, 8)).toEqual(old(0, 8));
    expect(await rig.status('snap')).toBe('16/256 16');
  });
});

describe('an invalid snapshot', () => {
  async function invalid() {
    const found = await rigWith({ C: 8, O: 256, W: 24 });
    await found.rig.write('snap', 0, snapshotData(0, 8));
    await expect(found.rig.write('snap', 8, snapshotData(8, 8))).rejects.toMatchObject(EIO);
    await expect(found.rig.flush('snap')).rejects.toMatchObject(EIO);
    return found;
  }

  test('can be suspended and resumed', async () => {
    const { rig } = await invalid();
    await rig.suspend('snap');
    await rig.resume('snap');
    expect(await rig.status('snap')).toBe('Invalid');
    await expect(rig.flush('snap')).rejects.toMatchObject(EIO);
  });

  test('can get another table', async () => {
    const { rig } = await invalid();
    await rig.load('snap', '0 256 error');
    await rig.resume('snap');
    expect(await rig.table('snap')).toBe('');
  });

  test('can be reverted, and then be written and become invalid again', async () => {
    const { rig } = await invalid();
    await rig.mapper.revert({ name: 'snap' });
    expect(await rig.status('snap')).toBe('16/24 16');
    await rig.write('snap', 0, snapshotData(0, 8));
    await rig.flush('snap');
    expect(await rig.read('snap', 0, 16)).toEqual(Buffer.concat([snapshotData(0, 8), old(8, 8)]));
    await rig.write('origin', 16, originData(16, 1));
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(2);
  });

  test('of which a read is still with the origin: it finds the old data, the origin write waits', async () => {
    const { rig, origin } = await rigWith({ C: 8, O: 256, W: 24 });
    await rig.touch([0], 8);
    origin.hold = (operation) => operation === 'read';
    const reading = rig.read('snap', 80, 8);
    await origin.held(1);
    // No space: the snapshot is lost. Had the read been answered with new data, nobody would know.
    const writing = rig.write('origin', 80, originData(80, 8));
    await turns();
    expect(await rig.status('snap')).toBe('Invalid');
    origin.go();
    expect(await reading).toEqual(old(80, 8));
    await writing;
    expect(await rig.read('origin', 80, 8)).toEqual(originData(80, 8));
  });
});

test('one of several snapshots that is full costs neither the others nor the origin', async () => {
  const rig = new Rig();
  rig.disk(0, 256, { content: old(0, 256) });
  closeAfterwards(rig);
  await rig.create('origin', '0 256 snapshot-origin /dev/ram0');
  for (const [i, W] of [64, 24, 64].entries()) {
    rig.disk(i + 1, W);
    await rig.create(`s${i}`, `0 256 snapshot /dev/ram0 /dev/ram${i + 1} P 8`);
  }
  await rig.touch([0, 1, 2, 3], 8);
  expect(await Promise.all([0, 1, 2].map((i) => rig.status(`s${i}`)))).toEqual(['48/64 16', 'Invalid', '48/64 16']);
  expect(await rig.read('s2', 0, 256)).toEqual(old(0, 256));
});
