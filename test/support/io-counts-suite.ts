/** A write to an origin with snapshots asks less of the disks than in the kernel, whose counts are given. */
import { describe, expect, it } from 'vitest';
import { type Counts, type CountsOf, countHere, DEPTHS, iosOf, SNAPSHOTS, WRITES } from './io-counts.ts';

/** As many writes without snapshots, and the flush at the end. */
const PLAIN: Counts = { reads: 0, writes: WRITES, flushes: 1 };

export function ioCountsSuite(kernelCounts: () => readonly CountsOf[]): void {
  const runs = SNAPSHOTS.flatMap((snapshots) => DEPTHS.map((depth) => ({ snapshots, depth })));

  describe.each(runs)('$snapshots snapshots, depth $depth', ({ snapshots, depth }) => {
    const kernel = () => kernelCounts().find((run) => run.snapshots === snapshots && run.depth === depth)!;

    if (snapshots > 0)
      it('takes fewer I/Os and flushes than the kernel for the first write to a chunk', async () => {
        const { first } = await countHere(snapshots, depth);
        expect(iosOf(first)).toBeLessThan(iosOf(kernel().first));
        expect(first.flushes).toBeLessThan(kernel().first.flushes);
      });

    it('takes one write and no flush for a rewrite, as the kernel does', async () => {
      expect(kernel().rewrites).toEqual(PLAIN);
      expect((await countHere(snapshots, depth)).rewrites).toEqual(PLAIN);
    });
  });
}
