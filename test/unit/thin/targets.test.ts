/** Targets `thin-pool` and `thin` (dm-thin scenarios by number). */
import { describe, expect, test } from 'vitest';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { Pool } from '../../../src/targets/thin/pool.ts';
import { FakeClock } from '../../../src/testing/fake-clock.ts';
import { bytes } from '../../../src/units.ts';
import { originData, snapshotData, turns, watch } from '../../support/rig.ts';
import { BLOCK, poolOf, ThinRig } from '../../support/thin.ts';

const errno = (errno: string) => ({ errno });
const zeroes = (count: number) => Buffer.alloc(count * 512);

async function whole(rig: ThinRig): Promise<void> {
  await rig.status('pool');
  expect((await checkMetadata(rig.meta)).findings).toEqual([]);
}

describe('format and open', () => {
  test('1, 2. the table formats the metadata, the first resume brings the data blocks', async () => {
    const rig = new ThinRig(512);
    await rig.mapper.create('pool');
    await rig.load('pool', rig.line(512));
    expect(await rig.status('pool', true)).toBe('0 110/1024 0/0 - rw discard_passdown queue_if_no_space - 256 ');
    await rig.resume('pool');
    expect(await rig.status('pool')).toBe('0 111/1024 0/512 - rw discard_passdown queue_if_no_space - 256 ');
    expect(await rig.table('pool')).toBe('1:0 1:1 128 0 0 ');
  });

  test('4. one byte that is not zero in block 0: nothing is written', async () => {
    const rig = new ThinRig(64);
    rig.poke(
      rig.meta,
      3,
      Buffer.from([1]).length === 1 ? Buffer.concat([Buffer.from([1]), Buffer.alloc(511)]) : zeroes(1),
    );
    await expect(rig.create('pool', rig.line(64))).rejects.toMatchObject({ errno: 'EILSEQ' });
    expect(rig.meta.takeLog('R')).toEqual([]);
  });

  test('5. nothing there and read_only: EPERM, still nothing there', async () => {
    const rig = new ThinRig(64, { features: ['read_only'] });
    await expect(rig.create('pool', rig.line(64))).rejects.toMatchObject({
      errno: 'EPERM',
      message: expect.stringContaining('Error creating metadata object'),
    });
    expect(rig.peek(rig.meta, 0, 8)).toEqual(zeroes(8));
  });

  test('6. another block size: EINVAL', async () => {
    const rig = await poolOf(64);
    await rig.remove('pool');
    await expect(rig.create('pool', rig.line(32, { block: 256 }))).rejects.toMatchObject(errno('EINVAL'));
  });

  test('7. opened, activated, read, asked and removed: not a byte is different', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    await rig.write('t1', 0, originData(0, 8));
    await rig.remove('t1');
    await rig.remove('pool');
    const before = rig.peek(rig.meta, 0, 8192);
    await rig.create('pool', rig.line(64));
    await rig.activate(1, 1024);
    expect(await rig.read('t1', 0, 8)).toEqual(originData(0, 8));
    expect(await rig.status('t1')).toBe('128 127');
    await rig.status('pool');
    await rig.remove('t1');
    await rig.remove('pool');
    expect(rig.peek(rig.meta, 0, 8192).equals(before)).toBe(true);
  });
});

describe('messages', () => {
  test("12 to 19. each with the kernel's errno", async () => {
    const rig = await poolOf(64);
    await rig.message('create_thin 1');
    await expect(rig.message('create_thin 1')).rejects.toMatchObject(errno('EEXIST'));
    await rig.message('create_thin 16777215');
    for (const wrong of ['16777216', 'abc', '0x10', '', '1 2'])
      await expect(rig.message(`create_thin ${wrong}`.trim())).rejects.toMatchObject(errno('EINVAL'));
    await rig.message('CREATE_THIN 77');
    await expect(rig.message('delete 99')).rejects.toMatchObject(errno('ENODATA'));
    await rig.activate(1, 128);
    await expect(rig.message('delete 1')).rejects.toMatchObject(errno('EBUSY'));
    await rig.remove('t1');
    await rig.message('delete 1');
    await expect(rig.message('create_snap 5 99')).rejects.toMatchObject(errno('ENODATA'));
    await rig.message('create_thin 1');
    await expect(rig.message('create_snap 1 1')).rejects.toMatchObject(errno('EEXIST'));
    await expect(rig.message('set_transaction_id 5 6')).rejects.toMatchObject(errno('EINVAL'));
    await expect(rig.message('set_transaction_id 0 18446744073709551616')).rejects.toMatchObject(errno('EINVAL'));
    await rig.message('set_transaction_id 0 18446744073709551615');
    expect(await rig.status('pool')).toMatch(/^18446744073709551615 /);
    await expect(rig.message('release_metadata_snap')).rejects.toMatchObject(errno('EINVAL'));
    await rig.message('reserve_metadata_snap');
    await expect(rig.message('reserve_metadata_snap')).rejects.toMatchObject(errno('EBUSY'));
    expect(await rig.status('pool')).toMatch(/ 0\/64 \d+ rw /);
    await rig.message('release_metadata_snap');
    expect(await rig.status('pool')).toMatch(/ 0\/64 - rw /);
    await expect(rig.message('defragment')).rejects.toMatchObject(errno('EINVAL'));
    await whole(rig);
  });

  test('20, 21. durable when it is answered, on a suspended pool too', async () => {
    const rig = await poolOf(64);
    await rig.suspend('pool');
    await rig.message('create_thin 3');
    expect((await checkMetadata(rig.meta)).devices).toEqual(new Map([[3, 0]]));
  });
});

describe('mapping, zeroing, sharing', () => {
  const FULL = Buffer.alloc(2 * 64 * BLOCK * 512, 'P');

  test('22. a small write to a new block: zeroes around it', async () => {
    const rig = await poolOf(64, { content: FULL });
    await rig.thin(1, 1024);
    await rig.write('t1', 24, originData(0, 8));
    expect(rig.peek(rig.data, 0, 128)).toEqual(Buffer.concat([zeroes(24), originData(0, 8), zeroes(96)]));
    expect(await rig.status('t1')).toBe('128 127');
  });

  test('23. with skip_block_zeroing: what the disk had', async () => {
    const rig = await poolOf(64, { content: FULL, features: ['skip_block_zeroing'] });
    await rig.thin(1, 1024);
    await rig.write('t1', 24, originData(0, 8));
    expect(rig.peek(rig.data, 0, 24)).toEqual(FULL.subarray(0, 24 * 512));
    expect(rig.peek(rig.data, 24, 8)).toEqual(originData(0, 8));
    expect(rig.data.takeLog('RF')).toEqual(['W 24+8']);
  });

  test('24. a whole block is written once; one across two blocks takes two', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 4096);
    rig.data.takeLog();
    await rig.write('t1', 0, originData(0, 128));
    expect(rig.data.takeLog('F')).toEqual(['W 0+128']);
    await rig.write('t1', 42 * 32, originData(0, 128));
    expect(await rig.status('t1')).toBe(`384 ${12 * 128 - 1}`);
    expect(await rig.read('t1', 42 * 32, 128)).toEqual(originData(0, 128));
  });

  test('25. what was never written reads as zeroes, and stays unmapped', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    expect(await rig.read('t1', 0, 300)).toEqual(zeroes(300));
    expect(await rig.status('t1')).toBe('0 -');
  });

  test('26 to 29, 31. a snapshot shares, and each side gets its own when it is written', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    await rig.write('t1', 0, originData(0, 512));
    await rig.snapshot(2, 1, 1024);
    expect(await rig.status('t2')).toBe('512 511');
    expect(await rig.status('pool')).toContain(' 4/64 ');
    await rig.write('t1', 8, snapshotData(8, 8));
    expect(await rig.read('t1', 0, 128)).toEqual(
      Buffer.concat([originData(0, 8), snapshotData(8, 8), originData(16, 112)]),
    );
    expect(await rig.read('t2', 0, 128)).toEqual(originData(0, 128));
    expect(await rig.status('pool')).toContain(' 5/64 ');
    await rig.write('t2', 0, snapshotData(0, 8));
    expect(await rig.status('pool')).toContain(' 5/64 ');
    rig.meta.takeLog();
    await rig.write('t1', 16, snapshotData(16, 8));
    await rig.flush('t1');
    await whole(rig);
    await rig.remove('t1');
    await rig.message('delete 1');
    expect(await rig.read('t2', 128, 384)).toEqual(originData(128, 384));
    expect(await rig.status('pool')).toContain(' 4/64 ');
    await whole(rig);
  });

  test('30. a snapshot of a snapshot of …: only the lowest changes', async () => {
    const rig = await poolOf(64);
    await rig.thin(0, 1024);
    await rig.write('t0', 0, originData(0, 128));
    for (let depth = 1; depth <= 10; depth++) await rig.snapshot(depth, depth - 1, 1024);
    await rig.write('t10', 0, snapshotData(0, 128));
    for (let depth = 0; depth < 10; depth++) expect(await rig.read(`t${depth}`, 0, 128)).toEqual(originData(0, 128));
    expect(await rig.read('t10', 0, 128)).toEqual(snapshotData(0, 128));
    await whole(rig);
  });

  test('32. two writes into one new block at once: one block, both there', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    rig.data.later = true;
    await Promise.all([rig.write('t1', 0, originData(0, 8)), rig.write('t1', 64, snapshotData(64, 8))]);
    expect(await rig.status('t1')).toBe('128 127');
    expect(await rig.read('t1', 0, 72)).toEqual(Buffer.concat([originData(0, 8), zeroes(56), snapshotData(64, 8)]));
  });

  test('33. a read of a shared block during its copy gets the old data, and the block is kept until it has ended', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    await rig.write('t1', 0, originData(0, 128));
    await rig.snapshot(2, 1, 1024);
    rig.data.hold = (operation, sector) => operation === 'read' && sector === 64;
    const read = rig.read('t1', 64, 1);
    await rig.data.held(1);
    const written = watch(rig.write('t1', 0, snapshotData(0, 128)));
    await turns();
    expect(written.done).toBe(false);
    rig.data.go();
    expect(await read).toEqual(originData(64, 1));
    while (!written.done) await turns(1);
  });

  test("two mapped devices over one thin device do not get in each other's way", async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    await rig.create('other', '0 1024 thin /dev/mapper/pool 1');
    rig.data.later = true;
    await Promise.all([rig.write('t1', 0, originData(0, 8)), rig.write('other', 64, snapshotData(64, 8))]);
    expect(await rig.read('other', 0, 72)).toEqual(Buffer.concat([originData(0, 8), zeroes(56), snapshotData(64, 8)]));
    expect(await rig.status('pool')).toContain(' 1/64 ');
  });

  test('a discard keeps requests to its blocks waiting, until others may have them', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    await rig.write('t1', 0, originData(0, 256));
    rig.data.hold = (operation) => operation === 'discard';
    const discarded = rig.discard('t1', 0, 128);
    await rig.data.held(1);
    const read = rig.read('t1', 0, 8);
    const written = rig.write('t1', 8, snapshotData(8, 8));
    expect(await rig.read('t1', 128, 8)).toEqual(originData(128, 8));
    const states = [watch(read), watch(written)];
    await turns();
    expect(states.map(({ done }) => done)).toEqual([false, false]);
    rig.data.go();
    await Promise.all([discarded, written, read]);
    expect(await rig.read('t1', 0, 16)).toEqual(Buffer.concat([zeroes(8), snapshotData(8, 8)]));
    await whole(rig);
  });

  test('what is mapped, what the origin shows and what is zero, without a look at every block', async () => {
    const rig = await poolOf(64);
    rig.disk(2, 1000);
    await rig.thin(1, 2 ** 40, '/dev/ram2');
    await rig.write('t1', 128, originData(0, 8));
    await rig.write('t1', 2 ** 39, originData(0, 8));
    const found = await rig.mapper.device({ name: 't1' }).extents(bytes(0), 2 ** 49);
    expect(found.map(({ length, hole, zero }) => [length / 512, hole, zero])).toEqual([
      [128, true, false],
      [128, false, false],
      [1000 - 256, true, false],
      [2 ** 39 - 1000, true, true],
      [128, false, false],
      [2 ** 40 - 2 ** 39 - 128, true, true],
    ]);
  });

  test('36, 37. a shorter table keeps what lies behind it; two lines begin at sector 0 each', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    await rig.write('t1', 512, originData(0, 8));
    await rig.recreate('t1', '0 256 thin /dev/mapper/pool 1');
    await rig.recreate('t1', '0 1024 thin /dev/mapper/pool 1');
    expect(await rig.read('t1', 512, 8)).toEqual(originData(0, 8));
    await rig.message('create_thin 2');
    await rig.create('both', '0 1024 thin /dev/mapper/pool 1', '1024 1024 thin /dev/mapper/pool 2');
    await rig.write('both', 1024, snapshotData(0, 8));
    expect(await rig.read('both', 512, 8)).toEqual(originData(0, 8));
    await rig.activate(2, 1024);
    expect(await rig.read('t2', 0, 8)).toEqual(snapshotData(0, 8));
  });

  test('38. a write that fails in the middle of a copy: EIO, and no block is lost', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    rig.data.fault = (operation) => (operation === 'write' ? 'EIO' : undefined);
    await expect(rig.write('t1', 0, originData(0, 8))).rejects.toMatchObject(errno('EIO'));
    rig.data.fault = undefined;
    expect(await rig.status('pool')).toContain(' 0/64 ');
    await whole(rig);
  });
});

describe('an external origin', () => {
  const ORIGIN = 6184;

  async function withOrigin(features: string[] = []) {
    const rig = await poolOf(128, { features, content: Buffer.alloc(2 * 128 * BLOCK * 512, 'P') });
    rig.disk(2, ORIGIN, { content: originData(0, 4000).length > 0 ? content() : undefined });
    await rig.thin(1, 8192, '/dev/ram2');
    return rig;
  }
  const content = () => Buffer.concat([originData(0, 4096), originData(0, ORIGIN - 4096)]);
  const shown = (from: number, count: number) =>
    Buffer.concat([content(), zeroes(8192 - ORIGIN)]).subarray(from * 512, (from + count) * 512);

  test('39, 40. reads as the origin, and as zeroes behind it; nothing is allocated', async () => {
    const rig = await withOrigin();
    expect(await rig.read('t1', 0, 8192)).toEqual(shown(0, 8192));
    expect(await rig.read('t1', 6176, 16)).toEqual(shown(6176, 16));
    expect(await rig.status('t1')).toBe('0 -');
    expect(await rig.table('t1')).toMatch(/^\d+:\d+ 1 1:2$/);
  });

  test('41 to 43. a small write takes the rest of the block from the origin, and zeroes', async () => {
    const rig = await withOrigin();
    for (const [at, block] of [
      [2 * 128 + 16, 2],
      [48 * 128, 48],
      [50 * 128, 50],
    ]) {
      await rig.write('t1', at, snapshotData(0, 8));
      const expected = Buffer.from(shown(block * 128, 128));
      snapshotData(0, 8).copy(expected, (at - block * 128) * 512);
      expect(await rig.read('t1', block * 128, 128)).toEqual(expected);
    }
  });

  test('42, 43. with skip_block_zeroing what no origin has is what the disk had', async () => {
    const rig = await withOrigin(['skip_block_zeroing']);
    await rig.write('t1', 48 * 128, snapshotData(0, 8));
    const found = await rig.read('t1', 48 * 128, 128);
    expect(found.subarray(0, 40 * 512)).toEqual(Buffer.concat([snapshotData(0, 8), shown(48 * 128 + 8, 32)]));
    expect(found.subarray(40 * 512)).toEqual(Buffer.alloc(88 * 512, 'P'));
    await rig.write('t1', 50 * 128 + 8, snapshotData(0, 8));
    expect(await rig.read('t1', 50 * 128, 8)).toEqual(Buffer.alloc(8 * 512, 'P'));
  });

  test('44. a discarded block shows the origin again', async () => {
    const rig = await withOrigin();
    await rig.write('t1', 256, snapshotData(0, 128));
    await rig.discard('t1', 256, 128);
    expect(await rig.read('t1', 256, 128)).toEqual(shown(256, 128));
  });

  test('45. a snapshot shows it if its table names it', async () => {
    const rig = await withOrigin();
    await rig.snapshot(2, 1, 8192);
    expect(await rig.read('t2', 0, 128)).toEqual(zeroes(128));
    await rig.recreate('t2', '0 8192 thin /dev/mapper/pool 2 /dev/ram2');
    expect(await rig.read('t2', 0, 128)).toEqual(shown(0, 128));
  });

  test('48. the same word for origin and pool: EINVAL', async () => {
    const rig = await poolOf(64);
    await rig.message('create_thin 1');
    await expect(rig.create('x', '0 128 thin /dev/mapper/pool 1 /dev/mapper/pool')).rejects.toMatchObject({
      errno: 'EINVAL',
      message: expect.stringContaining('Error setting origin device'),
    });
  });
});

describe('discard', () => {
  test('50, 51. whole blocks only; the data device hears of them', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    await rig.write('t1', 0, originData(0, 256));
    rig.data.takeLog();
    await rig.discard('t1', 8, 128);
    expect(await rig.status('t1')).toBe('256 255');
    await rig.discard('t1', 100, 156);
    expect(rig.data.takeLog('RWF')).toEqual(['D 128+128']);
    expect(await rig.status('t1')).toBe('128 127');
    expect(await rig.status('pool')).toContain(' 1/64 ');
    await whole(rig);
  });

  test('52. of a shared block nothing is discarded below', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    await rig.write('t1', 0, originData(0, 256));
    await rig.snapshot(2, 1, 1024);
    await rig.write('t1', 128, snapshotData(128, 128));
    rig.data.takeLog();
    await rig.discard('t1', 0, 256);
    expect(rig.data.takeLog('RWF')).toEqual(['D 256+128']);
    expect(await rig.read('t2', 0, 256)).toEqual(originData(0, 256));
    await whole(rig);
  });

  test('53. no_discard_passdown: the data device hears nothing; ignore_discard: refused', async () => {
    const rig = await poolOf(64, { features: ['no_discard_passdown'] });
    await rig.thin(1, 1024);
    await rig.write('t1', 0, originData(0, 128));
    rig.data.takeLog();
    await rig.discard('t1', 0, 128);
    expect(rig.data.takeLog('F')).toEqual([]);
    expect(await rig.status('t1')).toBe('0 -');
    const other = await poolOf(64, { features: ['ignore_discard'] });
    await other.thin(1, 1024);
    await expect(other.discard('t1', 0, 128)).rejects.toMatchObject(errno('EOPNOTSUPP'));
  });
});

describe('space', () => {
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
    expect(await rig.status('pool')).toMatch(/ 8\/8 - /);
    expect(await rig.read('t1', 1024, 8)).toEqual(snapshotData(0, 8));
  });

  test('60. after a minute what waits fails; a suspend and a resume ask for the queue again', async () => {
    const clock = new FakeClock();
    const usual = Pool.clock;
    Pool.clock = clock;
    try {
      const rig = await full();
      for (let block = 0; block < 8; block++) await rig.write('t1', block * 128, originData(0, 128));
      const failed = expect(rig.write('t1', 1024, originData(0, 128))).rejects.toMatchObject(errno('ENOSPC'));
      await turns();
      clock.pass(60_000);
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

  test('61. error_if_no_space: ENOSPC at once', async () => {
    const rig = await full({ features: ['error_if_no_space'] });
    for (let block = 0; block < 8; block++) await rig.write('t1', block * 128, originData(0, 128));
    await expect(rig.write('t1', 1024, originData(0, 128))).rejects.toMatchObject(errno('ENOSPC'));
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
    expect(await rig.status('pool')).toMatch(/^0 64\/64 0\/12 - ro .* - 16 $/);
    await expect(next()).rejects.toMatchObject(errno('EOPNOTSUPP'));
    rig.resize(rig.meta, 128 * 8);
    await rig.suspend('pool');
    await rig.resume('pool');
    expect(await rig.status('pool')).toMatch(/ \d+\/128 0\/12 - rw .* - 32 $/);
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
});

describe('tables', () => {
  test.each([
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 128', 'Invalid argument count'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram0 128 0', 'Error setting metadata or data device'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 128 0 5 a b c d e', 'Invalid number of pool feature arguments'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 128 0 2 read_only', 'Invalid number of pool feature arguments'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 128 0 1 fast', 'Unrecognised pool feature requested'],
    ['0 8192 thin-pool /dev/ram7 /dev/ram1 128 0', 'Error opening metadata block device'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram7 128 0', 'Error getting data device'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 64 0', 'Invalid block size'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 127 0', 'Invalid block size'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 192 0', 'Invalid block size'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 2097280 0', 'Invalid block size'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 128 x', 'Invalid low water mark'],
  ])('81, 83. %s: %s', async (line, text) => {
    const rig = new ThinRig(64);
    await expect(rig.create('pool', line)).rejects.toMatchObject({ message: expect.stringContaining(text) });
  });

  test.each([
    ['0 128 thin /dev/mapper/pool', 'Invalid argument count'],
    ['0 128 thin /dev/mapper/pool 1 /dev/ram7', 'Error opening origin device'],
    ['0 128 thin /dev/ram9 1', 'Error opening pool device'],
    ['0 128 thin /dev/mapper/pool 16777216', 'Invalid device id'],
    ['0 128 thin /dev/ram0 1', "Couldn't get pool mapped device"],
    ['0 128 thin /dev/mapper/plain 1', "Couldn't find pool object"],
    ['0 128 thin /dev/mapper/pool 5', "Couldn't open thin internal device"],
  ])('81. %s: %s', async (line, text) => {
    const rig = await poolOf(64);
    await rig.create('plain', '0 128 linear /dev/ram1 0');
    await expect(rig.create('x', line)).rejects.toMatchObject({ message: expect.stringContaining(text) });
  });

  test('81. what only the table as a whole can tell', async () => {
    const rig = await poolOf(64);
    await expect(rig.load('pool', '0 128 zero')).rejects.toMatchObject({
      message: "can't replace immutable target type thin-pool",
    });
    const line = (from: number) => `${from} 128 thin-pool /dev/ram0 /dev/ram1 128 0`;
    await expect(rig.create('x', '0 128 zero', line(128))).rejects.toMatchObject({
      message: 'singleton target type must appear alone in table',
    });
    await expect(rig.load('pool', line(0), '128 128 zero')).rejects.toMatchObject({
      message: 'target type thin-pool must appear alone in table',
    });
    await expect(rig.create('x', line(0))).rejects.toMatchObject({
      errno: 'EBUSY',
      message: expect.stringContaining('metadata device already in use by a pool'),
    });
  });

  test('one metadata device has one pool, whoever loads first, and none before the last one has let go of it', async () => {
    const rig = new ThinRig(64);
    rig.meta.later = true;
    for (const name of ['a', 'b']) await rig.mapper.create(name);
    const loads = await Promise.allSettled(['a', 'b'].map((name) => rig.load(name, rig.line(64))));
    expect(loads.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
    expect(loads.find(({ status }) => status === 'rejected')).toMatchObject({ reason: errno('EBUSY') });
    const [first, second] = loads[0].status === 'fulfilled' ? ['a', 'b'] : ['b', 'a'];
    await rig.resume(first);
    await rig.mapper.message({ name: first }, 0, 'create_thin 7');
    await Promise.all([rig.remove(first), rig.load(second, rig.line(64)).catch(() => {})]);
    rig.meta.later = false;
    await rig.load(second, rig.line(64));
    await rig.resume(second);
    expect((await checkMetadata(rig.meta)).devices).toEqual(new Map([[7, 0]]));
  });

  test('82. features, whatever their case and number, in their own order', async () => {
    const rig = new ThinRig(64);
    await rig.create('pool', `${rig.line(64)} 3 ERROR_IF_NO_SPACE skip_block_zeroing SKIP_BLOCK_ZEROING`);
    expect(await rig.table('pool')).toBe('1:0 1:1 128 0 2 skip_block_zeroing error_if_no_space ');
  });

  test('83. a length that is no multiple of the block size', async () => {
    const rig = new ThinRig(64, { block: 384 });
    await rig.create('pool', '0 16000 thin-pool /dev/ram0 /dev/ram1 384 0');
    expect(await rig.status('pool')).toContain(' 0/41 ');
  });
});

describe('durability', () => {
  test('70. what nobody flushed is committed a second later', async () => {
    const clock = new FakeClock();
    const usual = Pool.clock;
    Pool.clock = clock;
    try {
      const rig = await poolOf(64);
      await rig.thin(1, 1024);
      await rig.write('t1', 0, originData(0, 8));
      expect((await checkMetadata(rig.meta)).devices).toEqual(new Map([[1, 0]]));
      clock.pass(1000);
      await turns();
      expect((await checkMetadata(rig.meta)).devices).toEqual(new Map([[1, 1]]));
    } finally {
      Pool.clock = usual;
    }
  });

  test('71, 74. a flush makes durable what was written to that device; nothing to do for another one', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    await rig.thin(2, 1024);
    await rig.write('t1', 0, originData(0, 8));
    rig.meta.takeLog();
    await rig.flush('t2');
    expect(rig.meta.takeLog()).toEqual([]);
    await rig.flush('t1');
    expect((await checkMetadata(rig.meta)).devices.get(1)).toBe(1);
  });
});
