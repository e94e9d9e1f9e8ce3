/**
 *     npm run bench                       about half an hour; writes bench/results/
 *     npm run bench -- --dir /mnt/disk    image and stores there
 *     npm run bench -- --only merge       one of: others, exceptions, merge
 *     npm run bench -- --smoke            seconds; writes nothing: shows that everything runs
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { besideOthers, type Options } from './beside-others.ts';
import { exceptions, exceptionsTable } from './exceptions.ts';
import { fitting, type MergeOptions, merging } from './merge.ts';
import { mergeMarkdown } from './merge-report.ts';
import { machine, markdown } from './report.ts';

const { values } = parseArgs({
  options: {
    dir: { type: 'string', default: '/dev/shm' },
    runs: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '4' },
    mib: { type: 'string', default: '1024' },
    'merge-dir': { type: 'string', default: '/var/tmp' },
    'merge-mib': { type: 'string', default: '8192' },
    only: { type: 'string' },
    smoke: { type: 'boolean', default: false },
  },
});

const number = (name: 'runs' | 'seconds' | 'mib' | 'merge-mib') => {
  const value = Number(values[name]);
  if (value > 0 && Number.isFinite(value)) return value;
  console.error(`--${name} takes a number above 0, not ${values[name]}`);
  process.exit(2);
};

const parts = ['others', 'exceptions', 'merge'];
if (values.only !== undefined && !parts.includes(values.only)) {
  console.error(`--only takes one of ${parts.join(', ')}, not ${values.only}`);
  process.exit(2);
}
const wanted = (part: string) => values.only === undefined || values.only === part;

const options: Options = values.smoke
  ? { folder: values.dir, imageSize: 64 * 2 ** 20, runs: 1, seconds: 0.2 }
  : { folder: values.dir, imageSize: number('mib') * 2 ** 20, runs: number('runs'), seconds: number('seconds') };

const progress = (text: string) => {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
};
const on = machine();
const name = `${on.date}-node${process.versions.node.split('.')[0]}`;

function publish(file: string, title: string, report: string, data: object): void {
  progress('');
  console.log(report);
  if (values.smoke) return;
  const folder = 'bench/results';
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${file}.json`), `${JSON.stringify({ machine: on, ...data }, null, 2)}\n`);
  writeFileSync(join(folder, `${file}.md`), `# ${title}\n\n${report}`);
  console.log(`Written to ${folder}/${file}.json and .md\n`);
}

if (wanted('others')) {
  const rows = await besideOthers(options, progress);
  publish(name, 'dmkit beside qemu-nbd and nbdkit', markdown(rows, options, on), { options, rows });
}
if (wanted('exceptions')) {
  const stores = await exceptions(values.dir, values.smoke ? [100_000] : [1_000_000, 10_000_000]);
  publish(`${name}-exceptions`, 'Exceptions in memory', exceptionsTable(stores), { stores });
}
if (wanted('merge')) {
  const asked = values.smoke ? 32 * 2 ** 20 : number('merge-mib') * 2 ** 20;
  const merges: MergeOptions = {
    ...options,
    folder: values['merge-dir'],
    changes: fitting(values['merge-dir'], asked),
  };
  if (merges.changes < asked)
    console.log(
      `${merges.folder} has room for ${merges.changes / 2 ** 20} MiB of changes, not for ${asked / 2 ** 20}.`,
    );
  const rows = await merging(merges, progress);
  publish(`${name}-merge`, 'Merging', mergeMarkdown(rows, merges, on), { options: merges, rows });
}
