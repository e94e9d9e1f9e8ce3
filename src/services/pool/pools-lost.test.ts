/** Pools whose file was not there at a restart, pools and volumes that were removed or renamed with `dmsetup`. */
import { existsSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import {
  directory,
  forks,
  image,
  MIB,
  mapper,
  names,
  read,
  restart,
  useForks,
  write,
} from '../../../test/support/forks.ts';

useForks();

const file = () => join(directory, 'pool.img');
const away = () => join(directory, 'away.img');
const volume = (name: string) => forks.createVolume('pool', name, { size: MIB });

beforeEach(async () => {
  await forks.createPool(file(), { size: 4 * MIB });
  await volume('base');
  await write('base', 0, 'kept');
  await forks.createVolume('pool', 'dev', { volume: 'base' });
});

describe('a pool whose file is not there at a restart', () => {
  beforeEach(async () => {
    await restart(() => renameSync(file(), away()));
  });

  test('says which, and keeps its volumes, which say what they are', async () => {
    const notes = (await forks.volumes()).filter(({ internal }) => !internal);
    expect(notes.map(({ name, state, pool, id, note }) => [name, state, pool, id, note])).toEqual([
      ['base', 'no table', 'pool', 1, expect.stringContaining('Cannot open pool (')],
      ['dev', 'no table', 'pool', 2, expect.stringContaining('Cannot open pool (')],
      ['pool', 'no table', undefined, undefined, expect.stringContaining(file())],
    ]);
    const lost = { code: 'NO_POOL', hint: /dmkit down; dmkit up/ };
    await expect(forks.extendPool('pool', 8 * MIB)).rejects.toMatchObject(lost);
    await expect(forks.createVolume('pool', 'more', { volume: 'dev' })).rejects.toMatchObject(lost);
  });

  test('is not dropped while it has volumes, nor when its file has come back and holds them', async () => {
    await expect(forks.drop('pool')).rejects.toMatchObject({ code: 'POOL_VOLUMES', message: /base, dev/ });
    await expect(forks.drop('pool', { keepCow: true })).rejects.toMatchObject({ code: 'POOL_VOLUMES' });
    await expect(forks.drop('dev')).rejects.toMatchObject({ code: 'NO_POOL', hint: /dmkit drop --keep dev/ });
    for (const [name, id] of [['base', 1] as const, ['dev', 2] as const])
      expect(await forks.drop(name, { keepCow: true })).toEqual({
        name,
        thin: { pool: 'pool', id, size: MIB, deleted: false },
      });
    renameSync(away(), file());
    await expect(forks.drop('pool')).rejects.toMatchObject({ code: 'POOL_VOLUMES', message: /1, 2$/, hint: /^keep/ });
    expect(await forks.drop('pool', { keepCow: true })).toMatchObject({ files: [{ path: file(), deleted: false }] });
    await forks.openPool(file());
    await forks.createVolume('pool', 'again', { id: 1, size: MIB });
    expect(await read('again', 0, 4)).toBe('kept');
  });

  test('is not dropped with a file that cannot be read', async () => {
    for (const name of ['base', 'dev']) await forks.drop(name, { keepCow: true });
    writeFileSync(file(), Buffer.alloc(MIB, 'something else'));
    await expect(forks.drop('pool')).rejects.toMatchObject({ code: 'POOL_STATE', hint: /dmkit drop --keep pool/ });
    expect(existsSync(file())).toBe(true);
    rmSync(file());
    expect(await forks.drop('pool')).toMatchObject({ name: 'pool' });
    expect(await names()).toEqual([]);
  });

  test('is whole again after a restart that finds it', async () => {
    await restart(() => renameSync(away(), file()));
    expect((await forks.volumes()).map(({ state, note }) => [state, note])).toEqual(
      (await names()).map(() => ['active', undefined]),
    );
    expect(await forks.diff('dev')).toMatchObject({ origin: 'pool/base', differingBytes: 0 });
  });

  test('that was removed with dmsetup costs no other pool of its number a thin device', async () => {
    const { minor } = mapper.device({ name: 'pool' });
    await mapper.remove({ name: 'pool' });
    await forks.createPool(join(directory, 'other.img'), { size: MIB, name: 'other' });
    expect(mapper.device({ name: 'other' }).minor).toBe(minor);
    await forks.createVolume('other', 'mine', { size: MIB });
    await write('mine', 0, 'mine');
    for (const name of ['base', 'dev']) expect(await forks.drop(name)).toEqual({ name, thin: undefined });
    await restart();
    expect(await read('mine', 0, 4)).toBe('mine');
    expect(await forks.drop('mine')).toMatchObject({ thin: { id: 1, deleted: true } });
  });
});

test('a volume whose image is not there at a restart keeps its thin device for itself', async () => {
  await forks.createVolume('pool', 'over', { image });
  await write('over', 0, 'mine');
  await restart(() => renameSync(image, away()));
  expect((await forks.volumes()).find(({ name }) => name === 'over')).toMatchObject({ state: 'no table', id: 3 });
  await expect(forks.createVolume('pool', 'x', { id: 3, size: MIB })).rejects.toMatchObject({ code: 'VOLUME_SHOWN' });
  await restart(() => renameSync(away(), image));
  expect(await read('over', 0, 4)).toBe('mine');
});

describe('with dmsetup', () => {
  test('a pool and a volume are renamed, and another may have their names', async () => {
    await mapper.rename({ name: 'pool' }, 'old');
    await mapper.rename({ name: 'base' }, 'ground');
    await restart();
    const dev = (await forks.volumes()).find(({ name }) => name === 'dev');
    expect(dev).toMatchObject({ pool: 'old', origin: 'old/ground' });
    expect(await forks.extendPool('old', 8 * MIB)).toMatchObject({ name: 'old', size: 8 * MIB });
    await forks.createPool(away(), { size: MIB, name: 'pool' });
    await forks.createVolume('pool', 'base', { size: MIB });
    await write('base', 0, 'new');
    await restart();
    expect([await read('base', 0, 3), await read('ground', 0, 4)]).toEqual(['new', 'kept']);
    for (const name of ['base', 'pool', 'dev', 'ground', 'old']) await forks.drop(name);
    expect([await names(), readdirSync(directory)]).toEqual([[], ['disk.img']]);
  });

  test('a pool is removed: what is left of it can be seen, and holds it until it is gone', async () => {
    for (const name of ['dev', 'base', 'pool']) await mapper.remove({ name });
    const rest = ['pool_tdata', 'pool_tmeta'];
    expect((await forks.volumes()).map(({ name, internal }) => [name, internal])).toEqual(
      rest.map((name) => [name, undefined]),
    );
    await expect(forks.openPool(file())).rejects.toMatchObject({ code: 'POOL_IN_USE', hint: /dmsetup remove pool_t/ });
    for (const name of rest) await mapper.remove({ name });
    expect(await forks.openPool(file())).toMatchObject({ thins: [{ id: 1 }, { id: 2 }] });
  });
});

test('a pool is no image', async () => {
  const refused = { code: 'POOL_IN_USE', errno: 'EBUSY' };
  await expect(forks.fork(file(), 'x')).rejects.toMatchObject(refused);
  await expect(forks.createVolume('pool', 'x', { image: file() })).rejects.toMatchObject(refused);
  await forks.createPool(away(), { size: MIB, name: 'two', metadata: join(directory, 'meta') });
  for (const part of [away(), join(directory, 'meta')])
    await expect(forks.fork(part, 'x')).rejects.toMatchObject(refused);
  expect(await names()).not.toContain('x');
});

test('metadata in the file of the data is what there is without it', async () => {
  expect(await forks.createPool(away(), { size: MIB, name: 'x', metadata: away() })).toMatchObject({ data: away() });
  expect(mapper.device({ name: 'x_tmeta' }).size).toBeGreaterThan(0);
});

test('a name that is taken is not to be freed by what leaves files and thin devices behind', async () => {
  for (const taken of ['pool', 'base']) {
    const hint = expect.stringMatching(new RegExp(`dmkit drop ${taken}$`));
    await expect(volume(taken)).rejects.toMatchObject({ code: 'NAME_IN_USE', hint });
    await expect(forks.createPool(away(), { size: MIB, name: taken })).rejects.toMatchObject({ hint });
    await expect(forks.fork(image, taken)).rejects.toMatchObject({ hint });
  }
});
