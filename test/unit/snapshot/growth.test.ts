/** A COW device that is made larger when it is full, before the snapshot overflows. */
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { OriginBuffer } from '../../../src/targets/snapshot/origin-buffer.ts';
import { areaOf, headerOf, MAGIC, old, originData, rigWith, snapshotData } from '../../support/rig.ts';

const EIO = { errno: 'EIO' };
const VALID = [MAGIC, 1, 1, 1];

describe.each([false, true])('a COW device of chunks of one sector (answers later: %s)', (later) => {
  /** Grows by `step` sectors when it is asked to, up to `limit`. `asked`: how often. */
  async function stand(store: string, W: number, limit: number, step = 1) {
    const found = await rigWith({ C: 1, O: 256, W, store });
    const { rig, cow, origin } = found;
    cow.later = later;
    origin.later = later;
    const state = { ...found, sectors: W, asked: [] as string[] };
    rig.enlarge = (below) => {
      state.asked.push(below.name);
      if (state.sectors >= limit) return false;
      state.sectors = Math.min(limit, state.sectors + step);
      rig.resize(cow, state.sectors);
      return true;
    };
    return state;
  }

  test.each(['P', 'PO', 'N'])('%s: a burst of writes to the snapshot goes on where it grows', async (store) => {
    const { rig, asked } = await stand(store, 8, 1000, 3);
    // All at once: nobody could look in between.
    await Promise.all(Array.from({ length: 100 }, (_, chunk) => rig.write('snap', chunk, snapshotData(chunk, 1))));
    expect(await rig.status('snap')).toMatch(/^\d+\/\d+ \d+$/);
    expect(await rig.read('snap', 0, 120)).toEqual(Buffer.concat([snapshotData(0, 100), old(100, 20)]));
    expect(await rig.event('snap')).toBe(0);
    expect(new Set(asked)).toEqual(new Set(['1:1']));
    await rig.flush('snap');
  });

  test.each(['P', 'PO', 'N'])('%s: one large write to the origin is copied out, all of it', async (store) => {
    const { rig } = await stand(store, 8, 1000);
    await rig.write('origin', 0, originData(0, 200));
    expect(await rig.read('snap', 0, 256)).toEqual(old(0, 256));
    expect(await rig.read('origin', 0, 200)).toEqual(originData(0, 200));
    expect(await rig.event('snap')).toBe(0);
  });

  test('is not asked for room as long as there is some', async () => {
    const { rig, asked } = await stand('P', 8, 1000);
    await rig.touch(Array(6).keys(), 1);
    expect(await rig.status('snap')).toBe('8/8 2');
    expect(asked).toEqual([]);
    await rig.touch([6], 1);
    expect(asked).toEqual(['1:1']);
    expect(await rig.status('snap')).toBe('9/9 2');
  });

  test.each(['P', 'PO'])('%s: the exception that fills an area finds room for the next one too', async (store) => {
    // 33 sectors hold 31 exceptions; the 32nd needs chunk 33 and the area in chunk 34.
    const { rig, cow } = await stand(store, 33, 35);
    await rig.touch(Array(32).keys(), 1);
    await rig.flush('snap');
    expect(await rig.status('snap')).toBe('35/35 3');
    expect(areaOf(rig, cow, 1)).toHaveLength(32);
    expect(areaOf(rig, cow, 1, 1)).toEqual([]);
    expect(headerOf(rig, cow)).toEqual(VALID);
  });

  test.each(['P', 'PO'])('53. %s: where it cannot grow by that area, the exception invalidates', async (store) => {
    const { rig, asked } = await stand(store, 33, 34);
    await rig.touch(Array(32).keys(), 1);
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.read('origin', 0, 32)).toEqual(originData(0, 32));
    expect(asked).toHaveLength(2);
  });

  test('P: at its limit it is full, and the snapshot invalid', async () => {
    const { rig, asked } = await stand('P', 8, 10);
    for (let chunk = 0; chunk < 8; chunk++) await rig.write('snap', chunk, snapshotData(chunk, 1));
    expect(await rig.status('snap')).toBe('10/10 2');
    await expect(rig.write('snap', 8, snapshotData(8, 1))).rejects.toMatchObject(EIO);
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(1);
    expect(asked).toHaveLength(3);
  });

  test('PO: at its limit it overflows, keeps what it has, and asks no more', async () => {
    const { rig, cow, asked } = await stand('PO', 8, 10);
    for (let chunk = 0; chunk < 8; chunk++) await rig.write('snap', chunk, snapshotData(chunk, 1));
    for (let i = 0; i < 3; i++) await expect(rig.write('snap', 8, snapshotData(8, 1))).rejects.toMatchObject(EIO);
    expect(await rig.status('snap')).toBe('Overflow');
    expect(await rig.event('snap')).toBe(0);
    expect(await rig.read('snap', 0, 9)).toEqual(Buffer.concat([snapshotData(0, 8), old(8, 1)]));
    await rig.flush('snap');
    expect(areaOf(rig, cow, 1)).toHaveLength(8);
    expect(asked).toHaveLength(3);
  });

  test('that was cut short is not asked for more: what it had would read as zeroes', async () => {
    const { rig, cow, asked } = await stand('P', 8, 1000);
    await rig.touch(Array(5).keys(), 1);
    rig.resize(cow, 6);
    await expect(rig.write('snap', 5, snapshotData(5, 1))).rejects.toMatchObject(EIO);
    expect([await rig.status('snap'), asked]).toEqual(['Invalid', []]);
  });

  describe.each([0, 16])('where asking for room throws (pages of an origin buffer: %s)', (pages) => {
    async function throwing(W: number) {
      OriginBuffer.pages = pages;
      onTestFinished(() => void (OriginBuffer.pages = 0));
      const found = await stand('P', W, 0);
      const grow = vi.fn();
      found.rig.enlarge = () => {
        grow();
        throw new Error('no answer');
      };
      return { ...found, grow };
    }

    test('an origin write goes on, and costs the snapshot', async () => {
      const { rig, grow } = await throwing(8);
      await rig.write('origin', 0, originData(0, 16));
      await rig.flush('origin');
      expect(grow).toHaveBeenCalled();
      expect(await rig.status('snap')).toBe('Invalid');
      expect(await rig.read('origin', 0, 17)).toEqual(Buffer.concat([originData(0, 16), old(16, 1)]));
    });

    test('after all there is some, the exception that fills an area has its place', async () => {
      const { rig, cow, grow } = await throwing(34);
      grow.mockImplementation(() => rig.resize(cow, 40));
      await rig.write('origin', 0, originData(0, 32));
      await rig.flush('origin');
      expect(await rig.status('snap')).toBe('35/40 3');
      expect(areaOf(rig, cow, 1)).toHaveLength(32);
      expect(await rig.read('snap', 0, 33)).toEqual(old(0, 33));
    });
  });

  test('an origin write that finds a snapshot full beside one that grows costs the one only', async () => {
    const { rig } = await stand('P', 8, 1000);
    rig.disk(2, 8);
    await rig.create('small', '0 256 snapshot /dev/ram0 /dev/ram2 P 1');
    const grow = rig.enlarge;
    rig.enlarge = (below) => below.name === '1:1' && grow(below);
    await rig.touch(Array(20).keys(), 1);
    expect(await rig.status('small')).toBe('Invalid');
    expect(await rig.status('snap')).toBe('22/22 2');
    expect(await rig.read('snap', 0, 30)).toEqual(old(0, 30));
    await rig.remove('small');
  });

  test('a table that takes over the exceptions asks too', async () => {
    const { rig, line } = await stand('P', 8, 1000);
    await rig.touch(Array(6).keys(), 1);
    await rig.load('snap', line);
    await rig.resume('snap');
    await rig.touch([6, 7], 1);
    expect(await rig.status('snap')).toBe('10/10 2');
  });
});
