import { linkSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { SavedDevice } from '../../mapper/saved-device.ts';
import type { ForkRecord } from '../fork/records.ts';
import { groupsOf, meet, namedBy, wordsOf } from './placement.ts';

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-placement-'));
});

afterEach(() => rmSync(directory, { recursive: true }));

function file(name: string): string {
  const path = join(directory, name);
  writeFileSync(path, '');
  return path;
}

let minor = 0;
const device = (name: string, type = '', args = ''): SavedDevice => ({
  name,
  uuid: `uuid-${name}`,
  minor: minor++,
  table: type === '' ? undefined : [{ start: 0, length: 8, type, args }],
  readOnly: false,
  suspended: false,
  deferredRemove: false,
  eventNumber: 0,
  readAheadMinimum: false,
});

const names = async (devices: SavedDevice[], forks: ForkRecord[] = [], look = true) =>
  (await groupsOf({ devices, forks }, { major: 254, look }))
    .map((group) => group.devices.map(({ name }) => name).sort())
    .sort();

describe('devices are in one group', () => {
  test('when their tables name the same disk', async () => {
    const devices = [device('a', 'linear', '/x 0'), device('b', 'linear', '/y 0'), device('c', 'linear', '/x 8')];
    expect(await names(devices)).toEqual([['a', 'c'], ['b']]);
  });

  test('when a disk has several names', async () => {
    const path = file('disk');
    linkSync(path, join(directory, 'hard'));
    symlinkSync(path, join(directory, 'soft'));
    const devices = ['disk', 'hard', 'soft'].map((name) => device(name, 'linear', `${join(directory, name)} 0`));
    expect(await names(devices)).toEqual([['disk', 'hard', 'soft']]);
    expect(await names(devices, [], false)).toHaveLength(3);
  });

  test('when one is below the other', async () => {
    const [below, other] = [device('below', 'linear', '/x 0'), device('other', 'linear', '/y 0')];
    const above = device('above', 'linear', `254:${below.minor} 0`);
    expect(await names([above, below, other])).toEqual([['above', 'below'], ['other']]);
  });

  test('when a third one joins them', async () => {
    const devices = [
      device('a', 'linear', '/x 0'),
      device('b', 'linear', '/y 0'),
      device('c', 'snapshot', '/x /y P 8'),
    ];
    expect(await names(devices)).toEqual([['a', 'b', 'c']]);
  });

  test('when their forks are of one image, though no table says so', async () => {
    const [a, b] = [device('a'), device('b')];
    const forks = [a, b].map(({ uuid }): ForkRecord => ({ uuid, role: 'fork', image: '/x', cow: `/${uuid}` }));
    expect(await names([a, b], forks)).toEqual([['a', 'b']]);
  });
});

test('numbers and flags, and devices without a table, join nobody', async () => {
  const devices = [
    device('a', 'snapshot', '/x /y P 8'),
    device('b', 'snapshot', '/v /w P 8'),
    device('c'),
    device('d'),
  ];
  expect(await names(devices)).toEqual([['a'], ['b'], ['c'], ['d']]);
});

test('a record without a device is in the group of the device that merges it', async () => {
  const origin = device('origin', 'snapshot-merge', '/x /cow P 8');
  const merging = { name: 'gone', cow: '/cow', chunkSize: 4096, exceptions: 1, keep: false };
  const record: ForkRecord = { uuid: 'gone', role: 'fork', image: '/x', cow: '/cow', merging };
  const [group] = await groupsOf({ devices: [origin], forks: [record] }, { major: 254, look: false });
  expect(group).toMatchObject({ isImage: true, devices: [origin], forks: [record] });
});

test('a disk is met by each of its names, relative ones too, blanks included', async () => {
  const path = file('a disk');
  symlinkSync(path, join(directory, 'soft'));
  const { disks } = await namedBy(wordsOf([{ start: 0, length: 8, type: 'linear', args: 'a\\ disk 0' }]), directory);
  for (const word of [path, join(directory, 'soft')]) expect(meet(disks, (await namedBy([word])).disks)).toBe(true);
  expect(meet(disks, (await namedBy([file('other')])).disks)).toBe(false);
});
