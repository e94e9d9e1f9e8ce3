/** Sizes, stacks and the throttle (dm-snapshot scenarios 78 to 82 and 85). */
import { describe, expect, test } from 'vitest';
import {
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

test('78. a grown origin: the snapshot keeps its length, the new part is not copied', async () => {
  const rig = new Rig();
  const disk = rig.disk(0, 256, { content: old(0, 256) });
  rig.disk(1, 256);
  closeAfterwards(rig);
  await rig.create('real', '0 256 linear /dev/ram0 0');
  await rig.create('origin', '0 256 snapshot-origin /dev/mapper/real');
  await rig.create('snap', '0 256 snapshot /dev/mapper/real /dev/ram1 P 8');
  rig.resize(disk, 512);
  await rig.load('real', '0 512 linear /dev/ram0 0');
  await rig.resume('real');
  await rig.load('origin', '0 512 snapshot-origin /dev/mapper/real');
  await rig.resume('origin');
  expect((await rig.mapper.info({ name: 'snap' })).size).toBe(256 * 512);
  await rig.write('origin', 300, originData(300, 8));
  expect(await rig.status('snap')).toBe('16/256 16');
  await rig.write('origin', 248, originData(248, 16));
  expect(await rig.status('snap')).toBe('24/256 16');
  expect(await rig.read('snap', 0, 256)).toEqual(old(0, 256));
});

test('79. a COW cut short: more allocated than there is, EIO for what was cut off, Invalid at the next write', async () => {
  const { rig, cow } = await rigWith({ C: 1, O: 256, W: 64 });
  await rig.touch(Array(10).keys(), 1);
  rig.resize(cow, 8);
  expect(await rig.status('snap')).toBe('12/8 2');
  expect(await rig.read('snap', 0, 6)).toEqual(old(0, 6));
  await expect(rig.read('snap', 6, 1)).rejects.toMatchObject(EIO);
  expect(await rig.status('snap')).toBe('12/8 2');
  await rig.touch([20], 1);
  expect(await rig.status('snap')).toBe('Invalid');
  expect(headerOf(rig, cow)).toEqual([MAGIC, 0, 1, 1]);
});

describe('an origin cut short', () => {
  test('fails what would need the part that is gone, and costs nothing else', async () => {
    const { rig, origin } = await rigWith({ C: 8, O: 256 });
    rig.resize(origin, 100);
    await expect(rig.read('snap', 96, 8)).rejects.toMatchObject(EIO);
    await expect(rig.write('snap', 101, snapshotData(101, 2))).rejects.toMatchObject(EIO);
    await expect(rig.write('snap', 201, snapshotData(201, 2))).rejects.toMatchObject(EIO);
    await expect(rig.write('origin', 200, originData(200, 8))).rejects.toMatchObject(EIO);
    expect(await rig.status('snap')).toBe('16/1024 16');
    // What the origin still has, and whole chunks, which need nothing of it.
    await rig.write('snap', 97, snapshotData(97, 2));
    await rig.write('snap', 200, snapshotData(200, 8));
    expect(await rig.read('snap', 200, 8)).toEqual(snapshotData(200, 8));
    expect(await rig.read('snap', 96, 4)).toEqual(Buffer.concat([old(96, 1), snapshotData(97, 2), old(99, 1)]));
  });
});

test('80. a snapshot of a snapshot, through an origin between them: three images apart from each other', async () => {
  const rig = new Rig();
  rig.disk(0, 256, { content: old(0, 256) });
  rig.disk(1, 256);
  rig.disk(2, 256);
  closeAfterwards(rig);
  await rig.create('origin', '0 256 snapshot-origin /dev/ram0');
  await rig.create('s1real', '0 256 snapshot /dev/ram0 /dev/ram1 P 8');
  await rig.create('s1', '0 256 snapshot-origin /dev/mapper/s1real');
  await rig.create('s2', '0 256 snapshot /dev/mapper/s1real /dev/ram2 P 16');
  await rig.write('s1', 80, snapshotData(80, 8));
  await rig.write('origin', 96, originData(96, 8));
  expect(await rig.read('origin', 80, 24)).toEqual(Buffer.concat([old(80, 16), originData(96, 8)]));
  expect(await rig.read('s1', 80, 24)).toEqual(Buffer.concat([snapshotData(80, 8), old(88, 16)]));
  expect(await rig.read('s2', 80, 24)).toEqual(old(80, 24));
  await rig.write('s2', 100, originData(0, 4));
  expect(await rig.read('s1', 100, 4)).toEqual(old(100, 4));
  expect(await rig.status('s1real')).toBe('32/256 16');
  expect(await rig.status('s2')).toBe('64/256 32');
});

test('81. a read-only snapshot: its store is made and takes copies', async () => {
  const { rig, cow } = await rigWith({ C: 8 });
  rig.disk(2, 1024);
  await rig.mapper.create('fixed');
  await rig.mapper.load(
    { name: 'fixed' },
    [{ start: 0, length: 4096, type: 'snapshot', args: '/dev/ram0 /dev/ram2 P 8' }],
    { readOnly: true },
  );
  await rig.resume('fixed');
  expect(await rig.status('fixed')).toBe('16/1024 16');
  await rig.write('origin', 80, originData(80, 8));
  expect(await rig.status('fixed')).toBe('24/1024 16');
  expect(await rig.read('fixed', 80, 8)).toEqual(old(80, 8));
  await expect(rig.write('fixed', 80, snapshotData(80, 8))).rejects.toMatchObject({ errno: 'EPERM' });
  expect(cow.log.length).toBeGreaterThan(0);
});

describe('82. a transient snapshot over a persistent store', () => {
  test.each([
    ['destroys it, and P is refused afterwards', snapshotData(0, 8), 'ENXIO'],
    ['leaves a blank device when its first chunk begins with four zero bytes', Buffer.alloc(8 * 512), undefined],
  ])('%s', async (_, first, errno) => {
    const { rig, line } = await rigWith({ C: 8 });
    await rig.write('snap', 80, snapshotData(80, 8));
    await rig.recreate('snap', '0 4096 snapshot /dev/ram0 /dev/ram1 N 8');
    expect(await rig.status('snap')).toBe('0/1024 0');
    await rig.write('snap', 0, first);
    await rig.remove('snap');
    if (errno) await expect(rig.create('snap', line)).rejects.toMatchObject({ errno });
    else {
      await rig.create('snap', line);
      expect(await rig.status('snap')).toBe('16/1024 16');
    }
  });
});

describe('85. the throttle', () => {
  /** 64 MiB of copies at most: 4 of 16 MiB. */
  const C = 32768;

  async function stand() {
    const rig = new Rig();
    const origin = rig.disk(0, 40 * C);
    const cow = rig.disk(1, 64 * C);
    closeAfterwards(rig);
    await rig.create('origin', `0 ${40 * C} snapshot-origin /dev/ram0`);
    await rig.create('snap', `0 ${40 * C} snapshot /dev/ram0 /dev/ram1 N ${C}`);
    return { rig, origin, cow };
  }

  test('keeps the copies that run at once to four, for origin and snapshot writes alike', async () => {
    const { rig, cow } = await stand();
    cow.hold = (operation) => operation === 'write';
    const writes: Promise<void>[] = [];
    for (let chunk = 0; chunk < 10; chunk++) {
      writes.push(rig.write('origin', chunk * C, originData(0, 1)));
      writes.push(rig.write('snap', (chunk + 20) * C, snapshotData(0, 1)));
    }
    await turns();
    let most = 0;
    while (cow.waiting > 0) {
      most = Math.max(most, cow.waiting);
      cow.go(0);
      await turns(5);
    }
    await Promise.all(writes);
    expect(most).toBe(4);
    expect(await rig.status('snap')).toBe(`${20 * C}/${64 * C} 0`);
  });

  test('does not lock up when a snapshot is added, suspended and removed meanwhile', async () => {
    const { rig, cow } = await stand();
    const late = rig.disk(2, 64 * C);
    cow.hold = (operation) => operation === 'write';
    const writes = Array.from({ length: 8 }, (_, chunk) => rig.write('origin', chunk * C, originData(0, 1)));
    await cow.held(4);
    await rig.create('late', `0 ${40 * C} snapshot /dev/ram0 /dev/ram2 N ${C}`);
    late.later = true;
    for (let chunk = 8; chunk < 12; chunk++) writes.push(rig.write('origin', chunk * C, originData(0, 1)));
    const suspended = rig.suspend('snap');
    cow.go();
    await suspended;
    await Promise.all(writes);
    await rig.remove('snap');
    await rig.write('origin', 12 * C, originData(0, 1));
    expect((await rig.read('late', 0, 1)).every((byte) => byte === 0)).toBe(true);
  });

  test('releases who waits when the snapshot becomes invalid', async () => {
    const { rig, cow } = await stand();
    cow.hold = (operation) => operation === 'write';
    const writes = Array.from({ length: 8 }, (_, chunk) => rig.write('origin', chunk * C, originData(0, 1)));
    const refused = rig.write('snap', 30 * C, snapshotData(0, 1));
    refused.catch(() => {});
    await cow.held(4);
    cow.fault = (operation) => (operation === 'write' ? 'EIO' : undefined);
    cow.go();
    await Promise.all(writes);
    await expect(refused).rejects.toMatchObject(EIO);
    expect(await rig.status('snap')).toBe('Invalid');
  });
});
