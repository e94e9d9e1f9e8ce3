/** What a first write to an origin, and thin volumes, cost the disks below, counted: here, and as a kernel did once. */
import { readFileSync } from 'node:fs';
import { type Counts, type CountsOf, countHere, DEPTHS, iosOf, SNAPSHOTS, WRITES } from '../test/support/io-counts.ts';
import { countThinHere, type ThinCounts } from '../test/support/thin-io-counts.ts';
import { grid, yesOrNo } from './report.ts';

export interface IoCounts {
  kernel: string;
  rows: { own: CountsOf; kernel: CountsOf; met: boolean }[];
  thin: { own: ThinCounts; kernel: ThinCounts; met: boolean }[];
}

export async function ioCounts(): Promise<IoCounts> {
  const recorded = JSON.parse(readFileSync('test/fixtures/kernel/io-counts.json', 'utf8'));
  const rows: IoCounts['rows'] = [];
  for (const snapshots of SNAPSHOTS)
    for (const depth of DEPTHS) {
      const own = await countHere(snapshots, depth);
      const kernel: CountsOf = recorded.counts.find(
        (counts: CountsOf) => counts.snapshots === snapshots && counts.depth === depth,
      );
      rows.push({ own, kernel, met: fewer(own.first, kernel.first) });
    }
  const thin = (await countThinHere()).map((own) => {
    const kernel: ThinCounts = recorded.thin.find(({ operation }: ThinCounts) => operation === own.operation);
    return { own, kernel, met: noMore(own.counts, kernel.counts) };
  });
  return { kernel: recorded.kernel, rows, thin };
}

const noMore = (own: Counts, kernel: Counts) => iosOf(own) <= iosOf(kernel) && own.flushes <= kernel.flushes;

/** Without a snapshot there is nothing to spare. */
const fewer = (own: Counts, kernel: Counts) =>
  noMore(own, kernel) && (iosOf(own) < iosOf(kernel) || iosOf(own) === WRITES);

export function ioCountsTable({ kernel, rows, thin }: IoCounts): string {
  const head = ['first writes to an origin', 'I/Os each', 'kernel', 'flushes each', 'kernel', 'fewer'];
  const each = (count: number, times = WRITES) => (count / times).toFixed(2);
  const body = rows.map(({ own, kernel, met }) => [
    `${own.snapshots} snapshots, QD ${own.depth}`,
    each(iosOf(own.first)),
    each(iosOf(kernel.first)),
    each(own.first.flushes),
    each(kernel.first.flushes),
    yesOrNo(met),
  ]);
  const thinHead = ['thin volumes', 'I/Os each', 'kernel', 'flushes each', 'kernel', 'no more'];
  const thinBody = thin.map(({ own: { operation, times, counts }, kernel, met }) => [
    operation,
    each(iosOf(counts), times),
    each(iosOf(kernel.counts), times),
    each(counts.flushes, times),
    each(kernel.counts.flushes, times),
    yesOrNo(met),
  ]);
  return [
    ...grid(head, body),
    '',
    `Reads and writes of all disks below, for ${WRITES} writes to as many chunks and a flush. Kernel: ${kernel}, after its block layer has joined neighbours.`,
    '',
    ...grid(thinHead, thinBody),
    '',
    'The same for metadata and data of a pool, new blocks zeroed. Snapshots and deletes are durable with it.',
    '',
  ].join('\n');
}
