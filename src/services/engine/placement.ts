/** Which disks and devices a table names: whoever uses the same ones must be in the same engine. */
import { realpath } from 'node:fs/promises';
import { resolve } from 'node:path';
import { Disks } from '../../device/open.ts';
import type { TargetSpec } from '../../mapper/control.ts';
import type { SavedDevice } from '../../mapper/saved-device.ts';
import { splitWords } from '../../targets/arguments.ts';
import { type ForksState, isForkRecord, type SavedRecord } from '../fork/records.ts';
import type { DiskKeys } from './engine.ts';

/** What the words of a table may mean. More than it uses is harmless; of two engines that open one file, one is refused by its lock. */
export interface Named {
  /** Stored names and `major:minor` that may be mapped devices. */
  devices: string[];
  disks: DiskKeys;
}

/** One of the disks is the same. */
export const meet = (a: DiskKeys, b: DiskKeys): boolean =>
  shares(a.identities, b.identities) || shares(a.words, b.words);

function shares(a: readonly string[], b: readonly string[]): boolean {
  const all = new Set(a);
  return b.some((entry) => all.has(entry));
}

/** Each word once, but for sizes, offsets and the like. */
export function wordsOf(table: readonly TargetSpec[]): Set<string> {
  const words = new Set<string>();
  for (const { args } of table) for (const word of splitWords(args)) if (!/^\d+$/.test(word)) words.add(word);
  return words;
}

/** Relative paths start from `directory`. Never rejects: what leads to no disk is none. */
export async function namedBy(words: Iterable<string>, directory?: string): Promise<Named> {
  const named: Named = { devices: [], disks: { identities: [], words: [] } };
  const disks = new Disks();
  const all = [...words].map(async (word) => {
    named.devices.push(word.startsWith('/dev/mapper/') ? word.slice('/dev/mapper/'.length) : word);
    if (isDisk(word)) named.disks.words.push(word);
    const [identity, path] = await Promise.all([
      disks.identify(word, directory).catch(() => undefined),
      realpath(resolve(directory ?? '.', word)).catch(() => undefined),
    ]);
    if (identity !== undefined) named.disks.identities.push(identity);
    if (path !== undefined) named.disks.words.push(path);
  });
  await Promise.all(all);
  return named;
}

/** Devices and records that share something, directly or through others. */
export interface Group extends ForksState {
  /** Forks of an image are in it, so that nothing but its own commands is expected to name it. */
  isImage: boolean;
  disks: DiskKeys;
}

/**
 * What was saved, in groups that share nothing. `look`: at the disks, as a file may have several names. Without it nothing is
 * waited for, and only the names count.
 */
export async function groupsOf(
  { devices, forks }: ForksState,
  { major, look }: { major: number; look: boolean },
): Promise<Group[]> {
  const parents = new Map<string, string>();
  const rootOf = (key: string): string => {
    let root = key;
    for (let up = parents.get(root); up !== undefined && up !== root; up = parents.get(root)) root = up;
    parents.set(key, root);
    return root;
  };
  const found = new Map<string, DiskKeys>();
  const join = async (key: string, words: Iterable<string>) => {
    const disks = look ? (await namedBy(words)).disks : { identities: [], words: [...words].filter(isDisk) };
    for (const other of [...disks.words, ...disks.identities]) parents.set(rootOf(other), rootOf(key));
    found.set(key, disks);
  };
  const keyOf = ({ minor }: SavedDevice) => `${major}:${minor}`;
  const keys = new Map(devices.map((device) => [device.uuid, keyOf(device)]));
  for (const device of devices) await join(keyOf(device), wordsOf(device.table ?? []));
  for (const record of forks) {
    await join(recordKey(record), disksOf(record));
    const device = keys.get(record.uuid);
    if (device !== undefined) parents.set(rootOf(recordKey(record)), rootOf(device));
  }

  const groups = new Map<string, Group>();
  const groupOf = (key: string): Group => {
    const root = rootOf(key);
    let group = groups.get(root);
    if (!group) {
      group = { devices: [], forks: [], isImage: false, disks: { identities: [], words: [] } };
      groups.set(root, group);
    }
    const { identities, words } = found.get(key)!;
    group.disks.identities.push(...identities);
    group.disks.words.push(...words);
    return group;
  };
  for (const device of devices) groupOf(keyOf(device)).devices.push(device);
  for (const record of forks) {
    const group = groupOf(recordKey(record));
    group.forks.push(record);
    if (isForkRecord(record)) group.isImage = true;
  }
  return [...groups.values()];
}

/** Paths and URIs. Those of a volume are all in its table. */
function disksOf(record: SavedRecord): string[] {
  if (record.role === 'volume') return [];
  const disks = record.role === 'pool' ? [record.data, record.metadata] : [record.image, record.cow];
  return disks.filter((disk) => disk !== undefined);
}

const recordKey = ({ uuid }: SavedRecord) => `record ${uuid}`;

/** A path, a URI or a number. Flags and the like are in every table. */
const isDisk = (word: string) => /[/:]/.test(word);
