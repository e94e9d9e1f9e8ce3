import { existsSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import {
  directory,
  end,
  forks,
  image,
  KIB,
  MIB,
  mapper,
  names,
  ORIGIN,
  read,
  restart,
  restartFromSave,
  resumeFrom,
  useForks,
  write,
} from '../../../test/support/forks.ts';
import { Disks } from '../../device/open.ts';
import { checkMetadata } from '../../stores/thin/check.ts';
import { stateFault } from '../daemon/state.ts';

useForks();

const file = () => join(directory, 'pool.img');
const meta = () => join(directory, 'pool.meta');
const pool = (options = {}) => forks.createPool(file(), { size: 16 * MIB, ...options });
const volume = (name: string, size = 8 * MIB) => forks.createVolume('pool', name, { size });
const fork = (of: string, name: string) => forks.createVolume('pool', name, { volume: of });
const over = (name: string, options = {}) => forks.createVolume('pool', name, { image, ...options });
const listed = async () =>
  (await forks.volumes())
    .filter(({ internal }) => !internal)
    .map(({ name, origin, used, state }) => [name, origin, used! / KIB, state]);

/** What is wrong with a pool that is closed, as it lies in the file. */
async function problems(path = file()) {
  const disks = new Disks();
  const device = await disks.open(await disks.identify(path), 'r');
  try {
    return (await checkMetadata(device)).findings;
  } finally {
    await device.close();
  }
}

/** Thin devices of the pool. */
async function thins(): Promise<number[]> {
  const found: number[] = [];
  for (let id = 0; id < 10; id++) {
    const probe = await mapper.message({ name: 'pool' }, 0, `create_snap 100 ${id}`).catch(() => 'none');
    if (probe === 'none') continue;
    found.push(id);
    await mapper.message({ name: 'pool' }, 0, 'delete 100');
  }
  return found;
}

describe('a pool in one file', () => {
  test('is metadata and data behind it, sparse, and a device of the name of the file', async () => {
    expect(await pool()).toEqual({
      name: 'pool',
      data: file(),
      metadata: undefined,
      size: 16 * MIB,
      metadataSize: 257 * 64 * KIB,
      blockSize: 64 * KIB,
      thins: [],
    });
    const { size, blocks, mode } = statSync(file());
    expect(size).toBe((257 + 256) * 64 * KIB);
    expect(blocks * 512).toBeLessThan(MIB);
    expect(mode & 0o777).toBe(0o600);
    expect(await names()).toEqual(['pool', 'pool_tdata', 'pool_tmeta']);
    expect((await mapper.table({ name: 'pool_tdata' }))[0].text).toBe(`${file()} ${(257 * 64 * KIB) / 512}`);
    await end();
    expect(await problems()).toEqual([]);
  });

  test('gives volumes their blocks, forks them at once, and keeps them apart', async () => {
    await pool();
    expect(await volume('base')).toEqual({
      name: 'base',
      pool: 'pool',
      id: 1,
      size: 8 * MIB,
      origin: undefined,
      uri: 'uri:base',
      note: undefined,
    });
    await write('base', 0, 'base');
    expect(await fork('base', 'dev')).toMatchObject({ id: 2, size: 8 * MIB, origin: 'pool/base' });
    expect(await fork('dev', 'deep')).toMatchObject({ id: 3, origin: 'pool/dev' });
    await write('dev', 0, 'dev');
    await write('base', MIB, 'more');
    expect(await Promise.all(['base', 'dev', 'deep'].map((name) => read(name, 0, 4)))).toEqual([
      'base',
      'devd',
      'base',
    ]);
    expect(await listed()).toEqual([
      ['base', undefined, 128, 'active'],
      ['deep', 'pool/dev', 64, 'active'],
      ['dev', 'pool/base', 64, 'active'],
      ['pool', undefined, 192, 'active'],
    ]);
  });

  test('is there after a restart, with its volumes and what they were made from', async () => {
    await pool({ autoextend: { threshold: 80, percent: 20 } });
    await volume('base');
    await write('base', 0, 'kept');
    await fork('base', 'dev');
    const before = [await listed(), await forks.volumes()];
    const state = forks.state();
    expect(stateFault({ major: 254, ...JSON.parse(JSON.stringify(state)) })).toBeUndefined();
    await restart();
    expect([await listed(), await forks.volumes()]).toEqual(before);
    expect(await read('dev', 0, 4)).toBe('kept');
    await write('dev', 0, 'mine');
    expect(await read('base', 0, 4)).toBe('kept');
    await end();
    expect(await problems()).toEqual([]);
  });

  test('is opened again by its file alone', async () => {
    await pool({ blockSize: 128 * KIB });
    await volume('base');
    await write('base', MIB, 'kept');
    await volume('gone');
    await forks.drop('gone');
    expect(await forks.drop('base', { keepCow: true })).toEqual({
      name: 'base',
      thin: { pool: 'pool', id: 1, size: 8 * MIB, deleted: false },
    });
    expect(await forks.drop('pool', { keepCow: true })).toEqual({
      name: 'pool',
      files: [{ path: file(), deleted: false }],
    });
    expect(await names()).toEqual([]);
    expect(await forks.openPool(file(), { name: 'again' })).toMatchObject({
      name: 'again',
      size: 16 * MIB,
      blockSize: 128 * KIB,
      thins: [{ id: 1, mapped: 128 * KIB }],
    });
    expect(await forks.createVolume('again', 'back', { id: 1, size: 8 * MIB })).toMatchObject({ id: 1 });
    expect(await read('back', MIB, 4)).toBe('kept');
    expect(await forks.createVolume('again', 'next', { volume: 'back' })).toMatchObject({
      id: 2,
      origin: 'again/back',
    });
    // What it did not make it does not delete.
    await forks.drop('next');
    expect(await forks.drop('back')).toMatchObject({ thin: { id: 1, deleted: false } });
    expect(await forks.drop('again')).toMatchObject({ files: [{ deleted: false }] });
    expect(existsSync(file())).toBe(true);
  });
});

describe('a pool in two files', () => {
  test('has no devices but its own, and its metadata is a file for all tools', async () => {
    expect(await pool({ metadata: meta(), name: 'two' })).toMatchObject({
      name: 'two',
      data: file(),
      metadata: meta(),
    });
    expect(await names()).toEqual(['two']);
    expect(statSync(file()).size).toBe(16 * MIB);
    await forks.createVolume('two', 'dev', { size: MIB });
    await write('dev', 0, 'kept');
    await restart();
    expect(await read('dev', 0, 4)).toBe('kept');
    await forks.drop('dev', { keepCow: true });
    await forks.drop('two', { keepCow: true });
    expect(await problems(meta())).toEqual([]);
    expect(await forks.openPool(file(), { metadata: meta() })).toMatchObject({ name: 'pool', thins: [{ id: 1 }] });
    await expect(forks.openPool(file(), { metadata: meta(), name: 'more' })).rejects.toMatchObject({
      code: 'POOL_IN_USE',
    });
  });
});

describe('a volume over an image', () => {
  test('shows the image where it was not written, may be larger, and leaves it as it is', async () => {
    await pool();
    expect(await over('dev', { size: 2 * MIB })).toMatchObject({ size: 2 * MIB, origin: image });
    await write('dev', 512, 'mine');
    expect([await read('dev', 0, 8), await read('dev', 512, 4), await read('dev', MIB, 2)]).toEqual([
      'origin. ',
      'mine',
      '\0\0',
    ]);
    await fork('dev', 'deep');
    expect(await read('deep', 64 * KIB, 8)).toBe('origin. ');
    await restart();
    expect(await read('deep', 512, 4)).toBe('mine');
    expect(await forks.diff('dev')).toMatchObject({
      origin: image,
      differingBytes: 512,
      ranges: [{ start: 512, length: 512 }],
    });
    expect(readFileSync(image).equals(ORIGIN)).toBe(true);
  });

  test('is not made over an image that may change, and keeps it from changing', async () => {
    await pool();
    await forks.fork(image, 'cow');
    await expect(over('dev')).rejects.toMatchObject({ code: 'IMAGE_CHANGES', errno: 'EBUSY' });
    await forks.drop('cow');
    await over('dev');
    // Its origin device can only be read, and nothing is merged into it.
    expect(await forks.fork(image, 'cow')).toMatchObject({ originReadOnly: true });
    await expect(write('disk', 0, 'x')).rejects.toMatchObject({ errno: 'EPERM' });
    await expect(forks.merge('cow')).rejects.toMatchObject({ code: 'MERGE_OTHERS' });
    await over('other');
    expect((await names()).includes('other')).toBe(true);
  });

  test('is refused for what is no raw image', async () => {
    await pool();
    writeFileSync(image, 'QFI\xfb', 'latin1');
    await expect(over('dev')).rejects.toMatchObject({ code: 'IMAGE_FORMAT' });
    await expect(over('dev', { raw: true })).rejects.toMatchObject({ code: 'FILE_SIZE' });
    expect(await thins()).toEqual([]);
  });
});

describe('a difference', () => {
  test('of a fork is what it has of its own and was changed in what it was made from', async () => {
    await pool();
    await volume('base');
    await write('base', 0, 'both', MIB);
    await fork('base', 'dev');
    await write('dev', 128 * KIB, 'mine', 1024);
    await write('base', 4 * MIB, 'its');
    // The same again is no difference, though it takes a block.
    await write('dev', 512 * KIB, 'both', 512);
    expect(await forks.diff('dev')).toEqual({
      name: 'dev',
      origin: 'pool/base',
      size: 8 * MIB,
      chunkSize: 64 * KIB,
      pool: 'pool',
      exceptions: 3,
      exceptionBytes: 192 * KIB,
      differingBytes: 1536,
      ranges: [
        { start: 128 * KIB, length: 1024 },
        { start: 4 * MIB, length: 512 },
      ],
    });
    await expect(forks.diff('base')).rejects.toMatchObject({ code: 'NO_ORIGIN' });
  });

  test('is told from what is left when what it was made from is gone', async () => {
    await pool();
    await volume('base');
    await fork('base', 'middle');
    await fork('middle', 'dev');
    await write('dev', 0, 'mine');
    await forks.drop('middle');
    expect(await forks.diff('dev')).toMatchObject({ origin: 'pool/base', ranges: [{ start: 0, length: 512 }] });
    await forks.drop('base');
    await expect(forks.diff('dev')).rejects.toMatchObject({ code: 'NO_ORIGIN' });
  });
});

describe('a drop', () => {
  test('of a volume frees what no other has', async () => {
    await pool();
    await volume('base');
    await write('base', 0, 'base', MIB);
    await fork('base', 'dev');
    await write('dev', 0, 'mine', 128 * KIB);
    expect(await forks.drop('base')).toEqual({
      name: 'base',
      thin: { pool: 'pool', id: 1, size: 8 * MIB, deleted: true },
    });
    expect(await listed()).toEqual([
      ['dev', undefined, 1024, 'active'],
      ['pool', undefined, 1024, 'active'],
    ]);
    expect(await read('dev', MIB - 512, 4)).toBe('base');
  });

  test('of a pool takes its files with it, once nothing is in it', async () => {
    await pool({ metadata: meta() });
    await volume('dev');
    await mapper.message({ name: 'pool' }, 0, 'create_thin 7');
    await expect(forks.drop('pool')).rejects.toMatchObject({ code: 'POOL_VOLUMES', hint: /dmkit drop dev/ });
    await expect(forks.drop('pool', { keepCow: true })).rejects.toMatchObject({ code: 'POOL_VOLUMES' });
    await forks.drop('dev');
    await expect(forks.drop('pool')).rejects.toMatchObject({ code: 'POOL_VOLUMES', message: /thin devices: 7/ });
    await mapper.message({ name: 'pool' }, 0, 'delete 7');
    expect(await forks.drop('pool')).toEqual({
      name: 'pool',
      files: [
        { path: file(), deleted: true },
        { path: meta(), deleted: true },
      ],
    });
    expect(readdirSync(directory)).toEqual(['disk.img']);
  });

  test('of what is open is refused, and changes nothing', async () => {
    await pool();
    await volume('dev');
    const open = mapper.open({ name: 'dev' });
    await expect(forks.drop('dev')).rejects.toMatchObject({ errno: 'EBUSY' });
    await open.close();
    await restart();
    expect(await names()).toContain('dev');
  });

  test('of a thin device that was made with dmsetup leaves it in its pool', async () => {
    await pool();
    await mapper.message({ name: 'pool' }, 0, 'create_thin 7');
    await mapper.create('thin', { table: [{ start: 0, length: 8, type: 'thin', args: '/dev/mapper/pool 7' }] });
    expect((await forks.volumes()).find(({ name }) => name === 'thin')).toMatchObject({ pool: 'pool', id: 7 });
    expect(await forks.drop('thin')).toEqual({
      name: 'thin',
      thin: { pool: 'pool', id: 7, size: 4096, deleted: false },
    });
    expect(await thins()).toEqual([7]);
  });
});

describe('refused with nothing left behind', () => {
  test.each<[string, () => Promise<unknown>, string]>([
    ['a pool without a size', () => forks.createPool(file()), 'POOL_SIZE'],
    ['a pool of nothing', () => pool({ size: 0 }), 'POOL_SIZE'],
    ['a pool that no number holds', () => pool({ size: 2 ** 60 }), 'POOL_SIZE'],
    ['small blocks', () => pool({ blockSize: 4096 }), 'POOL_BLOCK_SIZE'],
    ['odd blocks', () => pool({ blockSize: 65536 + 512 }), 'POOL_BLOCK_SIZE'],
    ['large blocks', () => pool({ blockSize: 2 ** 31 }), 'POOL_BLOCK_SIZE'],
    ['a file that is there', () => forks.createPool(image, { size: MIB }), 'POOL_EXISTS'],
    ['metadata in a file that is there', () => pool({ metadata: image }), 'POOL_EXISTS'],
    ['a name that no pool can have', () => pool({ name: 'a b' }), 'FORK_NAME'],
    ['growth by nothing', () => pool({ autoextend: { threshold: 80, percent: 0 } }), 'FORK_AUTOEXTEND'],
    ['growth to less', () => pool({ autoextend: { threshold: 80, percent: 9, limit: MIB } }), 'FORK_AUTOEXTEND'],
    ['to open what is no pool', () => forks.openPool(image), 'THIN_MAGIC|METADATA_BLOCK'],
    ['to open what is not there', () => forks.openPool(file()), 'DEVICE_NOT_FOUND'],
  ])('%s', async (_what, work, code) => {
    await expect(work()).rejects.toMatchObject({ code: expect.stringMatching(new RegExp(`^(${code})$`)) });
    expect([await names(), readdirSync(directory), forks.state().forks]).toEqual([[], ['disk.img'], []]);
    expect(readFileSync(image).equals(ORIGIN)).toBe(true);
  });

  test.each<[string, () => Promise<unknown>, string]>([
    ['a volume without bytes', () => volume('dev', 0), 'VOLUME_SIZE'],
    ['a volume of half a sector', () => volume('dev', 1000), 'VOLUME_SIZE'],
    ['a volume of no pool', () => forks.createVolume('none', 'dev', { size: 512 }), 'NO_DEVICE'],
    ['a volume of what is no pool', () => forks.createVolume('pool_tdata', 'dev', { size: 512 }), 'NO_POOL'],
    ['a fork of what is no volume', () => fork('pool', 'dev'), 'NO_VOLUME'],
    ['a fork of nothing', () => fork('none', 'dev'), 'NO_DEVICE'],
    ['a name that is taken', () => volume('base'), 'NAME_IN_USE'],
    ['a thin device that is shown', () => forks.createVolume('pool', 'dev', { id: 1, size: 512 }), 'VOLUME_SHOWN'],
    ['a thin device that is not there', () => forks.createVolume('pool', 'dev', { id: 5, size: 512 }), 'NO_VOLUME'],
    ['a pool over the same file', () => forks.createPool(file(), { size: MIB, name: 'x' }), 'POOL_EXISTS'],
    ['to open it twice', () => forks.openPool(file(), { name: 'x' }), 'POOL_IN_USE'],
    ['a smaller pool', () => forks.extendPool('pool', MIB), 'POOL_SIZE'],
    ['to extend what is no pool', () => forks.extendPool('base', MIB), 'NO_POOL'],
  ])('in a pool, %s', async (_what, work, code) => {
    await pool();
    await volume('base');
    const before = [await forks.volumes(), forks.state().forks];
    await expect(work()).rejects.toMatchObject({ code: expect.stringMatching(new RegExp(`^(${code})$`)) });
    expect([await forks.volumes(), forks.state().forks]).toEqual(before);
    expect(await thins()).toEqual([1]);
  });

  test('a pool whose file is too short', async () => {
    await pool();
    await volume('dev');
    await forks.drop('dev', { keepCow: true });
    await forks.drop('pool', { keepCow: true });
    truncateSync(file(), 20 * MIB);
    await expect(forks.openPool(file())).rejects.toMatchObject({ code: 'POOL_SHORT' });
    expect(await names()).toEqual([]);
  });
});

describe('killed', () => {
  const present = async () => (await names()).filter((name) => !name.startsWith('pool_'));

  test.each([false, true])('while a pool is made, it is there whole or not at all (unsaved: %s)', async (unsaved) => {
    const found = new Set<boolean>();
    let count = 1;
    for (; await restartFromSave(count, { unsaved }, () => pool({ metadata: undefined })); count++) {
      const whole = (await names()).includes('pool');
      found.add(whole);
      if (whole) {
        await volume('dev');
        await forks.drop('dev');
        await forks.drop('pool');
      }
      expect([count, await names(), readdirSync(directory)]).toEqual([count, [], ['disk.img']]);
    }
    expect(count).toBeGreaterThan(4);
    expect(found).toContain(false);
    if (!unsaved) expect(found).toContain(true);
  });

  test.each([false, true])('while a pool is dropped, it is there whole or gone (unsaved: %s)', async (unsaved) => {
    let count = 1;
    for (; await restartFromSave(count, { unsaved, before: () => pool() }, () => forks.drop('pool')); count++) {
      if ((await names()).includes('pool')) await forks.drop('pool');
      expect([count, await names(), readdirSync(directory)]).toEqual([count, [], ['disk.img']]);
    }
    expect(count).toBeGreaterThan(2);
  });

  test.each([
    [false, false],
    [true, false],
    [false, true],
    [true, true],
  ])('while a pool grows, it comes back with its volumes (unsaved: %s, two files: %s)', async (unsaved, two) => {
    const before = async () => {
      await pool(two ? { metadata: meta() } : {});
      await volume('base');
      await write('base', 0, 'base');
    };
    const sizes = new Set<number>();
    let count = 1;
    for (; await restartFromSave(count, { unsaved, before }, () => forks.extendPool('pool', 32 * MIB)); count++) {
      const volumes = await forks.volumes();
      expect([count, volumes.map(({ state, note }) => [state, note])]).toEqual([
        count,
        volumes.map(() => ['active', undefined]),
      ]);
      sizes.add(volumes.find(({ name }) => name === 'pool')!.size / MIB);
      expect(await read('base', 0, 4)).toBe('base');
      expect(await forks.extendPool('pool', 48 * MIB)).toMatchObject({ size: 48 * MIB });
    }
    expect(count).toBeGreaterThan(2);
    expect(sizes).toContain(32);
  });

  test.each([false, true])(
    'while volumes come and go, no thin device is lost or left (unsaved: %s)',
    async (unsaved) => {
      const before = async () => {
        await pool();
        await volume('base');
        await write('base', 0, 'base');
      };
      const work = async () => {
        await fork('base', 'dev');
        await forks.drop('dev');
        await volume('other');
        await forks.drop('other');
      };
      let count = 1;
      const seen = new Set<string>();
      for (; await restartFromSave(count, { unsaved, before }, work); count++) {
        const there = await present();
        seen.add(there.join());
        expect([count, await thins()]).toEqual([count, there.length === 3 ? [1, 2] : [1]]);
        expect((await forks.volumes()).map(({ state }) => state)).toEqual((await names()).map(() => 'active'));
        expect(await read('base', 0, 4)).toBe('base');
        if (there.includes('dev')) expect(await read('dev', 0, 4)).toBe('base');
        await end();
        expect(await problems()).toEqual([]);
        await resumeFrom({ devices: [], forks: [] });
      }
      expect(count).toBeGreaterThan(8);
      expect([...seen].sort()).toEqual(['base,dev,pool', 'base,other,pool', 'base,pool']);
    },
  );
});
