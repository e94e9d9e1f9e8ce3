import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Obstacles } from '../../../test/support/obstacles.ts';
import { DeviceMapper } from '../../api/index.ts';
import { inspectFile } from './inspect.ts';
import { type FilesMerge, mergeFiles } from './merge-files.ts';

const MIB = 1024 * 1024;
/** Three batches of the target. */
const SIZE = 40 * MIB;

let directory: string;
let image: string;
let cow: string;
let expected: Buffer;
let disks: Obstacles;

const pause = () => new Promise((turn) => setImmediate(turn));

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-merge-files-'));
  image = join(directory, 'disk.img');
  cow = join(directory, 'dev.cow');
  disks = new Obstacles();
  writeFileSync(image, Buffer.alloc(SIZE, 'origin. '));
  expected = Buffer.alloc(SIZE, 'fork of it. ');
  const dm = await DeviceMapper.open();
  await dm.fork(image, 'dev');
  const disk = await dm.device('dev');
  await disk.write(0, expected);
  await disk.flush();
  await disk.close();
  await dm.drop('dev', { keepCow: true });
  await dm.close();
});

afterEach(() => rmSync(directory, { recursive: true }));

const total = SIZE / 16384;

test('tells how far it is, and leaves the image whole and the store empty', async () => {
  const told: FilesMerge[] = [];
  const result = await mergeFiles(image, cow, { pause, onProgress: (progress) => told.push(progress) });
  expect(result).toEqual({ image, cow, state: 'done', chunkSize: 16384, total, merged: total });
  expect(told[0]).toEqual({ ...result, state: 'merging', merged: 0 });
  expect(told.at(-1)).toEqual(result);
  expect(told.map(({ merged }) => merged)).toEqual(told.map(({ merged }) => merged).sort((a, b) => a - b));
  expect(readFileSync(image).equals(expected)).toBe(true);
  expect((await inspectFile(cow)).cow).toMatchObject({ valid: true, exceptions: 0, problems: [] });
});

test('ends the batch under way when it is stopped, and goes on when it is repeated', async () => {
  const stop = new AbortController();
  disks.stop(image);
  const merging = mergeFiles(image, cow, { opener: disks, pause, signal: stop.signal });
  await disks.blocked();
  stop.abort();
  disks.go();
  const stopped = await merging;
  expect(stopped).toMatchObject({ state: 'stopped', total });
  expect(stopped.merged).toBeGreaterThan(0);
  expect(stopped.merged).toBeLessThan(total);
  expect((await inspectFile(cow)).cow?.exceptions).toBe(total - stopped.merged);
  expect(await mergeFiles(image, cow, { pause })).toMatchObject({ state: 'done', total: total - stopped.merged });
  expect(readFileSync(image).equals(expected)).toBe(true);
});

test('is stopped by an error of a disk, loses nothing, and goes on once that is repaired', async () => {
  disks.failing = image;
  await expect(mergeFiles(image, cow, { opener: disks, pause })).rejects.toMatchObject({
    code: 'MERGE_FAILED',
    errno: 'EIO',
    message: expect.stringContaining('injected'),
    hint: 'nothing is lost; once that is repaired, repeat the command',
  });
  disks.failing = '';
  expect(await mergeFiles(image, cow, { opener: disks, pause })).toMatchObject({ state: 'done', total });
  expect(readFileSync(image).equals(expected)).toBe(true);
});

test.each(['image', 'store'])('writes nothing when the %s is read-only', async (which) => {
  const path = which === 'image' ? image : cow;
  disks.readOnly = path;
  await expect(mergeFiles(image, cow, { opener: disks, pause })).rejects.toMatchObject({
    code: 'READ_ONLY',
    errno: 'EROFS',
    message: `Cannot merge: ${path} is read-only`,
  });
  expect(readFileSync(image).equals(Buffer.alloc(SIZE, 'origin. '))).toBe(true);
});

test('keeps everybody else off both files until it has ended', async () => {
  disks.stop(image);
  const merging = mergeFiles(image, cow, { opener: disks, pause });
  await disks.blocked();
  for (const [one, two] of [
    [image, cow],
    [cow, image],
  ])
    await expect(mergeFiles(one, two, { pause })).rejects.toMatchObject({ code: 'DEVICE_IN_USE', errno: 'EBUSY' });
  disks.go();
  expect(await merging).toMatchObject({ state: 'done' });
  expect(await mergeFiles(image, cow, { pause })).toMatchObject({ state: 'done', total: 0 });
});
