/** Discards and zeroes (dm-snapshot scenarios 59 to 62). */
import { describe, expect, test } from 'vitest';
import { areaOf, headerOf, old, originData, rigWith, snapshotData } from '../../support/rig.ts';

const zeroes = (count: number) => Buffer.alloc(count * 512);
const PASSDOWN = '2 discard_zeroes_cow discard_passdown_origin';

test('59. without features a discard is refused on both targets', async () => {
  const { rig } = await rigWith({ C: 8 });
  await expect(rig.discard('snap', 0, 8)).rejects.toMatchObject({ errno: 'EOPNOTSUPP' });
  await expect(rig.discard('origin', 0, 8)).rejects.toMatchObject({ errno: 'EOPNOTSUPP' });
});

describe('60. discard_zeroes_cow', () => {
  const stand = () => rigWith({ C: 8, features: '1 discard_zeroes_cow' });

  test('a mapped chunk discarded whole reads as zeroes and keeps its exception; the origin is not touched', async () => {
    const { rig, origin, cow } = await stand();
    await rig.write('snap', 80, snapshotData(80, 8));
    await rig.flush('snap');
    origin.takeLog();
    await rig.discard('snap', 80, 8);
    expect(await rig.read('snap', 80, 8)).toEqual(zeroes(8));
    expect(await rig.status('snap')).toBe('24/1024 16');
    expect(areaOf(rig, cow, 8)).toEqual([[10, 2]]);
    expect(origin.takeLog()).toEqual([]);
  });

  test('an unmapped chunk stays unmapped and as it is', async () => {
    const { rig } = await stand();
    await rig.discard('snap', 80, 24);
    expect(await rig.status('snap')).toBe('16/1024 16');
    expect(await rig.read('snap', 80, 24)).toEqual(old(80, 24));
  });

  test('a part of a mapped chunk is passed to the COW device', async () => {
    const { rig, cow } = await stand();
    await rig.write('snap', 80, snapshotData(80, 8));
    cow.takeLog();
    await rig.discard('snap', 82, 3);
    expect(cow.takeLog()).toEqual(['D 18+3']);
  });

  test('a large one takes mapped and unmapped chunks as they come', async () => {
    const { rig } = await stand();
    await rig.write('snap', 80, snapshotData(80, 8));
    await rig.write('snap', 96, snapshotData(96, 8));
    await rig.discard('snap', 72, 40);
    const expected = Buffer.concat([old(72, 8), zeroes(8), old(88, 8), zeroes(8), old(104, 8)]);
    expect(await rig.read('snap', 72, 40)).toEqual(expected);
  });
});

describe('61. discard_passdown_origin', () => {
  test('discards the origin too, without an exception', async () => {
    const { rig, origin } = await rigWith({ C: 8, features: PASSDOWN });
    origin.takeLog();
    await rig.discard('snap', 80, 8);
    expect(origin.takeLog()).toEqual(['D 80+8']);
    expect(await rig.status('snap')).toBe('16/1024 16');
    expect(await rig.read('snap', 80, 8)).toEqual(zeroes(8));
  });

  test('is waited for by an exception on the chunk, as a read is', async () => {
    const { rig, origin } = await rigWith({ C: 8, features: PASSDOWN });
    origin.hold = (operation) => operation === 'discard';
    const discarding = rig.discard('snap', 80, 8);
    await origin.held(1);
    const writing = rig.write('origin', 80, originData(80, 8));
    origin.takeLog();
    origin.go();
    await Promise.all([discarding, writing]);
    expect(await rig.read('origin', 80, 8)).toEqual(originData(80, 8));
  });

  test.each([false, true])('fails when either fails, after both have ended (later: %s)', async (later) => {
    const { rig, origin, cow } = await rigWith({ C: 8, features: PASSDOWN });
    await rig.write('snap', 80, snapshotData(80, 16));
    cow.later = later;
    let passed = false;
    origin.later = true;
    origin.fault = (operation) => {
      passed ||= operation === 'discard';
      return undefined;
    };
    cow.fault = (operation, sector) => (operation === 'writeZeroes' && sector === 24 ? 'EIO' : undefined);
    await expect(rig.discard('snap', 80, 16)).rejects.toMatchObject({ errno: 'EIO' });
    expect(passed).toBe(true);
  });
});

test('62. in Overflow a discard fails with EIO, and reaches neither device', async () => {
  const { rig, origin, cow } = await rigWith({ C: 8, W: 24, store: 'PO', features: PASSDOWN });
  await rig.write('snap', 0, snapshotData(0, 8));
  await expect(rig.write('snap', 8, snapshotData(8, 8))).rejects.toMatchObject({ errno: 'EIO' });
  origin.takeLog();
  cow.takeLog();
  await expect(rig.discard('snap', 0, 8)).rejects.toMatchObject({ errno: 'EIO' });
  expect([...origin.takeLog(), ...cow.takeLog()]).toEqual([]);
  expect(headerOf(rig, cow)[1]).toBe(1);
});

describe('a failure of one part of a discard', () => {
  test.each([0, 1, 2])('leaves no rejection behind when part %i throws', async (failing) => {
    const { rig, cow } = await rigWith({ C: 8, features: '1 discard_zeroes_cow' });
    // Not side by side, so three parts.
    for (const chunk of [10, 3, 12]) await rig.write('snap', chunk * 8, snapshotData(chunk * 8, 8));
    await rig.write('snap', 88, snapshotData(88, 8));
    let part = 0;
    cow.hold = (operation) => operation === 'writeZeroes' && part++ !== failing;
    cow.fault = (operation) => (operation === 'writeZeroes' ? 'EIO' : undefined);
    const discarding = rig.discard('snap', 80, 24);
    discarding.catch(() => {});
    await cow.held(2);
    cow.go();
    await expect(discarding).rejects.toMatchObject({ errno: 'EIO' });
  });
});

describe('zeroes', () => {
  test('over unmapped, mapped and partly covered chunks', async () => {
    const { rig } = await rigWith({ C: 8 });
    await rig.write('snap', 88, snapshotData(88, 8));
    await rig.writeZeroes('snap', 84, 16);
    const expected = Buffer.concat([old(80, 4), zeroes(16), old(100, 4)]);
    expect(await rig.read('snap', 80, 24)).toEqual(expected);
    expect(await rig.status('snap')).toBe('40/1024 16');
  });

  test.each([true, false])('pass on whether space may be given back (%s)', async (mayUnmap) => {
    const { rig, cow } = await rigWith({ C: 8 });
    const asked: boolean[] = [];
    const { writeZeroes } = cow.disk;
    cow.disk.writeZeroes = (at, length, may) => {
      asked.push(may);
      return writeZeroes.call(cow.disk, at, length, may);
    };
    await rig.writeZeroes('snap', 80, 8, mayUnmap);
    await rig.writeZeroes('snap', 80, 8, mayUnmap);
    expect(asked).toEqual([mayUnmap, mayUnmap]);
  });
});
