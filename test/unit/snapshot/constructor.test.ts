/** The words of a snapshot's table (dm-snapshot scenarios 19 to 26). */
import { describe, expect, test } from 'vitest';
import { closeAfterwards, old, Rig } from '../../support/rig.ts';

function stand({ O = 4096, W = 1024, blockSize = 512 } = {}) {
  const rig = new Rig();
  rig.disk(0, O, { content: old(0, O) });
  const cow = rig.disk(1, W, { blockSize });
  closeAfterwards(rig);
  return { rig, cow, line: (words: string) => `0 ${O} snapshot /dev/ram0 /dev/ram1 ${words}` };
}

const EINVAL = { errno: 'EINVAL' };

test.each([
  ['p', 'P'],
  ['P', 'P'],
  ['po', 'PO'],
  ['POxx', 'PO'],
  ['n', 'N'],
  ['NO', 'N'],
  ['Nxyz', 'N'],
])('19. the store %s is taken and printed as %s', async (typed, printed) => {
  const { rig, line } = stand();
  await rig.create('snap', line(`${typed} 16`));
  expect(await rig.table('snap')).toBe(`1:0 1:1 ${printed} 16`);
});

test.each(['X', 'Px', 'persistent', 'Q'])('20. the store %s is refused', async (store) => {
  const { rig, cow, line } = stand();
  await expect(rig.create('snap', line(`${store} 16`))).rejects.toMatchObject(EINVAL);
  expect(cow.takeLog()).toEqual([]);
});

describe('the chunk size', () => {
  test.each(['3', '15', 'abc', '-1', '0x10', '16s', '4294967296', '4294967312', '4194304', '1.0', '1e1'])(
    '21. %s is refused',
    async (chunk) => {
      const { rig, cow, line } = stand();
      for (const store of ['P', 'N'])
        await expect(rig.create('snap', line(`${store} ${chunk}`))).rejects.toMatchObject(EINVAL);
      expect(cow.takeLog()).toEqual([]);
    },
  );

  test.each([
    ['+16', 16],
    ['1', 1],
    ['016', 16],
    ['2097152', 2097152],
  ])('21. %s is taken', async (chunk, sectors) => {
    const { rig, line } = stand();
    await rig.create('snap', line(`N ${chunk}`));
    expect(await rig.table('snap')).toBe(`1:0 1:1 N ${sectors}`);
  });

  test('22. left open it is 32 for a new persistent store, and refused for a transient one', async () => {
    const { rig, line } = stand();
    await expect(rig.create('snap', line('N 0'))).rejects.toMatchObject(EINVAL);
    await rig.create('snap', line('P 0'));
    expect(await rig.table('snap')).toBe('1:0 1:1 P 32');
    expect(await rig.status('snap')).toBe('64/1024 64');
  });

  test.each(['1', '4'])('23. of %s is refused on a COW device of 4096-byte blocks', async (chunk) => {
    const { rig, line } = stand({ blockSize: 4096 });
    await expect(rig.create('snap', line(`P ${chunk}`))).rejects.toMatchObject(EINVAL);
  });

  test('23. of 8 is taken there, the default stays 32', async () => {
    const { rig, line } = stand({ blockSize: 4096 });
    await rig.create('snap', line('P 8'));
    expect(await rig.status('snap')).toBe('16/1024 16');
    await rig.remove('snap');
    rig.poke(rig.disk(1, 1024, { blockSize: 4096 }), 0, Buffer.alloc(4096));
    await rig.create('snap', line('P 0'));
    expect(await rig.table('snap')).toBe('1:0 1:1 P 32');
  });

  test("23. must be a multiple of the origin's blocks too", async () => {
    const rig = new Rig();
    rig.disk(0, 4096, { blockSize: 4096 });
    rig.disk(1, 1024);
    closeAfterwards(rig);
    await expect(rig.create('snap', '0 4096 snapshot /dev/ram0 /dev/ram1 P 4')).rejects.toMatchObject(EINVAL);
    await rig.create('snap', '0 4096 snapshot /dev/ram0 /dev/ram1 P 8');
  });
});

describe('24. features', () => {
  test.each([
    ['P 16', 'P 16'],
    ['P 16 0', 'P 16'],
    ['P 16 0 extra junk', 'P 16'],
    ['P 16 1 discard_zeroes_cow', 'P 16 1 discard_zeroes_cow'],
    ['P 16 1 DISCARD_zeroes_COW extra', 'P 16 1 discard_zeroes_cow'],
    ['P 16 2 discard_passdown_origin discard_zeroes_cow', 'P 16 2 discard_zeroes_cow discard_passdown_origin'],
  ])('%s is taken and printed as %s', async (typed, printed) => {
    const { rig, line } = stand();
    await rig.create('snap', line(typed));
    expect(await rig.table('snap')).toBe(`1:0 1:1 ${printed}`);
    // What is printed loads again.
    await rig.recreate('snap', `0 4096 snapshot ${await rig.table('snap')}`);
  });

  test.each([
    ['P 16 junk', 'Invalid number of feature args'],
    ['P 16 3 discard_zeroes_cow discard_passdown_origin x', 'Invalid number of feature args'],
    ['P 16 1', 'Invalid number of feature args'],
    ['P 16 1 discard_passdown_origin', 'discard_passdown_origin feature depends on discard_zeroes_cow'],
    ['P 16 1 discard', 'Unrecognised feature requested: discard'],
  ])('%s is refused', async (typed, message) => {
    const { rig, line } = stand();
    await expect(rig.create('snap', line(typed))).rejects.toMatchObject({
      ...EINVAL,
      message: expect.stringContaining(message),
    });
  });
});

describe('25. devices', () => {
  test('COW and origin must differ', async () => {
    const { rig } = stand();
    await expect(rig.create('snap', '0 4096 snapshot /dev/ram0 1:0 P 16')).rejects.toMatchObject(EINVAL);
  });

  test.each([
    ['/dev/missing /dev/ram1', 'ENODEV'],
    ['/dev/ram0 /dev/missing', 'ENODEV'],
    ['9:9 /dev/ram1', 'ENXIO'],
    ['/dev/ram0 9:9', 'ENXIO'],
  ])('%s: %s', async (devices, errno) => {
    const { rig } = stand();
    await expect(rig.create('snap', `0 4096 snapshot ${devices} P 16`)).rejects.toMatchObject({ errno });
    await expect(rig.create('origin', '0 4096 snapshot-origin /dev/missing')).rejects.toMatchObject({
      errno: 'ENODEV',
    });
  });

  test('fewer than four arguments, and an origin with other than one, are refused', async () => {
    const { rig } = stand();
    await expect(rig.create('snap', '0 4096 snapshot /dev/ram0 /dev/ram1 P')).rejects.toMatchObject(EINVAL);
    await expect(rig.create('origin', '0 4096 snapshot-origin')).rejects.toMatchObject(EINVAL);
    await expect(rig.create('origin', '0 4096 snapshot-origin /dev/ram0 x')).rejects.toMatchObject(EINVAL);
  });

  test('a COW device that serves another origin is refused', async () => {
    const { rig, line } = stand();
    rig.disk(2, 4096);
    await rig.create('snap', line('P 16'));
    const other = '0 4096 snapshot /dev/ram2 /dev/ram1 P 16';
    await expect(rig.create('other', other)).rejects.toMatchObject(EINVAL);
    await rig.remove('snap');
    await rig.create('other', other);
  });
});

test('26. a table longer than the origin is refused when it is bound', async () => {
  const { rig, line } = stand();
  await rig.create('snap', line('P 16'));
  await rig.load('snap', '0 4097 snapshot /dev/ram0 /dev/ram1 P 16');
  await expect(rig.resume('snap')).rejects.toMatchObject({ code: 'TABLE_AREA', errno: 'EINVAL' });
  await rig.mapper.resume({ name: 'snap' });
  expect(await rig.status('snap')).toBe('32/1024 32');
});

describe('a start that is no multiple of the chunk', () => {
  const lines = (start: number, store: string) => [
    `0 ${start} zero`,
    `${start} 1024 snapshot /dev/ram0 /dev/ram1 ${store}`,
  ];

  test.each(['P 16', 'P 0', 'N 16'])('is refused, and nothing is written (%s)', async (store) => {
    const { rig, cow } = stand();
    await expect(rig.create('snap', ...lines(8, store))).rejects.toMatchObject(EINVAL);
    expect(cow.takeLog('R')).toEqual([]);
  });

  test('is refused for a table that takes over a store', async () => {
    const { rig } = stand();
    await rig.create('snap', ...lines(32, 'P 16'));
    await expect(rig.load('snap', ...lines(40, 'P 16'))).rejects.toMatchObject(EINVAL);
    await rig.load('snap', ...lines(48, 'P 16'));
    await rig.resume('snap');
  });
});
