import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import {
  cow,
  directory,
  forks,
  image,
  MIB,
  mapper,
  names,
  read,
  restart,
  restartFromSave,
  useForks,
  write,
} from '../../../test/support/forks.ts';
import { Forks } from './forks.ts';
import { inspectFile } from './inspect.ts';

useForks();

describe('a fork', () => {
  test('is a snapshot over a sparse COW file beside the image, with an origin device', async () => {
    expect(await forks.fork(image, 'dev')).toEqual({
      name: 'dev',
      image,
      origin: 'disk',
      originReadOnly: false,
      cow: join(directory, 'dev.cow'),
      size: MIB,
      chunkSize: 16384,
      reopened: false,
      uri: 'uri:dev',
      originUri: 'uri:disk',
    });
    expect((await mapper.table({ name: 'dev' }))[0].text).toBe(`${image} ${join(directory, 'dev.cow')} P 32`);
    expect((await mapper.table({ name: 'disk' }))[0]).toMatchObject({ type: 'snapshot-origin', text: image });
    const cow = statSync(join(directory, 'dev.cow'));
    // 64 chunks: header, area, data.
    expect(cow.size).toBe((2 + 64) * 16384);
    expect(cow.blocks * 512).toBeLessThan(cow.size / 2);
    expect(cow.mode & 0o777).toBe(0o600);
  });

  test('and its origin are written without disturbing each other', async () => {
    await forks.fork(image, 'dev');
    await write('disk', 0, 'new');
    await write('dev', 65536, 'mine');
    expect(await read('dev', 0)).toBe(Buffer.alloc(512, 'origin. ').toString());
    expect(await read('disk', 0)).toBe(Buffer.alloc(512, 'new').toString());
    expect(await read('disk', 65536)).toBe(Buffer.alloc(512, 'origin. ').toString());
    expect(readFileSync(image).subarray(0, 3).toString()).toBe('new');
  });

  test('are listed without those that go away meanwhile', async () => {
    await forks.fork(image, 'dev');
    await forks.fork(image, 'other');
    const listed = await mapper.list();
    await forks.drop('other');
    vi.spyOn(mapper, 'list').mockResolvedValueOnce(listed);
    expect((await forks.volumes()).map(({ name }) => name)).toEqual(['dev', 'disk']);
  });

  test('never overflows, though every chunk is written on both sides', async () => {
    await forks.fork(image, 'dev', { chunkSize: 4096 });
    for (let at = 0; at < MIB; at += 4096) await write('disk', at, 'a');
    for (let at = 0; at < MIB; at += 4096) await write('dev', at, 'b');
    expect((await forks.volumes())[0]).toMatchObject({ name: 'dev', state: 'active', used: MIB });
  });

  test('of the same image shares the origin device, and is taken between writes', async () => {
    await forks.fork(image, 'one');
    await write('disk', 0, 'later');
    const two = await forks.fork(image, 'two');
    expect(two.origin).toBe('disk');
    await write('disk', 0, 'latest');
    expect((await read('one', 0)).slice(0, 7)).toBe('origin.');
    expect((await read('two', 0)).slice(0, 5)).toBe('later');
    expect(await names()).toEqual(['disk', 'one', 'two']);
  });

  test('whose origin would have a name in use gets another', async () => {
    expect((await forks.fork(image, 'disk')).origin).toBe('disk-origin');
  });

  test('that is transient leaves no file, and says after a restart that it is gone', async () => {
    expect(await forks.fork(image, 'dev', { transient: true })).toMatchObject({ cow: undefined });
    expect(existsSync(join(directory, 'dev.cow'))).toBe(false);
    await write('dev', 0, 'x');
    expect((await read('dev', 0)).slice(0, 3)).toBe('xxx');
    await restart();
    expect((await forks.volumes())[0]).toMatchObject({
      name: 'dev',
      state: 'no table',
      note: /transient/,
      origin: image,
    });
    await forks.drop('dev');
    expect(await names()).toEqual([]);
  });

  test('comes back after a restart with its changes', async () => {
    await forks.fork(image, 'dev');
    await write('dev', 4096, 'kept');
    await restart();
    expect((await read('dev', 4096)).slice(0, 4)).toBe('kept');
    expect(await forks.drop('dev')).toEqual({
      name: 'dev',
      deleted: join(directory, 'dev.cow'),
      originRemoved: 'disk',
    });
  });

  test('with blanks in its paths works', async () => {
    const odd = join(directory, 'my disk.img');
    writeFileSync(odd, Buffer.alloc(65536));
    const fork = await forks.fork(odd, 'dev', { cow: join(directory, 'a cow'), chunkSize: 8192 });
    expect(fork).toMatchObject({ image: odd, origin: 'my_disk', cow: join(directory, 'a cow') });
    await restart();
    expect((await forks.volumes())[0]).toMatchObject({ state: 'active', origin: odd, cow: join(directory, 'a cow') });
  });
});

describe('a COW file that exists', () => {
  test('is opened again when it is a store of this image', async () => {
    await forks.fork(image, 'dev');
    await write('dev', 0, 'kept');
    await forks.drop('dev', { keepCow: true });
    expect(await forks.fork(image, 'dev')).toMatchObject({ reopened: true });
    expect((await read('dev', 0)).slice(0, 4)).toBe('kept');
    expect(await forks.drop('dev')).toMatchObject({ kept: join(directory, 'dev.cow') });
  });

  test.each<[string, () => void, string]>([
    [
      'holds something else',
      () => writeFileSync(join(directory, 'dev.cow'), 'precious'.padEnd(512)),
      'FORK_COW_EXISTS',
    ],
    ['is empty', () => writeFileSync(join(directory, 'dev.cow'), ''), 'FORK_COW_EXISTS'],
    ['is blank', () => writeFileSync(join(directory, 'dev.cow'), Buffer.alloc(65536)), 'FORK_COW_EXISTS'],
    ['is a directory', () => mkdirSync(join(directory, 'dev.cow')), ''],
  ])('and %s is refused and not touched', async (_what, make, code) => {
    make();
    const before = statSync(join(directory, 'dev.cow'));
    const error = await forks.fork(image, 'dev').catch((error) => error);
    expect(error.message).toContain(join(directory, 'dev.cow'));
    if (code) expect(error.code).toBe(code);
    expect(statSync(join(directory, 'dev.cow')).mtimeMs).toBe(before.mtimeMs);
    expect(await names()).toEqual([]);
  });

  test('and belongs to a larger origin is refused with where', async () => {
    await forks.fork(image, 'dev');
    await write('dev', MIB - 512, 'end');
    await forks.drop('dev', { keepCow: true });
    truncateSync(image, MIB / 2);
    await expect(forks.fork(image, 'dev')).rejects.toMatchObject({
      code: 'FORK_COW_OTHER',
      message: /at least 1048576 bytes, and this one has 524288: entry 0 of area 0 maps chunk 63 to 2/,
    });
  });

  test('with another chunk size than asked for is refused', async () => {
    await forks.fork(image, 'dev');
    await forks.drop('dev', { keepCow: true });
    await expect(forks.fork(image, 'dev', { chunkSize: 4096 })).rejects.toMatchObject({ code: 'FORK_CHUNK_SIZE' });
  });
});

describe('a fork is refused, and nothing is left of it, when', () => {
  const image64 = (start: string) => () => writeFileSync(image, Buffer.from(start, 'latin1').subarray(0));
  test.each<[string, () => unknown, Parameters<Forks['fork']>[2], string, RegExp]>([
    [
      'the image is qcow2',
      image64('QFI\xfb'.padEnd(65536, '\0')),
      {},
      'IMAGE_FORMAT',
      /qemu-img convert -O raw[\s\S]*qemu-nbd/,
    ],
    ['the image is compressed', image64('\xfd7zXZ\0'.padEnd(777, '\0')), {}, 'IMAGE_FORMAT', /unxz --keep/],
    ['the image is a COW store', image64('SnAp'.padEnd(512, '\0')), {}, 'IMAGE_FORMAT', /inspect/],
    ['the image has a part of a sector', image64('x'.repeat(1000)), {}, 'FILE_SIZE', /truncate -s 1024/],
    ['the image is empty', image64(''), {}, 'IMAGE_EMPTY', /truncate/],
    ['the image is missing', () => rmSync(image), {}, '', /./],
    ['the chunk size is no power of two', () => {}, { chunkSize: 12288 }, 'FORK_CHUNK_SIZE', /power of two/],
    ['the chunk size is too small', () => {}, { chunkSize: 512 }, 'FORK_CHUNK_SIZE', /512 bytes/],
    ['the COW store would hold nothing', () => {}, { cowSize: 16384 }, 'FORK_COW_SIZE', /49152/],
    ['the COW file has no directory', () => {}, { cow: '/nonexistent/x' }, '', /./],
  ])('%s', async (_when, prepare, options, code, hint) => {
    prepare();
    const error = await forks.fork(image, 'dev', options).catch((error) => error);
    if (code) expect(error.code).toBe(code);
    expect(`${error.hint} ${error.message}`).toMatch(hint);
    expect(await names()).toEqual([]);
    expect(existsSync(join(directory, 'dev.cow'))).toBe(false);
    expect((await forks.state()).forks).toEqual([]);
  });

  test.each(['', 'a/b', 'a b', '..', '-x', 'control', 'x'.repeat(128)])('its name is %j', async (name) => {
    await expect(forks.fork(image, name)).rejects.toMatchObject({ code: 'FORK_NAME' });
  });

  test('its name is in use, and the COW file of the other stays', async () => {
    await forks.fork(image, 'dev');
    await expect(forks.fork(image, 'dev')).rejects.toMatchObject({ errno: 'EBUSY' });
    expect(await names()).toEqual(['dev', 'disk']);
    expect(existsSync(join(directory, 'dev.cow'))).toBe(true);
  });

  test('its COW file is that of another fork, which keeps it', async () => {
    await forks.fork(image, 'dev');
    await mapper.suspend({ name: 'dev' });
    await expect(forks.fork(image, 'two', { cow: join(directory, 'dev.cow') })).rejects.toMatchObject({
      code: 'FORK_COW_IN_USE',
      errno: 'EBUSY',
    });
    await mapper.resume({ name: 'dev' });
    expect((await forks.volumes())[0]).toMatchObject({ name: 'dev', state: 'active' });
  });

  test('it is a mapped device', async () => {
    await forks.fork(image, 'dev');
    await expect(forks.fork('dev', 'two')).rejects.toMatchObject({ code: 'FORK_MAPPED' });
  });
});

test('bytes that look like another format are taken as they are with raw', async () => {
  writeFileSync(image, Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), Buffer.alloc(65532)]));
  await forks.fork(image, 'dev', { raw: true });
  expect((await read('dev', 0)).slice(0, 3)).toBe('QFI');
});

describe('diff', () => {
  test('tells chunks that have an exception from sectors that differ', async () => {
    await forks.fork(image, 'dev');
    await write('dev', 512, 'x');
    await write('dev', 1024, 'x');
    await write('dev', 32768, 'origin. ');
    await write('disk', MIB - 512, 'y');
    expect(await forks.diff('dev')).toEqual({
      name: 'dev',
      origin: image,
      size: MIB,
      chunkSize: 16384,
      exceptions: 3,
      exceptionBytes: 3 * 16384,
      differingBytes: 1536,
      ranges: [
        { start: 512, length: 1024 },
        { start: MIB - 512, length: 512 },
      ],
    });
  });

  test('goes on where an answer ended', async () => {
    const large = join(directory, 'large.img');
    writeFileSync(large, '');
    truncateSync(large, 16 * MIB);
    await forks.fork(large, 'dev', { chunkSize: 4096 });
    await write('dev', 0, 'x', 16 * MIB);
    const half = await forks.diff('dev', { start: 8 * MIB });
    expect(half).toMatchObject({ exceptions: 2048, differingBytes: 8 * MIB });
    expect(half.next).toBeUndefined();
    await write('dev', 0, '\0'.repeat(512) + 'x'.repeat(512), 16 * MIB);
    const ranges = [];
    let answers = 0;
    for (let start: number | undefined = 0; start !== undefined; answers++) {
      const part = await forks.diff('dev', { start });
      ranges.push(...part.ranges);
      start = part.next;
    }
    expect(answers).toBeGreaterThan(1);
    expect(ranges).toEqual(Array.from({ length: 16384 }, (_, i) => ({ start: i * 1024 + 512, length: 512 })));
  });

  test('of what is no snapshot is refused', async () => {
    await forks.fork(image, 'dev');
    await expect(forks.diff('disk')).rejects.toMatchObject({ code: 'NO_SNAPSHOT' });
    await expect(forks.diff('none')).rejects.toMatchObject({ errno: 'ENXIO' });
  });
});

describe('drop', () => {
  test('deletes the COW file, and the origin device with the last fork', async () => {
    await forks.fork(image, 'one');
    await forks.fork(image, 'two');
    expect(await forks.drop('one')).toEqual({ name: 'one', deleted: join(directory, 'one.cow') });
    expect(await names()).toEqual(['disk', 'two']);
    expect(await forks.drop('two')).toMatchObject({ originRemoved: 'disk' });
    expect(await names()).toEqual([]);
    expect(existsSync(image)).toBe(true);
  });

  test('of an open fork is refused and changes nothing', async () => {
    await forks.fork(image, 'dev');
    const open = mapper.open({ name: 'dev' });
    await expect(forks.drop('dev')).rejects.toMatchObject({ errno: 'EBUSY' });
    expect(existsSync(join(directory, 'dev.cow'))).toBe(true);
    await write('disk', 0, 'flows');
    await open.close();
    await forks.drop('dev');
  });

  test('leaves an origin that somebody has open', async () => {
    await forks.fork(image, 'dev');
    const open = mapper.open({ name: 'disk' });
    expect((await forks.drop('dev')).originRemoved).toBeUndefined();
    await open.close();
    expect(await names()).toEqual(['disk']);
  });

  test('of an origin is refused', async () => {
    await forks.fork(image, 'dev');
    await expect(forks.drop('disk')).rejects.toMatchObject({ code: 'NO_SNAPSHOT' });
  });
});

test('revert makes a fork equal to its origin again', async () => {
  await forks.fork(image, 'dev');
  await write('dev', 0, 'x');
  await write('disk', 65536, 'y');
  await mapper.revert({ name: 'dev' });
  expect((await forks.diff('dev')).differingBytes).toBe(0);
  expect((await read('dev', 65536)).slice(0, 3)).toBe('yyy');
  expect((await forks.volumes())[0]).toMatchObject({ used: 0, state: 'active' });
});

describe('killed', () => {
  const live = (name: string) => ({ name, live: true, suspended: false });
  const survivors = async () => (await mapper.list()).map(({ name, live, suspended }) => ({ name, live, suspended }));

  test.each([false, true])('at a save of a fork, it is there whole or not at all (unsaved: %s)', async (unsaved) => {
    const found = new Set<boolean>();
    let count = 1;
    for (; await restartFromSave(count, { unsaved }, () => forks.fork(image, 'dev')); count++) {
      const whole = (await names()).includes('dev');
      found.add(whole);
      if (whole) {
        expect(await survivors()).toEqual([live('dev'), live('disk')]);
        await forks.drop('dev');
      }
      expect([count, await names(), readdirSync(directory)]).toEqual([count, [], ['disk.img']]);
    }
    expect(count).toBeGreaterThan(4);
    expect(found).toContain(false);
    if (!unsaved) expect(found).toContain(true);
  });

  test.each([false, true])('at a save of a drop, the fork is there whole or gone (unsaved: %s)', async (unsaved) => {
    const before = () => forks.fork(image, 'dev');
    let count = 1;
    for (; await restartFromSave(count, { unsaved, before }, () => forks.drop('dev')); count++) {
      if ((await names()).length > 0) {
        expect(await survivors()).toEqual([live('dev'), live('disk')]);
        await forks.drop('dev');
      }
      expect([count, await names(), readdirSync(directory)]).toEqual([count, [], ['disk.img']]);
    }
    expect(count).toBeGreaterThan(3);
  });

  test('in the middle of a second fork and its drop, the origin does not come back suspended', async () => {
    const work = async () => {
      await forks.fork(image, 'dev');
      await forks.drop('dev');
    };
    let count = 1;
    for (; await restartFromSave(count, { before: () => forks.fork(image, 'first') }, work); count++)
      expect((await survivors()).filter(({ name }) => name !== 'dev')).toEqual([live('disk'), live('first')]);
    expect(count).toBeGreaterThan(6);
  });

  test('in the middle of a drop that keeps the COW file, the file is kept and the origin goes', async () => {
    const before = () => forks.fork(image, 'dev');
    let gone = 0;
    for (let count = 1; await restartFromSave(count, { before }, () => forks.drop('dev', { keepCow: true })); count++) {
      expect(existsSync(cow())).toBe(true);
      if (!(await names()).includes('dev')) {
        gone++;
        expect(await names()).toEqual([]);
      }
    }
    expect(gone).toBeGreaterThan(0);
  });

  test('in the middle of a fork with a COW file that was there before, the file is left as it was', async () => {
    let kept: Buffer | undefined;
    const before = async () => {
      await forks.fork(image, 'dev');
      await write('dev', 0, 'mine');
      await forks.drop('dev', { keepCow: true });
      kept = readFileSync(cow());
    };
    expect(await restartFromSave(1, { before }, () => forks.fork(image, 'dev'))).toBeDefined();
    expect(await names()).toEqual([]);
    expect(readFileSync(cow()).equals(kept!)).toBe(true);
  });

  test('later, an origin that the user suspended comes back suspended', async () => {
    await forks.fork(image, 'dev');
    await mapper.suspend({ name: 'disk' });
    await restart();
    expect((await mapper.info({ name: 'disk' })).suspended).toBe(true);
  });
});

test('a COW file that cannot have its size is not left behind', async () => {
  // More than any file system takes.
  await expect(forks.fork(image, 'dev', { cowSize: 2 ** 60 })).rejects.toThrow('Cannot make the COW file');
  expect(existsSync(join(directory, 'dev.cow'))).toBe(false);
  await forks.fork(image, 'dev');
});

test('a name that a fork has is given free with drop, as the COW file would stay otherwise', async () => {
  await forks.fork(image, 'dev');
  await expect(forks.fork(image, 'dev')).rejects.toMatchObject({
    code: 'NAME_IN_USE',
    hint: 'choose another name, or first: dmkit drop dev',
  });
  await expect(forks.fork(image, 'disk')).rejects.toMatchObject({
    hint: expect.stringContaining('dmsetup remove disk'),
  });
});

test('a drop whose COW file cannot be deleted says so, and leaves no device behind', async () => {
  await forks.fork(image, 'dev');
  rmSync(join(directory, 'dev.cow'));
  mkdirSync(join(directory, 'dev.cow'));
  await expect(forks.drop('dev')).rejects.toMatchObject({
    message: expect.stringContaining('Cannot delete the COW file'),
  });
  expect(await names()).toEqual([]);
  expect((await forks.state()).forks).toEqual([]);
});

test.each([2048, 3000, 2 ** 31, 2 ** 40])('chunks of %i bytes are refused with what is taken', async (chunkSize) => {
  await expect(forks.fork(image, 'dev', { chunkSize })).rejects.toMatchObject({
    code: 'FORK_CHUNK_SIZE',
    hint: 'a power of two from 4k to 1G: --chunk 16k',
  });
  expect(existsSync(join(directory, 'dev.cow'))).toBe(false);
});

test('a fifo is refused at once, and holds nothing up', async () => {
  const fifo = join(directory, 'fifo');
  execFileSync('mkfifo', [fifo]);
  await expect(forks.fork(fifo, 'dev')).rejects.toMatchObject({ code: 'NOT_A_DISK' });
  await expect(forks.fork(image, 'dev', { cow: fifo })).rejects.toMatchObject({ code: 'NOT_A_DISK' });
  await expect(inspectFile(fifo)).rejects.toMatchObject({ code: 'NOT_A_DISK' });
  await forks.fork(image, 'dev');
});

test('what is not there or no disk is inspected to an error that says so, with a hint', async () => {
  await expect(inspectFile(join(directory, 'nope'))).rejects.toMatchObject({
    code: 'DEVICE_NOT_FOUND',
    hint: expect.any(String),
  });
  await expect(inspectFile(directory)).rejects.toMatchObject({ message: expect.stringMatching(/it is a directory/) });
});

test('who lets go of forks waits for one that comes or goes no longer than he wants to', async () => {
  let end = () => {};
  const told = new Promise<undefined>((resolve) => (end = () => resolve(undefined)));
  const forks = new Forks({ mapper, users: () => told });
  await forks.fork(image, 'dev');
  const open = mapper.open({ name: 'dev' });
  const merging = forks.merge('dev');
  const abort = new AbortController();
  const leaving = forks.leave(['dev', 'disk'], [], abort.signal);
  abort.abort();
  await expect(leaving).rejects.toMatchObject({ code: 'INTERRUPTED' });
  end();
  await expect(merging).rejects.toMatchObject({ code: 'DEVICE_OPEN' });
  await open.close();
  expect(mapper.names()).toEqual(['dev', 'disk']);
  const { uuid } = await mapper.info({ name: 'dev' });
  const left = await forks.leave(['dev', 'disk'], [uuid]);
  expect(left).toMatchObject({ devices: [{ suspended: false }, { suspended: false }], forks: [{ role: 'fork' }] });
  expect(mapper.names()).toEqual([]);
});
