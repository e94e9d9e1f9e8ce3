import { readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import {
  begin,
  changed,
  cow,
  directory,
  disks,
  ended,
  forks,
  image,
  KIB,
  log,
  MIB,
  mapper,
  merged,
  names,
  ORIGIN,
  read,
  restart,
  stateOf,
  useForks,
  write,
} from '../../../test/support/forks.ts';
import { ioError } from '../../errors.ts';
import { bytes } from '../../units.ts';
import { inspectFile } from './inspect.ts';
import { exceptionsIn } from './merge-status.ts';
import { isForkRecord } from './records.ts';

useForks();

describe('a merge', () => {
  test('brings what the fork changed into the image, and leaves nothing of the fork', async () => {
    await forks.fork(image, 'dev');
    await write('dev', 0, 'mine');
    await write('dev', 300 * KIB, 'more', 64 * KIB);
    await write('disk', 100 * KIB, 'theirs');
    await write('disk', 0, 'theirs');
    expect(await merged()).toMatchObject({
      name: 'dev',
      image,
      origin: 'disk',
      cow: cow(),
      state: 'done',
      chunkSize: 16384,
      total: 7,
      merged: 7,
      deleted: cow(),
      originRemoved: 'disk',
    });
    expect(readFileSync(image).equals(changed([0, 'mine'], [300 * KIB, 'more', 64 * KIB]))).toBe(true);
    expect(await names()).toEqual([]);
    expect(readdirSync(directory)).toEqual(['disk.img']);
    expect((await forks.state()).forks).toEqual([]);
    expect(log).toEqual([`dev: merging 7 chunks into ${image}`, `dev: merged into ${image}`]);
  });

  test('of a fork that changed nothing is done too', async () => {
    await forks.fork(image, 'dev');
    expect(await merged()).toMatchObject({ state: 'done', total: 0, merged: 0, deleted: cow() });
    expect(readFileSync(image).equals(ORIGIN)).toBe(true);
  });

  test('leaves the other forks of the image as they are, and the origin device for them', async () => {
    await forks.fork(image, 'other', { chunkSize: 4096 });
    await write('disk', 8192, 'later');
    await forks.fork(image, 'dev');
    await write('dev', 0, 'mine', 128 * KIB);
    await write('other', 64 * KIB, 'its own');
    const before = await read('other', 0, MIB);
    const result = await merged();
    expect(result).toMatchObject({ state: 'done', deleted: cow() });
    expect(result.originRemoved).toBeUndefined();
    expect(await read('other', 0, MIB)).toBe(before);
    expect((await mapper.table({ name: 'disk' }))[0]).toMatchObject({ type: 'snapshot-origin', text: image });
    expect((await read('disk', 0)).slice(0, 4)).toBe('mine');
    expect(await names()).toEqual(['disk', 'other']);
    await write('disk', 0, 'again', MIB);
    expect(await read('other', 0, MIB)).toBe(before);
  });

  test('that has ended is told to who repeats it, and not for another device of that name', async () => {
    await forks.fork(image, 'dev');
    await write('dev', 0, 'mine');
    await merged();
    expect(await forks.merge('dev')).toMatchObject({ state: 'done' });
    await forks.fork(image, 'dev');
    await write('dev', 0, 'kept');
    await forks.drop('dev', { keepCow: true });
    await expect(forks.merge('dev')).rejects.toMatchObject({ code: 'NO_DEVICE', hint: /dmkit\.log/ });
    expect(await forks.mergeProgress('dev')).toMatchObject({ state: 'done' });
    await forks.fork(image, 'other');
    await write('other', 0, 'last');
    await merged('other');
    await mapper.create('none');
    await mapper.rename({ name: 'none' }, 'other');
    await mapper.remove({ name: 'other' });
    await expect(forks.merge('other')).rejects.toMatchObject({ code: 'NO_DEVICE' });
  });

  test('that is to keep the COW file leaves an empty store, which can be forked with', async () => {
    await forks.fork(image, 'dev');
    await write('dev', 0, 'mine');
    const result = await merged('dev', { keep: true });
    expect(result).toMatchObject({ state: 'done', kept: cow() });
    expect(result.deleted).toBeUndefined();
    expect((await inspectFile(cow())).cow).toMatchObject({ valid: true, exceptions: 0, problems: [] });
    expect(await forks.fork(image, 'dev')).toMatchObject({ reopened: true });
    expect((await read('dev', 0)).slice(0, 4)).toBe('mine');
  });

  test('keeps a COW file that the fork did not make', async () => {
    await forks.fork(image, 'dev');
    await write('dev', 0, 'mine');
    await forks.drop('dev', { keepCow: true });
    await forks.fork(image, 'dev');
    expect(await merged()).toMatchObject({ state: 'done', kept: cow(), originRemoved: 'disk' });
    expect(readFileSync(image).equals(changed([0, 'mine']))).toBe(true);
  });

  test('of a snapshot made with dmsetup keeps its COW file and its origin device', async () => {
    writeFileSync(cow(), Buffer.alloc(MIB));
    const [table] = [{ start: 0, length: 2048 }];
    for (const [name, type, args] of [
      ['orig', 'snapshot-origin', image],
      ['snap', 'snapshot', `${image} ${cow()} P 8`],
    ]) {
      await mapper.create(name);
      await mapper.load({ name }, [{ ...table, type, args }]);
      await mapper.resume({ name });
    }
    await write('snap', 4096, 'mine');
    expect(await merged('snap')).toMatchObject({ state: 'done', origin: 'orig', kept: cow(), total: 1 });
    expect(await names()).toEqual(['orig']);
    expect((await mapper.table({ name: 'orig' }))[0].type).toBe('snapshot-origin');
    expect(readFileSync(image).equals(changed([4096, 'mine']))).toBe(true);
    expect((await forks.state()).forks).toEqual([]);
  });

  test('of a fork that has overflowed comes to its end too', async () => {
    await forks.fork(image, 'dev', { cowSize: 5 * 16384 });
    for (let i = 0; i < 3; i++) await write('dev', i * 64 * KIB, `mine ${i}`);
    await expect(write('dev', 512 * KIB, 'no room')).rejects.toMatchObject({ code: 'SNAPSHOT_OVERFLOW' });
    expect(await stateOf('dev')).toBe('Overflow');
    expect(await merged()).toMatchObject({ state: 'done', total: 3, merged: 3, deleted: cow() });
    const expected = changed([0, 'mine 0'], [64 * KIB, 'mine 1'], [128 * KIB, 'mine 2']);
    expect(readFileSync(image).equals(expected)).toBe(true);
  });

  test('of an origin that is open is seen by those who have it open, if that is wanted', async () => {
    await forks.fork(image, 'dev');
    await write('dev', 0, 'mine');
    const open = mapper.open({ name: 'disk' });
    await expect(forks.merge('dev')).rejects.toMatchObject({
      code: 'DEVICE_OPEN',
      errno: 'EBUSY',
      hint: 'the users of disk\nor, if nobody has cached or mounted anything of it: dmkit merge dev --force',
    });
    expect(await names()).toEqual(['dev', 'disk']);
    await forks.merge('dev', { force: true });
    const into = Buffer.alloc(512);
    await open.device.read(bytes(0), into, 0, 512);
    expect(into.toString('latin1', 0, 4)).toBe('mine');
    const result = await ended();
    expect(result).toMatchObject({ state: 'done' });
    expect(result.originRemoved).toBeUndefined();
    await open.close();
    expect(await names()).toEqual(['disk']);
  });
});

describe('a merge is refused, and everything stays as it is, when', () => {
  const asItWas = async () => {
    expect(await stateOf('dev')).toBe('active');
    expect(await stateOf('disk')).toBe('active');
    expect((await read('dev', 0)).slice(0, 4)).toBe('mine');
    await write('disk', 4096, 'goes on');
    expect((await forks.state()).forks.filter(isForkRecord).filter(({ merging }) => merging)).toEqual([]);
  };

  beforeEach(async () => {
    await forks.fork(image, 'dev');
    await write('dev', 0, 'mine');
  });

  test('the fork is open', async () => {
    const open = mapper.open({ name: 'dev' });
    await expect(forks.merge('dev', { force: true })).rejects.toMatchObject({
      code: 'DEVICE_OPEN',
      hint: 'the users of dev',
    });
    await open.close();
    await asItWas();
  });

  test('the intent cannot be saved', async () => {
    const saved = structuredClone(await forks.state());
    await mapper.close();
    let full = true;
    begin(saved.forks, async () => {
      if (full) throw new Error('disk full');
    });
    await mapper.restore(saved.devices);
    await expect(forks.merge('dev')).rejects.toThrow('disk full');
    await asItWas();
    full = false;
    expect(await merged()).toMatchObject({ state: 'done' });
  });

  test('the handover fails', async () => {
    await mapper.load({ name: 'dev' }, [{ start: 0, length: 2048, type: 'snapshot', args: `${image} ${cow()} P 32` }]);
    await expect(forks.merge('dev')).rejects.toMatchObject({ code: 'TABLE_ARGUMENT' });
    await mapper.clear({ name: 'dev' });
    await asItWas();
    expect(await merged()).toMatchObject({ state: 'done' });
  });

  test('the origin cannot be suspended', async () => {
    disks.failing = image;
    const flush = mapper.device({ name: 'disk' }).liveTable!.devices[0].device;
    const { flush: real } = flush;
    flush.flush = () => {
      throw ioError('Cannot flush');
    };
    await expect(forks.merge('dev')).rejects.toThrow('Cannot flush');
    flush.flush = real;
    disks.failing = '';
    await asItWas();
  });

  test('the origin is suspended', async () => {
    await mapper.suspend({ name: 'disk' });
    await expect(forks.merge('dev')).rejects.toMatchObject({ code: 'SUSPENDED', hint: 'dmkit dmsetup resume disk' });
    await mapper.resume({ name: 'disk' });
    await asItWas();
  });

  test('there is another origin device', async () => {
    await mapper.create('second');
    await mapper.load({ name: 'second' }, [{ start: 0, length: 2048, type: 'snapshot-origin', args: image }]);
    await mapper.resume({ name: 'second' });
    await expect(forks.merge('dev')).rejects.toMatchObject({
      code: 'MERGE_ORIGIN',
      message: `Cannot merge dev: ${image} has 2 origin devices: disk second`,
    });
    await mapper.remove({ name: 'second' });
    await asItWas();
  });

  test('there is no origin device', async () => {
    await mapper.remove({ name: 'disk' });
    await expect(forks.merge('dev')).rejects.toMatchObject({ code: 'MERGE_ORIGIN' });
  });

  test('the image is read-only', async () => {
    disks.readOnly = image;
    await restart(() => {
      disks.readOnly = image;
    });
    await expect(forks.merge('dev')).rejects.toMatchObject({ code: 'READ_ONLY', errno: 'EROFS' });
    expect(await stateOf('dev')).toBe('active');
  });

  test('the fork is transient, invalid, no snapshot, or not there', async () => {
    await forks.fork(image, 'gone', { transient: true });
    await expect(forks.merge('gone')).rejects.toMatchObject({ code: 'MERGE_TRANSIENT' });
    await forks.fork(image, 'small', { cowSize: 3 * 16384 });
    await write('disk', 64 * KIB, 'a');
    await write('disk', 128 * KIB, 'b');
    await expect(forks.merge('small')).rejects.toMatchObject({ code: 'SNAPSHOT_INVALID', hint: /dmkit drop small/ });
    await expect(forks.merge('disk')).rejects.toMatchObject({ code: 'NO_SNAPSHOT' });
    await expect(forks.merge('none')).rejects.toMatchObject({ code: 'NO_DEVICE' });
    await asItWas();
  });
});

describe('while a merge runs', () => {
  beforeEach(async () => {
    await forks.fork(image, 'other');
    await forks.fork(image, 'dev');
    await write('dev', 0, 'mine', 64 * KIB);
    disks.stop(image);
    await forks.merge('dev');
  });

  test('the origin device shows what the fork held, and the list says how far it is', async () => {
    expect((await read('disk', 0)).slice(0, 4)).toBe('mine');
    expect(await names()).toEqual(['disk', 'other']);
    expect((await forks.volumes())[0]).toMatchObject({
      name: 'disk',
      type: 'snapshot-merge',
      state: 'merging dev 0%',
      origin: image,
      cow: cow(),
      used: 64 * KIB,
    });
    expect((await forks.state()).forks.filter(isForkRecord).find(({ merging }) => merging)?.merging).toEqual({
      name: 'dev',
      cow: cow(),
      chunkSize: 16384,
      exceptions: 4,
      keep: false,
    });
  });

  test('another command joins it', async () => {
    expect(await forks.merge('dev', { keep: true })).toMatchObject({ state: 'merging', total: 4 });
    disks.go();
    expect(await ended()).toMatchObject({ state: 'done', kept: cow() });
    // Late, but not too late.
    expect(await forks.merge('dev')).toMatchObject({ state: 'done', merged: 4 });
  });

  test('what would see a half of it is refused', async () => {
    const error = { code: 'MERGING', errno: 'EBUSY', hint: 'wait for it: dmkit merge dev' };
    await expect(forks.fork(image, 'new')).rejects.toMatchObject(error);
    await expect(forks.fork(join(directory, 'x.img'), 'dev')).rejects.toMatchObject(error);
    await expect(forks.drop('dev')).rejects.toMatchObject(error);
    await expect(forks.diff('dev')).rejects.toMatchObject(error);
    await expect(forks.revert({ name: 'dev' })).rejects.toMatchObject(error);
    await expect(forks.merge('other')).rejects.toMatchObject(error);
    disks.go();
    expect(await ended()).toMatchObject({ state: 'done' });
    await forks.fork(image, 'dev');
    expect((await read('dev', 0)).slice(0, 4)).toBe('mine');
  });

  test('another fork can be dropped, and the origin device stays until the end', async () => {
    const dropping = forks.drop('other');
    disks.go();
    expect((await dropping).originRemoved).toBeUndefined();
    expect(await ended()).toMatchObject({ state: 'done', originRemoved: 'disk' });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB]))).toBe(true);
  });

  test('an end in order loses nothing, and the next start goes on', async () => {
    const ending = restart();
    disks.go();
    expect(await ending).toEqual([`dev: its merge into ${image} goes on`]);
    expect(await ended()).toMatchObject({ state: 'done', total: 4, deleted: cow() });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB]))).toBe(true);
    expect(await read('other', 0, MIB)).toBe(ORIGIN.toString());
  });

  test('an origin device that somebody suspends keeps its table until it is resumed', async () => {
    const suspending = mapper.suspend({ name: 'disk' });
    disks.go();
    await suspending;
    expect(await stateOf('disk')).toBe('suspended');
    for (let i = 0; i < 20; i++) await new Promise((turn) => setImmediate(turn));
    expect((await mapper.info({ name: 'disk' })).suspended).toBe(true);
    await mapper.resume({ name: 'disk' });
    expect(await ended()).toMatchObject({ state: 'done' });
  });

  test('whoever waits for its progress can be interrupted, and it goes on', async () => {
    const { version } = await forks.mergeProgress('dev');
    const client = new AbortController();
    const waiting = forks.mergeProgress('dev', { since: version }, client.signal);
    client.abort();
    await expect(waiting).rejects.toMatchObject({ code: 'INTERRUPTED' });
    disks.go();
    expect(await ended()).toMatchObject({ state: 'done' });
  });

  test('its origin device may be removed: it stops, and is brought back', async () => {
    const removing = mapper.remove({ name: 'disk' });
    disks.go();
    await removing;
    expect(await ended()).toMatchObject({
      state: 'failed',
      error: `The merge of dev into ${image} has stopped: its origin device disk was removed`,
    });
    await expect(forks.fork(image, 'new')).rejects.toMatchObject({ code: 'MERGING' });
    expect(await merged()).toMatchObject({ state: 'done', origin: 'disk' });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB]))).toBe(true);
  });
});

test('the progress of what is not merged is not known', async () => {
  await expect(forks.mergeProgress('dev')).rejects.toMatchObject({ code: 'NOT_MERGING', errno: 'ENXIO' });
});

test('the exceptions of a store are counted from its list, over several areas', async () => {
  const large = join(directory, 'large.img');
  writeFileSync(large, '');
  truncateSync(large, 4 * MIB);
  await forks.fork(large, 'dev', { chunkSize: 4096 });
  const lease = await mapper.lease(cow());
  for (const [upTo, count] of [
    [0, 0],
    [1, 1],
    [255, 255],
    [256, 256],
    [257, 257],
    [1000, 1000],
  ]) {
    for (let i = await exceptionsIn(lease.device, 4096); i < upTo; i++) await write('dev', i * 4096, 'x');
    expect(await exceptionsIn(lease.device, 4096)).toBe(count);
  }
  await lease.release();
});
