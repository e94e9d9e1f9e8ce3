/** All that is counted in a kernel, as JSON. */
import { type Counts, type CountsOf, WRITES } from '../support/io-counts.ts';
import { countThere } from './io-counts.ts';
import { countThinThere } from './thin-io-counts.ts';
import type { Kernel } from './vm/vm.ts';

/** Of each count the lowest of three runs: at depth 16 it varies how many writes the block layer can join. */
export async function recordCounts(kernel: Kernel): Promise<string> {
  const runs = [await countThere(kernel), await countThere(kernel), await countThere(kernel)];
  const counts: CountsOf[] = runs[0].map(({ snapshots, depth }, i) => ({
    snapshots,
    depth,
    first: lowest(runs.map((run) => run[i].first)),
    rewrites: lowest(runs.map((run) => run[i].rewrites)),
  }));
  const thinRuns = [await countThinThere(kernel), await countThinThere(kernel), await countThinThere(kernel)];
  const thin = thinRuns[0].map((row, i) => ({ ...row, counts: lowest(thinRuns.map((run) => run[i].counts)) }));
  const release = (await kernel.run('uname -r')).trim();
  const lines = (rows: readonly object[]) => rows.map((row) => `    ${JSON.stringify(row)}`).join(',\n');
  const parts = [
    `  "kernel": "Linux ${release}",\n  "writes": ${WRITES}`,
    `  "counts": [\n${lines(counts)}\n  ]`,
    `  "thin": [\n${lines(thin)}\n  ]`,
  ];
  return `{\n${parts.join(',\n')}\n}\n`;
}

function lowest(counts: readonly Counts[]): Counts {
  const least = (name: keyof Counts) => Math.min(...counts.map((count) => count[name]));
  return { reads: least('reads'), writes: least('writes'), flushes: least('flushes') };
}
