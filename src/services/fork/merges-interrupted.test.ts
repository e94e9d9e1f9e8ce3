/** Merges between whose beginning and end something comes: a disk that fails, another table, the end of the program. */
import { cpSync, existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
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
  restartFromSave,
  resumeFrom,
  stateOf,
  useForks,
  write,
} from '../../../test/support/forks.ts';
import { inspectFile } from './inspect.ts';
import { type ForksState, isForkRecord } from './records.ts';

useForks();

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
    expect((await forks.state()).forks.filter(isForkRecord).map(({ role, merging }) => [role, merging])).toEqual([
      ['fork', undefined],
    ]);
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
    return saved;
  };

  test('a COW file that is missing stops the merge: nobody takes the image for whole', async () => {
    const saved = await merging();
    cpSync(cow(), join(directory, 'aside'));
    rmSync(cow());
    await resumeFrom(saved);
    expect(await forks.mergeProgress('dev')).toMatchObject({ state: 'failed', error: /dev\.cow/ });
    expect((await forks.volumes())[0]).toMatchObject({ name: 'disk', state: 'no table', note: /dev\.cow/ });
    await expect(forks.merge('dev')).rejects.toMatchObject({ code: 'TABLE_DEVICE' });
    cpSync(join(directory, 'aside'), cow());
    expect(await merged()).toMatchObject({ state: 'done', deleted: cow() });
    expect(readFileSync(image).equals(changed([0, 'mine', 64 * KIB]))).toBe(true);
  });

  test('a fork of the same image that is missing stops the merge, which would overwrite what it has no copy of', async () => {
    await forks.fork(image, 'other');
    const saved = await merging();
    const other = join(directory, 'other.cow');
    cpSync(other, join(directory, 'aside'));
    rmSync(other);
    await resumeFrom(saved);
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
    const saved = await merging();
    const store = readFileSync(cow());
    store.writeUInt32LE(0, 4);
    writeFileSync(cow(), store);
    await resumeFrom(saved);
    expect(await ended()).toMatchObject({ state: 'lost', kept: cow(), originRemoved: 'disk' });
    expect(readFileSync(image).equals(ORIGIN)).toBe(true);
    expect(await names()).toEqual([]);
    expect(existsSync(cow())).toBe(true);
  });
});

describe('killed', () => {
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
        saved = await restartFromSave(count, { unsaved, before }, () => merged());
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
        if ((await forks.state()).forks.filter(isForkRecord).some(({ merging }) => merging))
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
