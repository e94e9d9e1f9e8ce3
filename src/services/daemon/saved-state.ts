/** What a daemon would bring back, for commands that ask while none runs. */
import { readFileSync } from 'node:fs';
import { readFile, realpath } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { splitWords } from '../../targets/arguments.ts';
import { isForkRecord } from '../fork/records.ts';
import type { Directories } from './directories.ts';
import type { State } from './state.ts';

/** Whether a daemon would have devices to bring back. True too when its state cannot be read: it will say why. */
export function hasState({ state }: Directories): boolean {
  try {
    const { state: saved } = JSON.parse(readFileSync(join(state, 'state.json'), 'utf8'));
    return !Array.isArray(saved.devices) || saved.devices.length > 0;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ENOENT';
  }
}

/**
 * Names of the snapshots of `image` that the daemon has, or would bring back: `own` is the one over `cow`, or is being
 * merged from it. Paths may be relative to `directory`.
 */
export async function savedSnapshots(
  { state }: Directories,
  { image, cow, directory }: { image: string; cow: string; directory: string },
): Promise<{ own?: string; others: string[] }> {
  const found: { own?: string; others: string[] } = { others: [] };
  let saved: Partial<State>;
  try {
    ({ state: saved } = JSON.parse(await readFile(join(state, 'state.json'), 'utf8')));
  } catch {
    // Nothing that a daemon could bring back.
    return found;
  }
  const canonical = (path: string) => realpath(resolve(directory, path)).catch(() => path);
  const [imageName, cowName] = await Promise.all([canonical(image), canonical(cow)]);
  for (const { name, table = [] } of saved.devices ?? [])
    for (const { type, args } of table) {
      const words = splitWords(args);
      if (!['snapshot', 'snapshot-merge'].includes(type) || words[0] !== imageName) continue;
      if (words[1] === cowName) found.own = type === 'snapshot' ? name : found.own;
      else if (!words[2]?.startsWith('N')) found.others.push(name);
    }
  found.own ??= saved.forks?.filter(isForkRecord).find(({ merging }) => merging?.cow === cowName)?.merging?.name;
  return found;
}
