/**
 * The list of a merge could not be cut: the disk may have the exceptions or not. Whoever owns the store next must know
 * before anything is written to their chunks.
 */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { Fault } from './faults.ts';
import { finish, startMerge, takeSnapshot, togglePause } from './operations.ts';
import { Stack, turn } from './stack.ts';
import { VirtualTime } from './virtual-time.ts';

const time = new VirtualTime();
beforeEach(() => time.install());
afterEach(() => time.restore());

/** A flush of the COW device fails, or the write of an area, which is then torn. */
test.each([['flush'], ['write']] as const)('a snapshot takes over after the %s failed', async (failing) => {
  for (let seed = 1; seed <= 40; seed++) {
    const stack = new Stack({ seed, origin: 24, chunks: [2] }, { time });
    await stack.start();
    await takeSnapshot(stack, 0);
    stack.write('s0', 0, 24);
    await stack.flush('s0');
    await stack.settle();
    await startMerge(stack, 0);
    stack.fault = new Fault(stack.random, '/dev/cow0', 1);
    stack.fault.hits = (disk, kind) => disk === '/dev/cow0' && kind === failing;
    while (!stack.isStuck) await turn();
    stack.fault = undefined;
    await togglePause(stack);
    stack.write('base', 2, 20);
    await stack.settle();
    expect(await stack.flush('base')).toBe(true);
    const crash = stack.crash(stack.power.count);
    crash.model.table = seed % 2 ? 'snapshot' : 'snapshot-merge';
    const again = new Stack(stack.options, { time }, crash);
    await again.start();
    await again.expectPossible();
    await finish(again);
    await again.stop();
  }
});
