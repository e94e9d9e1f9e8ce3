/** What a seed does to a stack: writes side by side, flushes, reads, snapshots, suspends, reloads, merges, errors. */
import {
  dropSnapshot,
  finishMerge,
  pause,
  reload,
  reopen,
  revert,
  startMerge,
  takeSnapshot,
  togglePause,
} from './operations.ts';
import { type Stack, turn } from './stack.ts';

/** Chance of each, once per operation; the rest are writes. */
export interface Mix {
  operations: number;
  flush: number;
  read: number;
  settle: number;
  snapshot: number;
  suspend: number;
  reload: number;
  zero?: number;
  discard?: number;
  reopen?: number;
  revert?: number;
  drop?: number;
  /** Begins where there is a snapshot and no merge, and ends, pauses or goes on where there is one. */
  merge?: number;
  fault?: number;
  /** Timers fire. */
  time?: number;
  /** Nothing is asked, for a few turns. */
  idle?: number;
}

export async function work(stack: Stack, mix: Mix, operations = mix.operations): Promise<void> {
  const { random, options } = stack;
  const limit = Math.max(...options.chunks) * 2 + 3;
  for (let i = 0; i < operations; i++) {
    const name = random.pick(stack.names());
    const sector = random.below(options.origin);
    const count = 1 + random.below(Math.min(limit, options.origin - sector));
    let dice = random.next();
    const roll = (chance = 0) => (dice -= chance) < 0;
    // Errors are for requests, suspends and what replaces a table; what is more than one step has disks that work.
    if (stack.fault && random.chance(0.1)) await stack.repair();
    if (roll(mix.flush)) await stack.flush(name);
    else if (roll(mix.read)) stack.read(name, sector, count);
    else if (roll(mix.settle)) await stack.settle();
    else if (roll(mix.suspend)) await pause(stack, name);
    else if (roll(mix.zero)) stack.write(name, sector, count, true);
    else if (roll(mix.time)) stack.time.pass();
    else if (roll(mix.idle)) await idle(stack);
    else if (roll(mix.fault)) await inject(stack);
    else if (roll(lonely(stack) ? 0.25 : mix.snapshot)) await snapshot(stack);
    else if (roll(mix.reload)) await reload(stack, name);
    else if (roll(mix.revert)) await revertOne(stack);
    else if (roll(mix.drop)) await drop(stack);
    else if (roll(mix.merge)) await merge(stack);
    else if (roll(mix.discard)) await (name === 'base' ? undefined : stack.discard(name, sector, count));
    else if (roll(mix.reopen)) await repaired(stack, () => reopen(stack));
    else stack.write(name, sector, count);
    stack.checkStates();
  }
  await stack.settle();
}

/** An origin alone promises little. */
const lonely = ({ model }: Stack) => model.taken().length === 0 && model.merging === undefined;

async function repaired(stack: Stack, then: () => Promise<void>): Promise<void> {
  await stack.repair();
  await then();
}

async function idle(stack: Stack): Promise<void> {
  for (let turns = stack.random.below(20); turns > 0; turns--) await turn();
}

/** A merge that pauses has only its store: an error there would cost the image itself. */
async function inject(stack: Stack): Promise<void> {
  if (stack.model.table === 'snapshot') return;
  await stack.repair();
  stack.inject();
}

async function snapshot(stack: Stack): Promise<void> {
  const free = stack.model.free();
  // While a merge pauses nobody copies for a new snapshot.
  if (free.length > 0 && stack.model.table !== 'snapshot')
    await repaired(stack, () => takeSnapshot(stack, stack.random.pick(free)));
}

async function drop(stack: Stack): Promise<void> {
  const taken = stack.model.taken();
  if (taken.length > 0) await repaired(stack, () => dropSnapshot(stack, stack.random.pick(taken)));
}

async function revertOne(stack: Stack): Promise<void> {
  const taken = stack.model.taken();
  if (taken.length > 0 && stack.model.table !== 'snapshot')
    await repaired(stack, () => revert(stack, stack.random.pick(taken)));
}

async function merge(stack: Stack): Promise<void> {
  const { model, random, options } = stack;
  if (model.table !== 'snapshot-merge' || random.chance(0.5)) await stack.repair();
  if (model.merging === undefined) {
    const taken = model.taken();
    if (taken.length > 0) await startMerge(stack, random.pick(taken));
  } else if (model.table === 'snapshot' || (options.cow === undefined && random.chance(stack.isStuck ? 0.7 : 0.3)))
    await togglePause(stack);
  else if (random.chance(0.4)) await finishMerge(stack);
}
