/** A program that is killed while it saves its state, and what is left then: a state, and its files. */
import { cpSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface Killing<State> {
  /** The folder of its files. */
  directory: string;
  /** Starts it, with nothing saved. */
  begin(save: () => Promise<void>): void;
  /** What it would save now. */
  state(): Promise<State>;
  before?(): Promise<unknown>;
  work(): Promise<unknown>;
  /** From 1: at which save of `work` it is killed. */
  count: number;
  /** That save does not arrive: the one before counts. */
  unsaved?: boolean;
}

/**
 * Resolves with a copy of the files of that moment, and with what was saved, as if they had always been there. Undefined:
 * there are not so many saves.
 */
export async function killedAtSave<State>({
  directory,
  begin,
  state,
  before = async () => {},
  work,
  count,
  unsaved = false,
}: Killing<State>): Promise<{ directory: string; saved: State } | undefined> {
  let saves = Number.NEGATIVE_INFINITY;
  let last: State;
  let stopped = (_: State) => {};
  const stop = new Promise<State>((resolve) => {
    stopped = resolve;
  });
  begin(async () => {
    const now = structuredClone(await state());
    if (++saves === count) {
      stopped(unsaved ? last : now);
      return new Promise(() => {});
    }
    last = now;
  });
  await before();
  last = structuredClone(await state());
  saves = 0;
  const saved = await Promise.race([stop, work().then(() => undefined)]);
  if (saved === undefined) return undefined;
  const copy = mkdtempSync(join(tmpdir(), 'dmkit-killed-'));
  cpSync(directory, copy, { recursive: true });
  return { directory: copy, saved: JSON.parse(JSON.stringify(saved).replaceAll(directory, copy)) };
}
