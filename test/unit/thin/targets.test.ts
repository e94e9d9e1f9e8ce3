/** Targets `thin-pool` and `thin` (dm-thin scenarios by number). */
import { describe, expect, test } from 'vitest';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { bytes } from '../../../src/units.ts';
import { originData, snapshotData, turns, watch } from '../../support/rig.ts';
import { BLOCK, errno, poolOf, ThinRig, whole, zeroes } from '../../support/thin.ts';
import { contents } from './images.ts';
import { workedExample } from './worked-example.ts';

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
    rig.poke(rig.meta, 3, Buffer.alloc(512).fill(1, 0, 1));
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
    await expect(rig.create('pool', rig.line(32, { block: 256 }))).rejects.toMatchObject({
      errno: 'EINVAL',
      message: expect.stringContaining('Error creating metadata object'),
    });
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

  test('9. the worked example of the format opens with its lines', async () => {
    const rig = new ThinRig(64, { metadata: 64 });
    rig.poke(rig.meta, 0, contents(workedExample()));
    await rig.create('pool', rig.line(64));
    expect(await rig.status('pool')).toBe('7 19/64 4/64 - rw discard_passdown queue_if_no_space - 16 ');
    for (const id of [1, 2, 3]) await rig.activate(id, 2048);
    const lines = [await rig.status('t1'), await rig.status('t2'), await rig.status('t3')];
    expect(lines).toEqual(['512 1279', '384 383', '128 127']);
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
    await rig.reload(64, { features: ['read_only'] });
    for (const any of ['create_thin 5', 'create_thin abc', 'defragment'])
      await expect(rig.message(any)).rejects.toMatchObject(errno('EOPNOTSUPP'));
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
    const rig = await poolOf(64, { content: FULL });
    await rig.thin(1, 4096);
    rig.data.takeLog();
    await rig.write('t1', 0, originData(0, 128));
    expect(rig.data.takeLog('F')).toEqual(['W 0+128']);
    await rig.write('t1', 42 * 32, originData(0, 128));
    expect(await rig.status('t1')).toBe(`384 ${12 * 128 - 1}`);
    expect(await rig.read('t1', 10 * 128, 256)).toEqual(Buffer.concat([zeroes(64), originData(0, 128), zeroes(64)]));
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

  test('38. a write that fails while its block is zeroed or copied: EIO, and no block is lost', async () => {
    const rig = await poolOf(64);
    await rig.thin(1, 1024);
    const failing = async (at: number) => {
      rig.data.fault = (operation) => (operation === 'write' ? 'EIO' : undefined);
      await expect(rig.write('t1', at, snapshotData(0, 8))).rejects.toMatchObject(errno('EIO'));
      rig.data.fault = undefined;
    };
    await failing(0);
    expect(await rig.status('pool')).toContain(' 0/64 ');
    await rig.write('t1', 0, originData(0, 128));
    await rig.snapshot(2, 1, 1024);
    await failing(8);
    expect(await rig.status('pool')).toContain(' 1/64 ');
    expect(await rig.read('t1', 0, 128)).toEqual(originData(0, 128));
    await whole(rig);
  });
});

describe('tables', () => {
  test.each([
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 128', 'Invalid argument count'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram0 128 0', 'Error setting metadata or data device'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 128 0 2 read_only', 'Invalid number of pool feature arguments'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 128 0 1 fast', 'Unrecognised pool feature requested'],
    ['0 8192 thin-pool /dev/ram7 /dev/ram1 128 0', 'Error opening metadata block device', 'ENODEV'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram7 128 0', 'Error getting data device', 'ENODEV'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 64 0', 'Invalid block size'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 127 0', 'Invalid block size'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 192 0', 'Invalid block size'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 2097280 0', 'Invalid block size'],
    ['0 8192 thin-pool /dev/ram0 /dev/ram1 128 x', 'Invalid low water mark'],
  ])('81, 83. %s: %s', async (line, text, errno = 'EINVAL') => {
    const rig = new ThinRig(64);
    await expect(rig.create('pool', line)).rejects.toMatchObject({ errno, message: expect.stringContaining(text) });
  });

  test('81. metadata that is no superblock, or damaged, or too small', async () => {
    const rig = new ThinRig(64);
    const refused = async (errno: string) =>
      expect(rig.create('pool', rig.line(64))).rejects.toMatchObject({
        errno,
        message: expect.stringContaining('Error creating metadata object'),
      });
    rig.poke(rig.meta, 0, originData(0, 8));
    await refused('ENOTBLK');
    rig.poke(rig.meta, 0, Buffer.alloc(4096).fill(1, 4000, 4001));
    await refused('EILSEQ');
    rig.poke(rig.meta, 0, Buffer.alloc(4096));
    rig.resize(rig.meta, 32);
    await refused('ENOSPC');
  });

  test.each([
    ['0 128 thin /dev/mapper/pool', 'Invalid argument count'],
    ['0 128 thin /dev/mapper/pool 1 /dev/mapper/pool', 'Error setting origin device'],
    ['0 128 thin /dev/mapper/pool 1 /dev/ram7', 'Error opening origin device', 'ENODEV'],
    ['0 128 thin /dev/ram9 1', 'Error opening pool device', 'ENODEV'],
    ['0 128 thin /dev/mapper/pool 16777216', 'Invalid device id'],
    ['0 128 thin /dev/ram0 1', "Couldn't get pool mapped device"],
    ['0 128 thin /dev/mapper/plain 1', "Couldn't find pool object"],
    ['0 128 thin /dev/mapper/pool 5', "Couldn't open thin internal device", 'ENODATA'],
  ])('81. %s: %s', async (line, text, errno = 'EINVAL') => {
    const rig = await poolOf(64);
    await rig.create('plain', '0 128 linear /dev/ram1 0');
    await expect(rig.create('x', line)).rejects.toMatchObject({ errno, message: expect.stringContaining(text) });
  });

  test('81. what a pool that is there does not become', async () => {
    const rig = await poolOf(64);
    rig.disk(3, 8192);
    rig.disk(4, 8192);
    const refused = (line: string, errno: string, text: string) =>
      expect(rig.load('pool', line)).rejects.toMatchObject({ errno, message: expect.stringContaining(text) });
    await refused('0 8192 thin-pool /dev/ram0 /dev/ram4 128 0', 'EBUSY', 'data device already in use by a pool');
    await refused('0 8192 thin-pool /dev/ram3 /dev/ram4 128 0', 'EINVAL', 'different pool cannot replace a pool');
    await refused(`${rig.line(64)} 1 ignore_discard`, 'EINVAL', 'Discard support cannot be disabled once enabled');
    await rig.message('create_thin 1');
    rig.meta.fault = () => 'EIO';
    await expect(rig.message('create_thin 2')).rejects.toMatchObject(errno('EIO'));
    expect(await rig.status('pool')).toBe('Fail');
    await refused(rig.line(64), 'EINVAL', 'Error registering metadata threshold');
    expect(await rig.table('pool')).toBe('1:0 1:1 128 0 0 ');
  });

  test('81. what only the table as a whole can tell', async () => {
    const rig = await poolOf(64);
    await expect(rig.load('pool', '0 128 zero')).rejects.toMatchObject({
      errno: 'EINVAL',
      message: "can't replace immutable target type thin-pool",
    });
    await expect(rig.load('pool', '8 8192 thin-pool /dev/ram0 /dev/ram1 128 0')).rejects.toMatchObject({
      errno: 'EINVAL',
      message: expect.stringContaining('Gap in table'),
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

  test('82. features, whatever their case and number, in their own order; four at most', async () => {
    const rig = new ThinRig(64);
    const all = 'skip_block_zeroing ignore_discard no_discard_passdown read_only error_if_no_space';
    await expect(rig.create('pool', `${rig.line(64)} 5 ${all}`)).rejects.toMatchObject({
      errno: 'EINVAL',
      message: expect.stringContaining('Invalid number of pool feature arguments'),
    });
    await rig.create('pool', `${rig.line(64)} 2 SKIP_BLOCK_ZEROING skip_block_zeroing`);
    expect(await rig.table('pool')).toBe('1:0 1:1 128 0 1 skip_block_zeroing ');
    await rig.reload(64, { features: ['error_if_no_space', 'no_discard_passdown', 'skip_block_zeroing'] });
    expect(await rig.table('pool')).toBe('1:0 1:1 128 0 3 skip_block_zeroing no_discard_passdown error_if_no_space ');
  });

  test.each([
    [128, 125],
    [384, 41],
    [2_097_152, 0],
  ])('83. blocks of %i sectors, also where the length is no multiple of it: %i', async (block, blocks) => {
    const rig = new ThinRig(64, { block });
    await rig.create('pool', `0 16000 thin-pool /dev/ram0 /dev/ram1 ${block} 0`);
    expect(await rig.status('pool')).toContain(` 0/${blocks} `);
  });
});
