/** Thin volumes ask no more of the disks than in the kernel, whose counts are given. */
import { beforeAll, describe, expect, it } from 'vitest';
import { type Counts, iosOf } from './io-counts.ts';
import { countThinHere, lines, type ThinCounts } from './thin-io-counts.ts';

const operations = lines.flatMap(({ operation }) => operation ?? []);
/** Of these the kernel's block layer joins some that lie side by side: they are compared with those that come one at a time. */
const JOINED: Record<string, string> = { 'break-sharing write, QD 16': 'break-sharing write, QD 1' };

export function thinIoCountsSuite(kernelCounts: () => readonly ThinCounts[]): void {
  describe('a thin volume', () => {
    let here: ThinCounts[];
    beforeAll(async () => {
      here = await countThinHere();
    });
    const of = (counts: readonly ThinCounts[], name: string): Counts =>
      counts.find(({ operation }) => operation === name)!.counts;

    it.each(operations)('takes no more I/Os and flushes than the kernel: %s', (operation) => {
      const own = of(here, operation);
      const kernel = kernelCounts();
      expect(iosOf(own)).toBeLessThanOrEqual(iosOf(of(kernel, JOINED[operation] ?? operation)));
      expect(own.flushes).toBeLessThanOrEqual(of(kernel, operation).flushes);
    });

    it('is read at the same cost in the 20th snapshot of a chain as in the first', () => {
      expect(of(here, 'read of a snapshot, 20 deep')).toEqual(of(here, 'read of a snapshot, 1 deep'));
    });
  });
}
