import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { killedAtSave } from '../../../test/support/killed-at-save.ts';
import { Obstacles } from '../../../test/support/obstacles.ts';
import { ioError } from '../../errors.ts';
import { Mapper } from '../../mapper/mapper.ts';
import { bytes } from '../../units.ts';
import type { MergeProgress } from './fork-control.ts';
import { Forks } from './forks.ts';
import { inspectFile } from './inspect.ts';
import { exceptionsIn } from './merge-status.ts';
import type { ForkRecord, ForksState } from './records.ts';

const MIB = 1024 * 1024;
const KIB = 1024;
const ORIGIN = Buffer.alloc(MIB, 'origin. ');

let directory: string;
let image: string;
let mapper: Mapper;
let forks: Forks;
let disks: Obstacles;
let log: string[];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-merges-'));
  image = join(directory, 'disk.img');
  writeFileSync(image, ORIGIN);
  begin();
});

afterEach(async () => {
  disks.go();
  await forks.stop();
  await mapper.close();
  rmSync(directory, { recursive: true });
});

function begin(records: ForkRecord[] = [], save: () => Promise<void> = async () => {}) {
  disks = new Obstacles();
  log = [];
  mapper = new Mapper({
    opener: disks,
    onChange(kind, device) {
      forks.changed(kind, device);
      return save().catch(() => {});
    },
  });
  forks = new Forks({
    mapper,
    records,
    save,
    users: async (name) => `the users of ${name}`,
    log: (line) => log.push(line),
    pause: () => new Promise((turn) => setImmediate(turn)),
  });
}

/** As after an end in order: what was saved, and the files. */
async function restart() {
  const saved = structuredClone(await forks.state());
  await forks.stop();
  await mapper.close();
  begin(saved.forks);
  await mapper.restore(saved.devices);
  return forks.recover(saved.devices);
}

async function write(name: string, at: number, text: string, length = 512) {
  const open = mapper.open({ name });
  try {
    await open.device.write(bytes(at), Buffer.alloc(length, text), 0, length);
    await open.device.flush();
  } finally {
    await open.close();
  }
}

async function read(name: string, at: number, length = 512) {
  const open = mapper.open({ name });
  const into = Buffer.alloc(length);
  await open.device.read(bytes(at), into, 0, length);
  await open.close();
  return into.toString();
}

/** Follows a merge to its end. */
async function ended(name = 'dev'): Promise<MergeProgress> {
  let progress = await forks.mergeProgress(name);
  while (progress.state === 'merging') progress = await forks.mergeProgress(name, { since: progress.version });
  return progress;
}

async function merged(name = 'dev', options = {}): Promise<MergeProgress> {
  await forks.merge(name, options);
  return ended(name);
}

/** The image, with some bytes put over it. */
function changed(...changes: [at: number, text: string, length?: number][]): Buffer {
  const expected = Buffer.from(ORIGIN);
  for (const [at, text, length = 512] of changes) Buffer.alloc(length, text).copy(expected, at);
  return expected;
}

const names = async () => (await mapper.list()).map(({ name }) => name);
const cow = () => join(directory, 'dev.cow');
const stateOf = async (name: string) => (await forks.volumes()).find((volume) => volume.name === name)?.state;

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
    expect((await forks.state()).forks.filter(({ merging }) => merging)).toEqual([]);
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
    await restartWith(() => {
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

async function restartWith(prepare: () => void) {
  const saved = structuredClone(await forks.state());
  await mapper.close();
  begin(saved.forks);
  prepare();
  await mapper.restore(saved.devices);
  await forks.recover(saved.devices);
}

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
    expect((await forks.state()).forks.find(({ merging }) => merging)?.merging).toEqual({
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

test('the COW file stays until it is saved that no restart needs it', async () => {
  const failures = { left: 0 };
  begin([], async () => {
    const types = (await forks.state()).devices.map(({ table }) => table?.[0].type);
    const isEnding = types.includes('snapshot-origin') && forks.mergeProgress('dev').catch(() => undefined);
    if (!(await isEnding) || failures.left === 0) return;
    expect(existsSync(cow())).toBe(true);
    failures.left--;
    throw new Error('disk full');
  });
  await forks.fork(image, 'dev');
  await write('dev', 0, 'mine');
  disks.stop(image);
  await forks.merge('dev');
  failures.left = 5;
  disks.go();
  expect(await ended()).toMatchObject({ state: 'done', deleted: cow() });
  expect(failures.left).toBe(0);
  expect(log.filter((line) => line === 'dev: disk full')).toHaveLength(1);
  expect(readFileSync(image).equals(changed([0, 'mine']))).toBe(true);
});

test('an image that is gone when its merge ends holds that up, and says so', async () => {
  await forks.fork(image, 'dev');
  await write('dev', 0, 'mine');
  disks.stop(image);
  let progress = await forks.merge('dev');
  renameSync(image, join(directory, 'aside'));
  disks.go();
  while (progress.error === undefined) progress = await forks.mergeProgress('dev', { since: progress.version });
  expect(progress).toMatchObject({ state: 'merging', error: /Cannot open .*disk\.img/ });
  expect((await forks.volumes())[0]).toMatchObject({ name: 'disk', note: progress.error });
  renameSync(join(directory, 'aside'), image);
  progress = await ended();
  expect(progress).toMatchObject({ state: 'done', deleted: cow() });
  expect(progress.error).toBeUndefined();
  expect(readFileSync(image).equals(changed([0, 'mine']))).toBe(true);
});

describe('an origin device that somebody gives another table in the middle of a merge', () => {
  beforeEach(async () => {
    await forks.fork(image, 'dev');
    await write('dev', 0, 'mine', 64 * KIB);
    disks.failing = image;
    await merged();
    await mapper.load({ name: 'disk' }, [{ start: 0, length: 2048, type: 'snapshot-origin', args: image }]);
    await mapper.resume({ name: 'disk' });
    disks.failing = '';
  });

  test('is given the merge again when that is asked for', async () => {
    expect(await merged()).toMatchObject({ state: 'done', total: 4, merged: 4 });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB]))).toBe(true);
  });

  test('is not taken for one whose merge has ended, after a restart', async () => {
    await restart();
    expect(await forks.mergeProgress('dev')).toMatchObject({ state: 'failed' });
    expect((await inspectFile(cow())).cow?.exceptions).toBe(4);
    expect(await merged()).toMatchObject({ state: 'done', total: 4, merged: 4 });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB]))).toBe(true);
  });
});

describe('a merge that a disk has failed', () => {
  beforeEach(async () => {
    await forks.fork(image, 'other');
    await forks.fork(image, 'dev');
    await write('dev', 0, 'mine', 64 * KIB);
    disks.failing = image;
    expect(await merged()).toMatchObject({
      state: 'failed',
      error: expect.stringContaining(`The merge of dev into ${image} has stopped:`),
      hint: 'nothing is lost; once that is repaired: dmkit merge dev',
    });
  });

  test('says so, loses nothing, and goes on when it is asked to', async () => {
    expect(await stateOf('disk')).toBe('Merge failed');
    expect(await read('disk', 0, MIB)).toBe(changed([0, 'mine', 64 * KIB]).toString());
    expect(await merged()).toMatchObject({ state: 'failed' });
    disks.failing = '';
    expect(await merged()).toMatchObject({ state: 'done', total: 4, merged: 4, deleted: cow() });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB]))).toBe(true);
    expect(await read('other', 0, MIB)).toBe(ORIGIN.toString());
    expect(await names()).toEqual(['disk', 'other']);
  });

  test('goes on after an error of the COW file too, in the middle of its list', async () => {
    disks.failing = cow();
    expect(await merged()).toMatchObject({ state: 'failed', error: expect.stringContaining('dev.cow: injected') });
    expect(await merged()).toMatchObject({ state: 'failed' });
    expect(await read('disk', 0, MIB)).toBe(changed([0, 'mine', 64 * KIB]).toString());
    disks.failing = '';
    expect(await merged()).toMatchObject({ state: 'done', deleted: cow() });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB]))).toBe(true);
  });

  test('can be given up when its origin device is taken away, and the COW file has the rest', async () => {
    await expect(forks.drop('dev')).rejects.toMatchObject({
      code: 'MERGING',
      hint: /dmsetup remove disk; dmkit drop dev/,
    });
    await mapper.remove({ name: 'disk' });
    expect(await forks.drop('dev')).toEqual({ name: 'dev', kept: cow(), halfMerged: image });
    expect((await inspectFile(cow())).cow?.exceptions).toBe(4);
    expect((await forks.state()).forks.map(({ role, merging }) => [role, merging])).toEqual([['fork', undefined]]);
    await expect(forks.merge('dev')).rejects.toMatchObject({ code: 'NO_DEVICE' });
    disks.failing = '';
    await forks.fork(image, 'dev');
    expect(await read('dev', 0, 64 * KIB)).toBe(changed([0, 'mine', 64 * KIB]).toString('latin1', 0, 64 * KIB));
    expect(await merged()).toMatchObject({ state: 'done', merged: 4 });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB]))).toBe(true);
  });

  test('may be paused by a snapshot table, and goes on from there', async () => {
    const table = { start: 0, length: 2048, type: 'snapshot', args: `${image} ${cow()} P 32` };
    await mapper.load({ name: 'disk' }, [table]);
    await mapper.resume({ name: 'disk' });
    expect(await read('disk', 0, MIB)).toBe(changed([0, 'mine', 64 * KIB]).toString());
    await write('disk', 512 * KIB, 'newer');
    disks.failing = '';
    expect(await merged()).toMatchObject({ state: 'done' });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB], [512 * KIB, 'newer']))).toBe(true);
  });

  test('goes on by itself after a restart', async () => {
    await restart();
    expect(await ended()).toMatchObject({ state: 'done', merged: 4 });
  });

  test('can be written to meanwhile, and that is merged too', async () => {
    await write('disk', 512, 'newer');
    disks.failing = '';
    expect(await merged()).toMatchObject({ state: 'done' });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB], [512, 'newer']))).toBe(true);
  });
});

describe('after a restart', () => {
  const merging = async () => {
    await forks.fork(image, 'dev');
    await write('dev', 0, 'mine', 64 * KIB);
    disks.stop(image);
    await forks.merge('dev');
    const saved = structuredClone(await forks.state());
    await forks.stop();
    disks.failing = image;
    disks.go();
    await mapper.close();
    begin(saved.forks);
    return saved;
  };

  test('a COW file that is missing stops the merge: nobody takes the image for whole', async () => {
    const { devices } = await merging();
    cpSync(cow(), join(directory, 'aside'));
    rmSync(cow());
    await mapper.restore(devices);
    await forks.recover(devices);
    expect(await forks.mergeProgress('dev')).toMatchObject({ state: 'failed', error: /dev\.cow/ });
    expect((await forks.volumes())[0]).toMatchObject({ name: 'disk', state: 'no table', note: /dev\.cow/ });
    await expect(forks.merge('dev')).rejects.toMatchObject({ code: 'TABLE_DEVICE' });
    cpSync(join(directory, 'aside'), cow());
    expect(await merged()).toMatchObject({ state: 'done', deleted: cow() });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB]))).toBe(true);
  });

  test('a fork of the same image that is missing stops the merge, which would overwrite what it has no copy of', async () => {
    await forks.fork(image, 'other');
    const { devices } = await merging();
    const other = join(directory, 'other.cow');
    cpSync(other, join(directory, 'aside'));
    rmSync(other);
    await mapper.restore(devices);
    await forks.recover(devices);
    expect(await forks.mergeProgress('dev')).toMatchObject({ state: 'failed', error: /other, which has to see that/ });
    expect(await stateOf('disk')).toBe('no table');
    await expect(forks.merge('dev')).rejects.toMatchObject({ code: 'MERGE_OTHERS', hint: /dmkit drop other/ });
    expect(readFileSync(image).equals(ORIGIN)).toBe(true);
    cpSync(join(directory, 'aside'), other);
    await restart();
    expect(await ended()).toMatchObject({ state: 'done' });
    expect(await read('other', 0, MIB)).toBe(ORIGIN.toString());
  });

  test('a store that became invalid before the handover leaves the image as it was', async () => {
    const { devices } = await merging();
    const store = readFileSync(cow());
    store.writeUInt32LE(0, 4);
    writeFileSync(cow(), store);
    await mapper.restore(devices);
    await forks.recover(devices);
    expect(await ended()).toMatchObject({ state: 'lost', kept: cow(), originRemoved: 'disk' });
    expect(readFileSync(image).equals(ORIGIN)).toBe(true);
    expect(await names()).toEqual([]);
    expect(existsSync(cow())).toBe(true);
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

describe('killed', () => {
  const directoriesMade: string[] = [];

  afterEach(() => {
    for (const made of directoriesMade.splice(0)) rmSync(made, { recursive: true });
  });

  /**
   * Merges until the state is saved for the `count`th time, and starts again from the files of that moment, copied, and
   * from what was saved: this time, or with `unsaved` the time before. Undefined: there are not so many saves.
   */
  async function restartFromSave(
    count: number,
    unsaved: boolean,
    before: () => Promise<unknown>,
  ): Promise<ForksState | undefined> {
    await forks.stop();
    await mapper.close();
    rmSync(directory, { recursive: true });
    mkdirSync(directory);
    writeFileSync(image, ORIGIN);
    const killed = await killedAtSave({
      directory,
      begin: (save) => begin([], save),
      state: async () => forks.state(),
      before,
      work: () => merged(),
      count,
      unsaved,
    });
    if (!killed) return undefined;
    directoriesMade.push(directory);
    directory = killed.directory;
    image = join(directory, 'disk.img');
    const { saved } = killed;
    begin(saved.forks);
    await mapper.restore(saved.devices);
    await forks.recover(saved.devices);
    return saved;
  }

  test.each([
    [false, false],
    [true, false],
    [false, true],
    [true, true],
  ])(
    'at a save of a merge, the fork is there whole, or its merge comes to its end (unsaved: %s, with another fork: %s)',
    async (unsaved, another) => {
      const expected = changed([0, 'mine', 64 * KIB], [512 * KIB, 'more']);
      const before = async () => {
        if (another) await forks.fork(image, 'other');
        await forks.fork(image, 'dev');
        await write('dev', 0, 'mine', 64 * KIB);
        await write('dev', 512 * KIB, 'more');
      };
      const seen = new Set<string>();
      let count = 1;
      for (let saved: ForksState | undefined; ; count++) {
        saved = await restartFromSave(count, unsaved, before);
        if (!saved) break;
        const types = saved.devices.map(({ table }) => table?.[0].type).filter((type) => type !== undefined);
        // Never both over one store, never a half-merged image as a plain origin.
        const snapshots = types.filter((type) => type === 'snapshot').length - (another ? 1 : 0);
        expect([count, types.includes('snapshot-merge'), snapshots]).not.toEqual([count, true, 1]);
        if (snapshots === 1) {
          seen.add('whole');
          expect([count, await stateOf('dev'), await stateOf('disk')]).toEqual([count, 'active', 'active']);
          expect((await read('dev', 0, MIB)) === expected.toString()).toBe(true);
          await forks.merge('dev');
        } else if ((await names()).includes('disk')) {
          seen.add(types.includes('snapshot-merge') ? 'merging' : 'done');
          expect((await read('disk', 0, MIB)) === expected.toString()).toBe(true);
        }
        if ((await forks.state()).forks.some(({ merging }) => merging))
          expect(await ended()).toMatchObject({ state: 'done' });
        expect([count, readFileSync(image).equals(expected)]).toEqual([count, true]);
        if (another) expect((await read('other', 0, MIB)) === ORIGIN.toString()).toBe(true);
        expect([count, await names()]).toEqual([count, another ? ['disk', 'other'] : []]);
        expect(readdirSync(directory)).toEqual(another ? ['disk.img', 'other.cow'] : ['disk.img']);
      }
      expect(count).toBeGreaterThan(5);
      expect(seen).toContain('merging');
      if (unsaved) expect(seen).toContain('whole');
    },
  );
});
