/**
 * One table takes over another one's exceptions (dm-snapshot scenarios 70 to 76, as far as they speak of `snapshot`
 * tables; those of `snapshot-merge` are in merge.test.ts).
 */
import { describe, expect, test } from 'vitest';
import { Mapper } from '../../../src/mapper/mapper.ts';
import { headerOf, MAGIC, old, originData, rigWith, snapshotData, turns, watch } from '../../support/rig.ts';

const EIO = { errno: 'EIO' };
const EINVAL = { errno: 'EINVAL' };

/** A second device over the same origin and COW, loaded and not resumed. */
async function pair(options: Parameters<typeof rigWith>[0] = {}) {
  const found = await rigWith(options);
  await found.rig.write('snap', 80, snapshotData(80, 8));
  await found.rig.mapper.create('next');
  await found.rig.load('next', found.line);
  return found;
}

test('a destination shows no chunk size and no exceptions, and reads no disk', async () => {
  const { rig, cow, line } = await rigWith();
  await rig.mapper.create('next');
  await rig.load('next', line);
  expect(cow.takeLog()).toEqual([]);
  expect(await rig.status('next', true)).toBe('0/1024 0');
  expect(await rig.table('next', true)).toBe('1:0 1:1 P 0');
});

test('70. the destination cannot resume while the source runs: EINVAL, its table live, the device suspended', async () => {
  const { rig } = await pair();
  await expect(rig.resume('next')).rejects.toMatchObject(EINVAL);
  expect(await rig.mapper.info({ name: 'next' })).toMatchObject({ suspended: true, live: true, inactive: false });
  expect(await rig.status('next')).toBe('0/1024 0');
});

test('70. the source cannot resume while a destination waits; after the handover it is Invalid in memory', async () => {
  const { rig, cow } = await pair();
  await rig.suspend('snap');
  await expect(rig.resume('snap')).rejects.toMatchObject(EINVAL);
  await rig.resume('next');
  expect(await rig.status('next')).toBe('48/1024 32');
  expect(await rig.read('next', 80, 8)).toEqual(snapshotData(80, 8));
  await rig.resume('snap');
  expect(await rig.status('snap')).toBe('Invalid');
  expect(await rig.table('snap')).toBe('1:0 1:1 P 0');
  await expect(rig.read('snap', 0, 1)).rejects.toMatchObject(EIO);
  await expect(rig.write('snap', 0, snapshotData(0, 1))).rejects.toMatchObject(EIO);
  await rig.flush('snap');
  expect(headerOf(rig, cow)).toEqual([MAGIC, 1, 1, 16]);
  // The one that has them goes on, also when the other one goes.
  await rig.remove('snap');
  await rig.write('origin', 0, originData(0, 1));
  expect(await rig.read('next', 0, 1)).toEqual(old(0, 1));
});

test('the one that handed over is not loaded again after a restart, and says why', async () => {
  const { rig } = await pair();
  await rig.suspend('snap');
  await rig.resume('next');
  await rig.resume('snap');
  const saved = [...(await rig.mapper.list())].map(({ name }) => rig.mapper.save({ name }));
  await rig.mapper.removeAll();
  const again = new Mapper({ opener: rig.disks });
  await again.restore(saved);
  const info = await again.info({ name: 'snap' });
  expect(info).toMatchObject({ live: false, note: 'another table took over its exceptions' });
  expect((await again.status({ name: 'next' }))[0].text).toBe('48/1024 32');
  await again.removeAll();
});

test('71. a source removed before the handover: the destination is Invalid, the store on disk is not', async () => {
  const { rig, cow, line } = await pair();
  await rig.remove('snap');
  await rig.resume('next');
  expect(await rig.status('next')).toBe('Invalid');
  await expect(rig.read('next', 0, 1)).rejects.toMatchObject(EIO);
  expect(headerOf(rig, cow)).toEqual([MAGIC, 1, 1, 16]);
  await rig.recreate('next', line);
  expect(await rig.status('next')).toBe('48/1024 32');
  expect(await rig.read('next', 80, 8)).toEqual(snapshotData(80, 8));
});

test('72. a third table on one COW device is refused, and one whose partner was never resumed', async () => {
  const { rig, line } = await pair();
  await rig.mapper.create('third');
  await expect(rig.load('third', line)).rejects.toMatchObject(EINVAL);
  // The destination goes: its place is free.
  await rig.mapper.clear({ name: 'next' });
  await rig.load('third', line);
  await rig.mapper.clear({ name: 'third' });
  await rig.remove('snap');
  await rig.load('next', line);
  await expect(rig.load('third', line)).rejects.toMatchObject(EINVAL);
});

describe("76. a reload of the snapshot's own table", () => {
  test('P 1 to PO 64 shows PO 0 while inactive, then PO 1, with all data and numbers', async () => {
    const { rig } = await rigWith({ C: 1 });
    await rig.write('snap', 80, snapshotData(80, 8));
    const before = await rig.status('snap');
    await rig.load('snap', '0 4096 snapshot /dev/ram0 /dev/ram1 PO 64');
    expect(await rig.table('snap', true)).toBe('1:0 1:1 PO 0');
    await rig.resume('snap');
    expect(await rig.table('snap')).toBe('1:0 1:1 PO 1');
    expect(await rig.status('snap')).toBe(before);
    expect(await rig.read('snap', 80, 8)).toEqual(snapshotData(80, 8));
  });

  test('to N 64 stays P 1', async () => {
    const { rig } = await rigWith({ C: 1 });
    await rig.load('snap', '0 4096 snapshot /dev/ram0 /dev/ram1 N 64');
    await rig.resume('snap');
    expect(await rig.table('snap')).toBe('1:0 1:1 P 1');
  });

  test('takes P to PO in earnest: the next full COW overflows', async () => {
    const { rig } = await rigWith({ C: 8, W: 24 });
    await rig.load('snap', '0 4096 snapshot /dev/ram0 /dev/ram1 PO 8');
    await rig.resume('snap');
    await rig.write('snap', 0, snapshotData(0, 8));
    await expect(rig.write('snap', 8, snapshotData(8, 8))).rejects.toMatchObject(EIO);
    expect(await rig.status('snap')).toBe('Overflow');
  });

  test('raises the event of the device that has the table then', async () => {
    const { rig } = await rigWith({ C: 8, W: 24 });
    await rig.load('snap', '0 4096 snapshot /dev/ram0 /dev/ram1 P 8');
    await rig.resume('snap');
    await rig.touch([0, 1], 8);
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(1);
  });

  test('to another origin or COW device is no handover', async () => {
    const { rig } = await rigWith({ C: 8 });
    rig.disk(2, 1024);
    await rig.write('snap', 0, snapshotData(0, 8));
    await rig.load('snap', '0 4096 snapshot /dev/ram0 /dev/ram2 P 8');
    expect(await rig.status('snap', true)).toBe('16/1024 16');
    await rig.resume('snap');
    expect(await rig.read('snap', 0, 8)).toEqual(old(0, 8));
  });
});

describe('a handover in the middle of things', () => {
  test('an origin write that waits for its copy, and one for its commit, go on under the new table', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.load('snap', '0 4096 snapshot /dev/ram0 /dev/ram1 P 8');
    cow.hold = (operation, sector) => operation === 'write' && sector >= 16;
    const writes = [rig.write('origin', 80, originData(80, 8))];
    await cow.held(1);
    const resumed = rig.resume('snap');
    await turns();
    writes.push(rig.write('origin', 88, originData(88, 8)));
    await cow.held(2);
    cow.go();
    await resumed;
    await Promise.all(writes);
    expect(await rig.status('snap')).toBe('32/1024 16');
    expect(await rig.read('snap', 80, 16)).toEqual(old(80, 16));
    expect(await rig.read('origin', 80, 16)).toEqual(originData(80, 16));
  });

  test('origin writes of new chunks without an end do not keep a snapshot from being suspended', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    cow.later = true;
    let chunk = 0;
    let suspended = false;
    const stream = async () => {
      for (; !suspended && chunk < 100; chunk++) await rig.write('origin', chunk * 8, originData(chunk * 8, 1));
    };
    const streams = [stream(), stream(), stream()];
    await turns(3);
    await rig.suspend('snap');
    suspended = true;
    await Promise.all(streams);
    expect(chunk).toBeLessThan(100);
    await rig.resume('snap');
    expect(await rig.read('snap', 0, 800)).toEqual(old(0, 800));
  });

  test('a longer table waits for origin writes behind the old end, which nobody copied', async () => {
    const { rig, origin } = await rigWith({ C: 8, O: 256 });
    await rig.recreate('snap', '0 128 snapshot /dev/ram0 /dev/ram1 P 8');
    origin.hold = (operation) => operation === 'write';
    const writing = rig.write('origin', 200, originData(200, 1));
    await origin.held(1);
    await rig.load('snap', '0 256 snapshot /dev/ram0 /dev/ram1 P 8');
    const resuming = rig.resume('snap');
    const state = watch(resuming);
    await turns();
    expect(state.done).toBe(false);
    origin.go();
    await resuming;
    await writing;
    expect(await rig.read('snap', 200, 1)).toEqual(originData(200, 1));
  });
});
