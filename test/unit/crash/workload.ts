/** What a seed does to a stack: writes side by side, flushes, reads, new snapshots, suspends, reloads, reopenings. */
import type { Stack } from './stack.ts';

export interface Mix {
  operations: number;
  /** Chance of each, once per operation; the rest are writes. */
  flush: number;
  read: number;
  settle: number;
  snapshot: number;
  suspend: number;
  reload: number;
  discard: number;
  reopen: number;
}

export const CRASH_MIX: Mix = {
  operations: 60,
  flush: 0.08,
  read: 0.05,
  settle: 0.1,
  snapshot: 0.05,
  suspend: 0.02,
  reload: 0.02,
  discard: 0,
  reopen: 0,
};

export async function work(stack: Stack, mix: Mix): Promise<void> {
  const { random, options } = stack;
  const limit = Math.max(...options.chunks) * 2 + 3;
  for (let i = 0; i < mix.operations && stack.power.on; i++) {
    const name = random.pick(stack.names());
    const sector = random.below(options.origin);
    const count = 1 + random.below(Math.min(limit, options.origin - sector));
    let dice = random.next();
    const roll = (chance: number) => (dice -= chance) < 0;
    if (roll(mix.flush)) await stack.flush(name);
    else if (roll(mix.read)) stack.read(name, sector, count);
    else if (roll(mix.settle)) await stack.settle();
    else if (roll(mix.snapshot)) await snapshot(stack);
    else if (roll(mix.suspend)) await pause(stack, name);
    else if (roll(mix.reload)) await reload(stack, name);
    else if (roll(mix.discard)) await discard(stack, name, sector, count);
    else if (roll(mix.reopen)) await reopen(stack);
    else stack.write(name, sector, count);
  }
  await stack.settle();
}

async function snapshot(stack: Stack): Promise<void> {
  if (stack.snapshots.length < stack.options.chunks.length) {
    await stack.settle();
    await stack.takeSnapshot();
  }
}

/** Writes go on while the device is suspended; they wait. */
async function pause(stack: Stack, name: string): Promise<void> {
  await stack.mapper.suspend({ name });
  const { random, options } = stack;
  const sector = random.below(options.origin);
  stack.write(name, sector, 1 + random.below(options.origin - sector));
  await stack.mapper.resume({ name });
}

/** Loads the table that is live: a snapshot hands its exceptions over to itself. */
async function reload(stack: Stack, name: string): Promise<void> {
  const line = name === 'base' ? 'snapshot-origin /dev/origin' : stack.table(Number(name.slice(1)));
  await stack.load(name, line);
  await stack.mapper.resume({ name });
}

async function discard(stack: Stack, name: string, sector: number, count: number): Promise<void> {
  if (name !== 'base') await stack.discard(name, sector, count);
}

async function reopen(stack: Stack): Promise<void> {
  await stack.stop();
  await stack.start();
}
