/**
 *     npm run bench                       about 8 minutes on /dev/shm; writes bench/results/
 *     npm run bench -- --dir /mnt/disk    image and stores there
 *     npm run bench -- --smoke            seconds; writes nothing: shows that everything runs
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { besideOthers, type Options } from './beside-others.ts';
import { exceptions, exceptionsTable } from './exceptions.ts';
import { machine, markdown } from './report.ts';

const { values } = parseArgs({
  options: {
    dir: { type: 'string', default: '/dev/shm' },
    runs: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '4' },
    mib: { type: 'string', default: '1024' },
    smoke: { type: 'boolean', default: false },
  },
});

const number = (name: 'runs' | 'seconds' | 'mib') => {
  const value = Number(values[name]);
  if (value > 0 && Number.isFinite(value)) return value;
  console.error(`--${name} takes a number above 0, not ${values[name]}`);
  process.exit(2);
};

const options: Options = values.smoke
  ? { folder: values.dir, imageSize: 64 * 2 ** 20, runs: 1, seconds: 0.2 }
  : { folder: values.dir, imageSize: number('mib') * 2 ** 20, runs: number('runs'), seconds: number('seconds') };

const progress = (text: string) => {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
};
const rows = await besideOthers(options, progress);
progress('');
const on = machine();
const stores = await exceptions(values.dir, values.smoke ? [100_000] : [1_000_000, 10_000_000]);
const report = markdown(rows, options, on) + exceptionsTable(stores);
console.log(report);
if (!values.smoke) {
  const folder = 'bench/results';
  const name = `${on.date}-node${process.versions.node.split('.')[0]}`;
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${name}.json`), `${JSON.stringify({ machine: on, options, rows, stores }, null, 2)}\n`);
  writeFileSync(join(folder, `${name}.md`), `# dmkit beside qemu-nbd and nbdkit\n\n${report}`);
  console.log(`Written to ${folder}/${name}.json and .md`);
}
