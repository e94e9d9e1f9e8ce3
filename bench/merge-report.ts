/** The figures of the merge benchmark as a Markdown table. */
import type { MergeOptions, MergeRow } from './merge.ts';
import { grid } from './report.ts';

export function mergeMarkdown(rows: readonly MergeRow[], { changes, folder, runs, seconds }: MergeOptions) {
  const speed = (times: readonly number[]) => changes / 2 ** 20 / median(times);
  const mib = (value: number) => `${Math.round(value)} MiB/s`;
  const ratio = (value: number, other: number) => `(${(value / other).toFixed(2)})`;
  const iops = (values: readonly number[]) => Math.round(median(values)).toLocaleString('en');
  const body = rows.map(({ case: { title }, copy, merge, commit, idle, during }) => {
    const own = speed(merge);
    return [
      title,
      mib(own),
      ...[copy, commit].map((other) => `${mib(speed(other))} ${ratio(own, speed(other))}`),
      `${iops(idle)} IOPS`,
      `${iops(during)} IOPS ${ratio(median(during), median(idle))}`,
    ];
  });
  const early = rows.flatMap(({ case: { title }, early }) => (early ? `${title}: ${early}` : []));
  return [
    `${changes / 2 ** 20} MiB of changes to an image of twice that size in ${folder}; median of ${runs} runs.`,
    '',
    ...grid(
      ['changes', 'dmkit merge', 'plain copy', 'qemu-img commit', 'reads, no merge', 'reads beside the merge'],
      body,
    ),
    '',
    'In brackets: the merge compared to that program (2.00 is twice as fast), and reads beside the merge compared to reads without one.',
    `Reads: 4 KiB at random places, QD 32, ${seconds} s, of data in the page cache.`,
    ...(early.length > 0
      ? [`Merges that ended before the reader did, so that it was partly alone: ${early.join('; ')}.`]
      : []),
    '',
  ].join('\n');
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor((values.length - 1) / 2)];
}
