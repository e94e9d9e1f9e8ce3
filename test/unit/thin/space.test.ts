/** Space that runs out, and modes of a pool (dm-thin scenarios by number). */
import { expect, test } from 'vitest';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { mend } from '../../../src/stores/thin/mend.ts';
import { Pool } from '../../../src/targets/thin/pool.ts';
import { FakeClock } from '../../../src/testing/fake-clock.ts';
import { originData, snapshotData, turns, watch } from '../../support/rig.ts';
import { errno, poolOf, type ThinRig, whole, zeroes } from '../../support/thin.ts';

async function full(options: { features?: string[]; lowWater?: number } = {}) {
  const rig = await poolOf(8, { lowWater: 3, ...options });
  await rig.thin(1, 4096);
  return rig;
}

test('57 to 59. events, a write that waits, and room for it', async () => {
  const rig = await full();
  for (let block = 0; block < 8; block++) {
    await rig.write('t1', block * 128, originData(0, 128));
    expect(await rig.event('pool')).toBe(block < 5 ? 0 : 1);
  }
  const written = watch(rig.write('t1', 1024, originData(0, 128)));
  await turns();
  expect(written.done).toBe(false);
  expect(await rig.status('pool')).toMatch(/ 8\/8 - out_of_data_space discard_passdown queue_if_no_space /);
  expect(await rig.event('pool')).toBe(2);
  await rig.write('t1', 0, snapshotData(0, 128));
  expect(await rig.read('t1', 2048, 8)).toEqual(zeroes(8));
  await rig.message('create_thin 2');
  await rig.message('create_snap 3 1');
  await rig.reload(12);
  while (!written.done) await turns(1);
  expect(await rig.status('pool')).toMatch(/ 9\/12 - rw /);
  expect(await rig.event('pool')).toBe(3);
  await whole(rig);
});

test('56. a discard makes room for a write that waits', async () => {
  const rig = await full();
  for (let block = 0; block < 8; block++) await rig.write('t1', block * 128, originData(0, 128));
  const written = watch(rig.write('t1', 1024, snapshotData(0, 128)));
  await turns();
  await rig.discard('t1', 0, 128);
  await rig.status('pool');
  while (!written.done) await turns(1);
  expect(await rig.status('pool')).toMatch(/ 8\/8 - rw /);
  expect(await rig.read('t1', 1024, 8)).toEqual(snapshotData(0, 8));
});

test('60. after a minute what waits fails; a suspend and a resume ask for the queue again', async () => {
  const clock = new FakeClock();
  const usual = Pool.clock;
  Pool.clock = clock;
  try {
    const rig = await full();
    for (let block = 0; block < 8; block++) await rig.write('t1', block * 128, originData(0, 128));
    const write = rig.write('t1', 1024, originData(0, 128));
    const waiting = watch(write);
    const failed = expect(write).rejects.toMatchObject(errno('ENOSPC'));
    await turns();
    clock.pass(59_999);
    await turns();
    expect(waiting.done).toBe(false);
    clock.pass(1);
    await failed;
    expect(await rig.status('pool')).toContain(' error_if_no_space ');
    expect(await rig.table('pool')).toBe('1:0 1:1 128 3 0 ');
    await rig.suspend('pool');
    await rig.resume('pool');
    expect(await rig.status('pool')).toContain(' queue_if_no_space ');
  } finally {
    Pool.clock = usual;
  }
});

test('a write that waits for space does not keep its device, nor the program, from going', async () => {
  for (const go of [(rig: ThinRig) => rig.remove('t1'), (rig: ThinRig) => rig.mapper.close()]) {
    const rig = await full();
    for (let block = 0; block < 8; block++) await rig.write('t1', block * 128, originData(0, 128));
    const failed = expect(rig.write('t1', 1024, originData(0, 128))).rejects.toMatchObject(errno('ENOSPC'));
    await turns();
    await go(rig);
    await failed;
  }
});

test('other devices go on waiting', async () => {
  const rig = await full();
  await rig.thin(2, 4096);
  for (let block = 0; block < 8; block++) await rig.write('t1', block * 128, originData(0, 128));
  const written = watch(rig.write('t1', 1024, originData(0, 128)));
  await turns();
  await rig.remove('t2');
  await turns();
  expect(written.done).toBe(false);
  await rig.reload(12);
  while (!written.done) await turns(1);
  expect(await rig.read('t1', 1024, 128)).toEqual(originData(0, 128));
});

test('61. error_if_no_space: ENOSPC at once', async () => {
  const rig = await full({ features: ['error_if_no_space'] });
  for (let block = 0; block < 8; block++) await rig.write('t1', block * 128, originData(0, 128));
  await expect(rig.write('t1', 1024, originData(0, 128))).rejects.toMatchObject(errno('ENOSPC'));
});

test('62. one event for each time that the table is resumed, when a block is taken below the mark', async () => {
  const rig = await poolOf(8, { lowWater: 20 });
  await rig.thin(1, 4096);
  const take = (block: number) => rig.write('t1', block * 128, originData(0, 128));
  expect(await rig.event('pool')).toBe(0);
  await take(0);
  expect(await rig.event('pool')).toBe(1);
  await take(1);
  await take(2);
  expect(await rig.event('pool')).toBe(1);
  await rig.suspend('pool');
  await rig.resume('pool');
  expect(await rig.event('pool')).toBe(1);
  await take(3);
  await take(4);
  expect(await rig.event('pool')).toBe(2);
});

test('63. metadata that is used up: read-only, whole, and healed by a larger device', async () => {
  const rig = await poolOf(12, { metadata: 64 });
  let made = 0;
  const next = () => rig.message(`create_thin ${made}`).then(() => void made++);
  // 17 blocks were free, and 16 are the threshold.
  while ((await rig.event('pool')) === 0) await next();
  expect(await rig.status('pool')).toContain(' rw ');
  const told = made;
  while (!(await rig.status('pool')).includes(' ro ')) await next();
  expect(made).toBeGreaterThan(told);
  expect(made).toBe(49);
  expect(await rig.status('pool')).toMatch(/^0 64\/64 0\/12 - ro .* - 16 $/);
  await expect(next()).rejects.toMatchObject(errno('EOPNOTSUPP'));
  rig.resize(rig.meta, 128 * 8);
  await rig.suspend('pool');
  await rig.resume('pool');
  expect(await rig.status('pool')).toMatch(/ 70\/128 0\/12 - rw .* - 32 $/);
  await next();
  expect((await checkMetadata(rig.meta)).devices.size).toBe(made);
  await whole(rig);
});

async function failing(break_: (rig: ThinRig) => void) {
  const rig = await poolOf(64);
  await rig.thin(1, 1024);
  await rig.write('t1', 0, originData(0, 128));
  await rig.flush('t1');
  await rig.write('t1', 128, originData(128, 128));
  break_(rig);
  await expect(rig.flush('t1')).rejects.toMatchObject(errno('EIO'));
  return rig;
}

test.each([
  [
    '64. metadata cannot be written',
    (rig: ThinRig) => void (rig.meta.fault = (op) => (op === 'write' ? 'EIO' : undefined)),
  ],
  [
    '66. the data device cannot be flushed',
    (rig: ThinRig) => void (rig.data.fault = (op) => (op === 'flush' ? 'EIO' : undefined)),
  ],
])('%s: read-only until it is checked; what was committed stays', async (_, break_) => {
  const rig = await failing(break_);
  expect(await rig.status('pool')).toMatch(/ ro .* needs_check /);
  expect(await rig.event('pool')).toBe(1);
  expect(await rig.status('t1')).toBe('128 127');
  rig.data.fault = undefined;
  rig.meta.fault = undefined;
  await rig.write('t1', 0, snapshotData(0, 8));
  expect(await rig.read('t1', 128, 8)).toEqual(zeroes(8));
  await expect(rig.write('t1', 512, originData(0, 8))).rejects.toMatchObject(errno('EIO'));
  // What was acknowledged and is gone is not forgotten.
  await expect(rig.flush('t1')).rejects.toMatchObject(errno('EIO'));
  await rig.reload(64);
  expect(await rig.status('pool')).toContain(' ro ');
  await expect(rig.message('create_thin 2')).rejects.toMatchObject(errno('EOPNOTSUPP'));
  await rig.load('pool', rig.line(100));
  await rig.resume('pool');
  expect(await rig.status('pool')).toContain(' 1/64 ');
  for (const name of ['t1', 'pool']) await rig.remove(name);
  expect(await mend(rig.meta)).toMatchObject({ findings: [], needsCheck: false });
  await rig.create('pool', rig.line(100));
  expect(await rig.status('pool')).toMatch(/ 1\/100 - rw .* - 256 $/);
  await rig.activate(1, 1024);
  expect(await rig.read('t1', 0, 16)).toEqual(Buffer.concat([snapshotData(0, 8), originData(8, 8)]));
});

test('a flush that waits behind a commit that fails fails too', async () => {
  const rig = await poolOf(64);
  await rig.thin(1, 1024);
  await rig.write('t1', 0, originData(0, 128));
  rig.meta.hold = (operation) => operation === 'write';
  const flushes = [rig.flush('t1')];
  await rig.meta.held(1);
  await rig.write('t1', 0, snapshotData(0, 8));
  flushes.push(rig.flush('t1'));
  rig.meta.fault = (operation) => (operation === 'write' ? 'EIO' : undefined);
  rig.meta.go();
  expect(await Promise.allSettled(flushes)).toMatchObject([{ reason: errno('EIO') }, { reason: errno('EIO') }]);
});

test('a flush that waits behind the commit that uses up the metadata flushes what was written meanwhile', async () => {
  const rig = await poolOf(12, { metadata: 64 });
  await rig.thin(1, 1024);
  await rig.write('t1', 0, originData(0, 128));
  await rig.message('create_snap 2 1');
  const free = async () => 64 - Number(/^\d+ (\d+)\//.exec(await rig.status('pool'))![1]);
  for (let id = 3; (await free()) > 1; id++) await rig.message(`create_thin ${id}`);
  // What the snapshot shares is copied now, which takes the last block.
  await rig.write('t1', 128, originData(0, 128));
  // The superblock: the data device has been flushed by then.
  rig.meta.hold = (operation, sector) => operation === 'write' && sector === 0;
  const first = rig.flush('t1');
  await rig.meta.held(1);
  await rig.write('t1', 136, snapshotData(0, 8));
  rig.data.takeLog();
  const second = rig.flush('t1');
  rig.meta.go();
  await Promise.all([first, second]);
  expect(await rig.status('pool')).toContain(' ro ');
  expect(rig.data.takeLog()).toContain('F');
});

test('65. metadata that cannot be read either: nothing works until the pool is made anew', async () => {
  const rig = await failing((rig) => void (rig.meta.fault = () => 'EIO'));
  expect(await rig.status('pool')).toBe('Fail');
  expect(await rig.status('t1')).toBe('Fail');
  expect(await rig.table('t1')).toBe('Fail');
  expect(await rig.table('pool')).toBe('1:0 1:1 128 0 0 ');
  await expect(rig.read('t1', 0, 8)).rejects.toMatchObject(errno('EIO'));
  await expect(rig.write('t1', 0, originData(0, 8))).rejects.toMatchObject(errno('EIO'));
  await expect(rig.create('t2', '0 128 thin /dev/mapper/pool 1')).rejects.toMatchObject({
    message: expect.stringContaining("Couldn't open thin device, Pool is in fail mode"),
  });
  rig.meta.fault = undefined;
  await rig.remove('t1');
  await rig.remove('pool');
  await rig.create('pool', rig.line(64));
  await rig.activate(1, 1024);
  expect(await rig.read('t1', 0, 128)).toEqual(originData(0, 128));
});

test('67. a pool that shrank is not resumed', async () => {
  const rig = await poolOf(64);
  await rig.load('pool', rig.line(32));
  await expect(rig.resume('pool')).rejects.toMatchObject({
    errno: 'EINVAL',
    message: 'pool target (32 blocks) too small: expected 64',
  });
  // As in the kernel: the table is there, suspended, and the pool as it was.
  expect(await rig.mapper.info({ name: 'pool' })).toMatchObject({ live: true, inactive: false, suspended: true });
  expect(await rig.status('pool')).toContain(' 0/64 ');
  rig.resize(rig.meta, 512 * 8);
  await rig.load('pool', rig.line(64));
  await expect(rig.resume('pool')).rejects.toMatchObject({
    errno: 'EINVAL',
    message: 'metadata device (512 blocks) too small: expected 1024',
  });
  rig.resize(rig.meta, 1024 * 8);
  await rig.reload(64);
  expect(await rig.status('pool')).toContain(' 0/64 ');
});

test('both devices grow in one resume', async () => {
  const rig = await poolOf(64);
  rig.resize(rig.meta, 2048 * 8);
  await rig.reload(100);
  expect(await rig.status('pool')).toMatch(/\/2048 0\/100 - rw /);
  await whole(rig);
});

test('68. read-only and back', async () => {
  const rig = await poolOf(64);
  await rig.thin(1, 1024);
  await rig.write('t1', 0, originData(0, 128));
  await rig.reload(64, { features: ['read_only'] });
  expect(await rig.status('pool')).toContain(' ro ');
  await expect(rig.message('create_thin 9')).rejects.toMatchObject(errno('EOPNOTSUPP'));
  await rig.write('t1', 0, snapshotData(0, 8));
  await expect(rig.write('t1', 512, originData(0, 8))).rejects.toMatchObject(errno('EIO'));
  await rig.discard('t1', 0, 128);
  expect(await rig.status('t1')).toBe('128 127');
  await rig.reload(64);
  expect(await rig.status('pool')).toContain(' rw ');
  await rig.write('t1', 512, originData(0, 8));
  await whole(rig);
});

test('69. a suspended pool holds its thin devices; none is activated', async () => {
  const rig = await poolOf(64);
  await rig.thin(1, 1024);
  await rig.message('create_thin 2');
  await rig.suspend('pool');
  const read = watch(rig.read('t1', 0, 8));
  const written = watch(rig.write('t1', 0, originData(0, 8)));
  await turns();
  expect([read.done, written.done]).toEqual([false, false]);
  await expect(rig.activate(2, 128)).rejects.toMatchObject({
    errno: 'EINVAL',
    message: expect.stringContaining('Unable to activate thin device while pool is suspended'),
  });
  await rig.resume('pool');
  while (!read.done || !written.done) await turns(1);
});

test('69. a pool whose thin device waits for the disk is not suspended when the wait is interrupted', async () => {
  const rig = await full();
  rig.data.hold = (operation) => operation === 'write';
  const written = rig.write('t1', 0, originData(0, 128));
  await rig.data.held(1);
  const abort = new AbortController();
  const suspended = expect(rig.mapper.suspend({ name: 'pool' }, { signal: abort.signal })).rejects.toMatchObject(
    errno('EINTR'),
  );
  await turns();
  abort.abort();
  await suspended;
  rig.data.go();
  await written;
  expect(await rig.read('t1', 0, 128)).toEqual(originData(0, 128));
  await whole(rig);
});
