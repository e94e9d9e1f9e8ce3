/**
 *     npm run bench                        a quarter of an hour; writes bench/results/
 *     npm run bench -- --only commits      one part of it
 *     npm run bench -- --only merge        half an hour more, not part of the above
 *     npm run bench -- --smoke             a minute; writes nothing: shows that everything runs
 */
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { exceptions, exceptionsTable } from './exceptions.ts';
import { ioCounts, ioCountsTable } from './io-counts.ts';
import { fitting, type MergeOptions, mergeCases, merging } from './merge.ts';
import { mergeMarkdown } from './merge-report.ts';
import { describe, machine, markdown, verdicts } from './report.ts';
import { parts } from './rows.ts';
import { measureRows, type Options } from './table.ts';
import { thinOperations, thinOperationsTable } from './thin-operations.ts';

const { values } = parseArgs({
  options: {
    'memory-dir': { type: 'string', default: '/dev/shm' },
    'disk-dir': { type: 'string', default: '/var/tmp' },
    runs: { type: 'string', default: '5' },
    seconds: { type: 'string', default: '0.7' },
    'merge-mib': { type: 'string', default: '8192' },
    only: { type: 'string' },
    smoke: { type: 'boolean', default: false },
  },
});

const number = (name: 'runs' | 'seconds' | 'merge-mib') => {
  const value = Number(values[name]);
  if (value > 0 && Number.isFinite(value)) return value;
  console.error(`--${name} takes a number above 0, not ${values[name]}`);
  process.exit(2);
};

const { only, smoke } = values;
const rows = Object.entries(parts).flatMap(([part, rows]) =>
  rows.filter(
    ({ workload, thin, variant }) =>
      (only === undefined || part === only || workload.startsWith(only) || (only === 'thin' && thin)) &&
      !(smoke && variant),
  ),
);
const wanted = (part: string) => (only === undefined ? part !== 'merge' || smoke : part === only);
const alone = ['io-counts', 'exceptions', 'thin-operations', 'merge'];
if (rows.length === 0 && !alone.some(wanted)) {
  console.error(`--only takes ${[...Object.keys(parts), ...alone].join(', ')} or how a workload begins, not ${only}`);
  process.exit(2);
}

const folders = { memory: values['memory-dir'], disk: values['disk-dir'] };
const options: Options = smoke
  ? { folders, scale: 1 / 32, runs: 1, seconds: 0.1 }
  : { folders, scale: 1, runs: number('runs'), seconds: number('seconds') };

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(1));

const progress = (text: string) => {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
};
const on = machine(Object.values(parts).flat());
const report: string[] = [];
const data: Record<string, unknown> = { machine: on, options };
const add = (text: string, figures: object) => {
  progress('');
  console.log(text);
  report.push(text);
  Object.assign(data, figures);
};

if (rows.length > 0) {
  const results = await measureRows(rows, options, progress);
  add(markdown(results, options), { rows: results.map((result) => ({ ...result, verdicts: verdicts(result) })) });
}
if (wanted('io-counts')) {
  const counts = await ioCounts();
  add(ioCountsTable(counts), { ioCounts: counts });
}
if (wanted('exceptions')) {
  const stores = await exceptions(folders.memory, smoke ? [100_000] : [1_000_000, 10_000_000]);
  add(exceptionsTable(stores), { exceptions: stores });
}
if (wanted('thin-operations')) {
  const sizes = smoke ? [2 ** 28, 2 ** 30] : [2 ** 30, 2 ** 36, 2 ** 40];
  const operations = await thinOperations(folders.disk, sizes, options, progress);
  add(thinOperationsTable(operations), { thinOperations: operations });
}
if (wanted('merge')) {
  const asked = smoke ? 32 * 2 ** 20 : number('merge-mib') * 2 ** 20;
  const merges: MergeOptions = {
    cases: smoke ? mergeCases.slice(-1) : mergeCases,
    runs: 1,
    seconds: smoke ? 0.2 : 4,
    folder: folders.disk,
    changes: fitting(folders.disk, asked),
  };
  if (merges.changes < asked)
    console.log(
      `${merges.folder} has room for ${merges.changes / 2 ** 20} MiB of changes, not for ${asked / 2 ** 20}.`,
    );
  const merged = await merging(merges, progress);
  add(mergeMarkdown(merged, merges), { merges, merged });
}

// Part of the table would take the place of a whole one.
if (!smoke && (only === undefined || only === 'merge')) {
  const path = `bench/results/${on.date}-node${process.versions.node.split('.')[0]}${only ? `-${only}` : ''}`;
  writeFileSync(`${path}.json`, `${JSON.stringify(data, null, 2)}\n`);
  writeFileSync(`${path}.md`, `${describe(on)}\n\n${report.join('\n')}`);
  console.log(`Written to ${path}.json and .md`);
}
