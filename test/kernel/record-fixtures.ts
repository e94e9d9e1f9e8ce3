/**
 * Records scenarios like those of test/fixtures/kernel in a real kernel:
 *
 *     npm run record-fixtures -- FOLDER [--seed N]
 *
 * Writes FOLDER/SCENARIO/steps.txt, the kept images, and FOLDER/io-counts.json. The README in test/fixtures/kernel explains them.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { gzipSync } from 'node:zlib';
import { type Prng, prng } from '../../src/lib/prng.ts';
import { pattern } from '../unit/golden.ts';
import { play, sharePatterns } from './play.ts';
import { recordCounts } from './record-counts.ts';
import { Kernel } from './vm/vm.ts';

const create = (name: string, table: string) => `run dmsetup create ${name} --table "${table}"`;
const real = (sectors: number) => create('base-real', `0 ${sectors} linear /dev/loop0 0`);
const originOver = (sectors: number) => create('base', `0 ${sectors} snapshot-origin /dev/mapper/base-real`);
const snapshot = (name: string, sectors: number, loop: number, store: string) =>
  create(name, `0 ${sectors} snapshot /dev/mapper/base-real /dev/loop${loop} ${store}`);

function puts(random: Prng, count: number, tag: string, device: string, sectors: number, sizes: number[]): string[] {
  return Array.from({ length: count }, () => {
    const size = random.pick(sizes);
    return `put ${tag} ${device} ${random.below(4096)} ${random.below(sectors - size)} ${size}`;
  });
}

function single(chunk: number, sectors: number) {
  return (random: Prng) => {
    const sizes = [1, 2, 3, 7, 8, 8, 8, 16, 32, chunk, 2 * chunk].filter((size) => size <= 256);
    const sums = ['sum snap snap', 'sum base base'];
    return [
      ...[real(sectors), snapshot('snap', sectors, 1, `P ${chunk}`)],
      ...[originOver(sectors), 'state fresh', 'sum snap-fresh snap'],
      ...puts(random, 40, 'b', 'snap', sectors, sizes),
      ...['state after-snapshot-writes', ...sums, 'keep cow-1 1', 'keep origin-1 0'],
      ...puts(random, 40, 'c', 'base', sectors, sizes),
      ...puts(random, 20, 'c', 'snap', sectors, sizes),
      ...['state after-origin-writes', ...sums, 'run dmsetup remove base', 'run dmsetup remove snap'],
      ...['keep cow-2 1', 'keep origin-2 0', snapshot('snap', sectors, 1, 'P 64'), 'state reactivated'],
      ...['sum snap snap', 'run dmsetup remove snap'],
    ];
  };
}

function multi(random: Prng): string[] {
  const sectors = 24576;
  const steps = [
    `origin 0 ${sectors}`,
    'disk 1 32768',
    'disk 2 32768',
    'disk 3 32768',
    real(sectors),
    originOver(sectors),
  ];
  for (const [i, chunk] of [8, 32, 128].entries()) {
    steps.push(
      'run dmsetup suspend base',
      snapshot(`snap${i}`, sectors, i + 1, `P ${chunk}`),
      'run dmsetup resume base',
    );
    steps.push(...puts(random, 25, 'c', 'base', sectors, [1, 2, 3, 7, 8, 8, 16, 32, 64]));
    steps.push(...puts(random, 10, 'b', `snap${i}`, sectors, [1, 2, 3, 7, 8, 8, 16, 32, 64]), `state step${i}`);
  }
  steps.push('state end', 'sum base base', ...[0, 1, 2].map((i) => `sum snap${i} snap${i}`), 'run dmsetup remove base');
  for (const i of [0, 1, 2]) steps.push(`run dmsetup remove snap${i}`, `keep cow${i} ${i + 1}`);
  return [...steps, 'keep origin 0'];
}

function merge(random: Prng): string[] {
  const sectors = 32768;
  const table = `0 ${sectors} snapshot-merge /dev/mapper/base-real /dev/loop1 P 16`;
  const reload = (line: string) => [
    'run dmsetup suspend base-real',
    `run dmsetup load base-real --table "0 ${sectors} ${line}"`,
    'run dmsetup resume base-real',
  ];
  return [
    ...[real(sectors), snapshot('snap', sectors, 1, 'P 16'), originOver(sectors)],
    ...puts(random, 120, 'b', 'snap', sectors, [1, 2, 3, 7, 8, 8, 8, 16, 32, 128]),
    'put b snap 0 4800 4096',
    ...puts(random, 20, 'c', 'base', sectors, [1, 2, 3, 8, 8, 16, 16, 32]),
    ...['state before-merge', 'sum snap snap', 'sum base base', 'run dmsetup remove base', 'run dmsetup remove snap'],
    ...['keep cow-before 1', 'keep origin-before 0', ...reload('delay /dev/loop0 0 0 /dev/loop0 0 30')],
    ...[
      create('base', table),
      'poll base',
      'below base 6000',
      'poll base',
      'below base 3600',
      'run dmsetup suspend base',
    ],
    ...['state half-merged', 'keep cow-half 1', 'keep origin-half 0', 'run dmsetup resume base'],
    ...[...reload('linear /dev/loop0 0'), 'below base 0', 'put c base 0 5000 16', 'state merged', 'sum base base'],
    ...['run dmsetup remove base', 'keep cow-after 1', 'keep origin-after 0'],
  ];
}

function overflow(): string[] {
  const sectors = 16384;
  const steps = [real(sectors)];
  const fill = (device: string) => Array.from({ length: 13 }, (_, i) => `put b ${device} ${i * 16} ${i * 32} 16`);
  steps.push(snapshot('snap', sectors, 1, 'P 16'), originOver(sectors));
  for (let i = 0; i < 60; i++) {
    steps.push(`put c base ${i * 16} ${i * 48} 16`);
    if (i % 10 === 9) steps.push(`state write${i}`);
  }
  steps.push('state overflowed', 'sum base base', 'run dd if=/dev/mapper/snap of=/dev/null bs=4k count=1 iflag=direct');
  steps.push('run dmsetup remove base', 'run dmsetup remove snap', 'keep cow 1', 'keep origin 0');
  steps.push(snapshot('snap', sectors, 1, 'P 16'), 'state reactivated', 'run dmsetup remove snap', originOver(sectors));
  steps.push(snapshot('t', sectors, 2, 'N 16'), ...fill('t'), 'state transient-full', 'run dmsetup remove t');
  steps.push(snapshot('p', sectors, 3, 'PO 16'), ...fill('p'), 'state persistent-overflow-full');
  return [...steps, 'run dmsetup remove p', 'keep cow3 3'];
}

interface Scenario {
  /** Sectors of the origin and of the COW devices. */
  disks: [origin: number, ...cows: number[]];
  steps(random: Prng): string[];
}

const SCENARIOS: Record<string, Scenario> = {
  'snapshot-8': { disks: [32776, 16384], steps: single(8, 32776) },
  'snapshot-16': { disks: [32768, 16384], steps: single(16, 32768) },
  'snapshot-128': { disks: [32768, 16384], steps: single(128, 32768) },
  multi: { disks: [24576, 32768, 32768, 32768], steps: multi },
  merge: { disks: [32768, 24576], steps: merge },
  overflow: { disks: [16384, 640, 160, 160], steps: overflow },
};

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seed: { type: 'string', default: '1' } },
});
const [folder] = positionals;
if (!folder || !Number.isSafeInteger(Number(values.seed))) {
  console.error('Usage: npm run record-fixtures -- FOLDER [--seed N]');
  process.exit(2);
}
const kernel = await Kernel.boot();
try {
  await sharePatterns(kernel);
  for (const [name, { disks, steps }] of Object.entries(SCENARIOS)) {
    const [origin, ...cows] = disks;
    const made = [kernel.disk(origin, pattern('a', 0, origin)), ...cows.map((sectors) => kernel.disk(sectors))];
    const log = await play(kernel, made, steps(prng(Number(values.seed))));
    const into = join(folder, name);
    mkdirSync(into, { recursive: true });
    writeFileSync(join(into, 'steps.txt'), `${log.join('\n')}\n`);
    const kept = log.filter((line) => line.startsWith('keep ')).map((line) => line.slice(5));
    for (const image of kept) writeFileSync(join(into, `${image}.gz`), gzipSync(kernel.shared(image)));
    console.log(`${into}: ${log.length} lines, ${kept.length} images`);
  }
  const counts = join(folder, 'io-counts.json');
  writeFileSync(counts, await recordCounts(kernel));
  console.log(counts);
} finally {
  await kernel.close();
}
