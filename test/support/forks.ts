/**
 * An image, its forks and their merges, over files of their own: for the tests of one file, each of which has them new, and
 * may end and start them again. The variables are those of the test that runs.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach } from 'vitest';
import { Mapper } from '../../src/mapper/mapper.ts';
import type { MergeProgress } from '../../src/services/fork/fork-control.ts';
import { Forks } from '../../src/services/fork/forks.ts';
import type { ForksState, SavedRecord } from '../../src/services/fork/records.ts';
import { bytes } from '../../src/units.ts';
import { killedAtSave } from './killed-at-save.ts';
import { Obstacles } from './obstacles.ts';

export const MIB = 1024 * 1024;
export const KIB = 1024;
/** What the image holds at first. */
export const ORIGIN = Buffer.alloc(MIB, 'origin. ');

export let directory: string;
export let image: string;
export let mapper: Mapper;
export let forks: Forks;
export let disks: Obstacles;
export let log: string[];
/** Folders of programs that were killed. */
const left: string[] = [];

/** To be called once by a file of tests. */
export function useForks(): void {
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'dmkit-forks-'));
    image = join(directory, 'disk.img');
    writeFileSync(image, ORIGIN);
    begin();
  });

  afterEach(async () => {
    disks.go();
    await end();
    for (const made of [directory, ...left.splice(0)]) rmSync(made, { recursive: true });
  });
}

export function begin(records: SavedRecord[] = [], save: () => Promise<void> = async () => {}): void {
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
    uri: (name) => `uri:${name}`,
    users: async (name) => `the users of ${name}`,
    log: (line) => log.push(line),
    pause: () => new Promise((turn) => setImmediate(turn)),
  });
}

export async function end(): Promise<void> {
  await forks.stop();
  await mapper.close();
}

/** After an end: what was saved, and the files. */
export async function resumeFrom(saved: ForksState, prepare = () => {}) {
  begin(saved.forks);
  prepare();
  await mapper.restore(saved.devices);
  return forks.recover(saved.devices);
}

export async function restart(prepare?: () => void) {
  const saved = structuredClone(await forks.state());
  await end();
  return resumeFrom(saved, prepare);
}

interface Killed {
  /** That save did not arrive: the one before counts. */
  unsaved?: boolean;
  before?(): Promise<unknown>;
}

/**
 * Runs `work` until it saves for the `count`th time after `before`, and starts again from the files of that moment, copied,
 * and from what was saved. Undefined: there are not so many saves.
 */
export async function restartFromSave(
  count: number,
  { unsaved = false, before = async () => {} }: Killed,
  work: () => Promise<unknown>,
): Promise<ForksState | undefined> {
  await end();
  rmSync(directory, { recursive: true });
  mkdirSync(directory);
  writeFileSync(image, ORIGIN);
  const killed = await killedAtSave({
    directory,
    begin: (save) => begin([], save),
    state: async () => forks.state(),
    before,
    work,
    count,
    unsaved,
  });
  if (!killed) return undefined;
  left.push(directory);
  directory = killed.directory;
  image = join(directory, 'disk.img');
  await resumeFrom(killed.saved);
  return killed.saved;
}

export async function write(name: string, at: number, text: string, length = 512) {
  const open = mapper.open({ name });
  try {
    await open.device.write(bytes(at), Buffer.alloc(length, text), 0, length);
    await open.device.flush();
  } finally {
    await open.close();
  }
}

export async function read(name: string, at: number, length = 512) {
  const open = mapper.open({ name });
  const into = Buffer.alloc(length);
  await open.device.read(bytes(at), into, 0, length);
  await open.close();
  return into.toString();
}

/** Follows a merge to its end. */
export async function ended(name = 'dev'): Promise<MergeProgress> {
  let progress = await forks.mergeProgress(name);
  while (progress.state === 'merging') progress = await forks.mergeProgress(name, { since: progress.version });
  return progress;
}

export async function merged(name = 'dev', options = {}): Promise<MergeProgress> {
  await forks.merge(name, options);
  return ended(name);
}

/** The image, with some bytes put over it. */
export function changed(...changes: [at: number, text: string, length?: number][]): Buffer {
  const expected = Buffer.from(ORIGIN);
  for (const [at, text, length = 512] of changes) Buffer.alloc(length, text).copy(expected, at);
  return expected;
}

export const names = async () => (await mapper.list()).map(({ name }) => name);
export const cow = () => join(directory, 'dev.cow');
export const stateOf = async (name: string) => (await forks.volumes()).find((volume) => volume.name === name)?.state;
