/** A merge that is given to a plain snapshot before it has ended, after errors that left something to be careful with. */
import { afterEach, beforeEach, expect, onTestFinished, test } from 'vitest';
import { eachException } from '../../../src/formats/exception-store.ts';
import { Merging } from '../../../src/targets/snapshot/merging.ts';
import { SECTOR } from '../../../src/units.ts';
import { Fault } from './faults.ts';
import { finish, startMerge, takeSnapshot, togglePause } from './operations.ts';
import { Stack, turn } from './stack.ts';
import { VirtualTime } from './virtual-time.ts';

const time = new VirtualTime();
beforeEach(() => time.install());
afterEach(() => time.restore());

/** The disk may have the exceptions or not: whoever owns the store next must know before anything is written to their chunks. */
test.each([['flush'], ['write']] as const)('the list could not be cut: the %s failed', async (failing) => {
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

test('a chunk was given up, so that those behind it have higher numbers than their place in the list', async () => {
  const usual = Merging.batch;
  Merging.batch = 1;
  onTestFinished(() => void (Merging.batch = usual));
  for (let seed = 1; seed <= 20; seed++) {
    const stack = new Stack({ seed, origin: 40, chunks: [1], slow: 1 }, { time });
    await stack.start();
    await takeSnapshot(stack, 0);
    stack.fault = new Fault(stack.random, '/dev/cow0', 1);
    stack.fault.hits = (disk, kind, at) => disk === '/dev/cow0' && kind === 'write' && at === 2 * SECTOR;
    Object.assign(stack.fault, { errno: 'ENOSPC' });
    for (let s = 0; s < 20; s++) stack.write('s0', s, 1);
    await stack.repair();
    await stack.flush('s0');
    await startMerge(stack, 0);
    while (entries(stack) > 15) await turn();
    await togglePause(stack);
    expect(entries(stack)).toBeGreaterThan(0);
    for (let s = 20; s < 40; s++) stack.write('base', s, 1);
    await finish(stack);
    await stack.stop();
  }
});

/** Of the first area of the first COW device, whose chunks are sectors. */
function entries(stack: Stack): number {
  const area = new Uint8Array(SECTOR);
  stack.cow(0).peek(1, 1, area);
  return eachException(new DataView(area.buffer), () => {});
}
