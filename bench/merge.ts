/**
 * How fast do the changes of a snapshot flow back into their image, beside a plain copy of the same bytes and
 * `qemu-img commit` of the same changes in a qcow2 overlay, and what does a reader of the image notice of it? One after
 * the other on one filesystem, in one run, each from files that are on the disk and not in the page cache.
 */
import { execFileSync, fork } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readSync, rmSync, statfsSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { areaChunk, layoutOf } from '../src/formats/exception-store.ts';
import { SECTOR, sector } from '../src/units.ts';
import { nbd, type Served, serving, start } from './contestants/contestant.ts';
import { type Load, measure, readThrough, scatter } from './fio.ts';
import { makeImage } from './image.ts';
import { scratchIn } from './scratch.ts';

const SIDE = join(import.meta.dirname, 'merge-side.js');
/** Bytes: a write, and a cluster of the overlay. */
const WRITE = 65536;

export interface MergeCase {
  title: string;
  /** Bytes. */
  chunk: number;
  random: boolean;
}

export const mergeCases: MergeCase[] = [
  { title: '64 KiB chunks, one after the other', chunk: 65536, random: false },
  { title: '16 KiB chunks, one after the other', chunk: 16384, random: false },
  { title: '64 KiB chunks, anywhere', chunk: 65536, random: true },
  { title: '16 KiB chunks, 64 KiB anywhere', chunk: 16384, random: true },
];

export interface MergeOptions {
  cases: readonly MergeCase[];
  folder: string;
  /** Bytes of changes; the image has twice as many. */
  changes: number;
  runs: number;
  /** Of each measurement of reads. */
  seconds: number;
}

/** Seconds of each run, and IOPS. */
export interface MergeRow {
  case: MergeCase;
  copy: number[];
  merge: number[];
  commit: number[];
  /** Reads of the origin before the merge and meanwhile. */
  idle: number[];
  during: number[];
  /** Runs whose merge had ended before the reader had. */
  early: number;
}

/** What fits: image, store, overlay and some room, on what the folder has free. */
export function fitting(folder: string, changes: number): number {
  const { bavail, bsize } = statfsSync(folder);
  const most = Math.floor((bavail * bsize * 0.9) / 4.2 / 2 ** 20) * 2 ** 20;
  return Math.min(changes, most);
}

export async function merging(options: MergeOptions, progress: (text: string) => void): Promise<MergeRow[]> {
  const scratch = scratchIn(options.folder);
  const folder = scratch.path;
  try {
    const image = join(folder, 'image.raw');
    progress('merge: making the image');
    makeImage(image, 2 * options.changes);
    const rows: MergeRow[] = [];
    for (const one of options.cases) rows.push(await measureCase(one, image, folder, options, progress));
    return rows;
  } finally {
    scratch.remove();
  }
}

/** The changes are written once, to a store and to an overlay; what a merge takes off the list is put back on it for the next. */
async function measureCase(
  one: MergeCase,
  image: string,
  parent: string,
  options: MergeOptions,
  report: (text: string) => void,
): Promise<MergeRow> {
  const row: MergeRow = { case: one, copy: [], merge: [], commit: [], idle: [], during: [], early: 0 };
  const folder = join(parent, 'store');
  const cow = join(folder, 'store.cow');
  const overlay = join(folder, 'overlay.qcow2');
  mkdirSync(folder);
  try {
    report(`merge, ${one.title}: writing the changes`);
    await withServer(one, image, cow, folder, (volume) => write(volume('snapshot'), one, options));
    await writeOverlay(one, image, overlay, folder, options);
    const restore = keepAreas(cow, one.chunk);
    for (let run = 1; run <= options.runs; run++) {
      const progress = (what: string) => report(`merge, ${one.title}, run ${run} of ${options.runs}: ${what}`);
      progress('copy');
      row.copy.push(timed([image, cow], () => copy(cow, image, options.changes)));
      progress('merge');
      row.merge.push(
        timed([image, cow], () => execute(process.execPath, [SIDE, 'merge', image, cow, String(one.chunk)])),
      );
      restore();
      progress('qemu-img commit');
      // -d: the overlay is not emptied afterwards.
      row.commit.push(
        timed([image, overlay], () => {
          execute('qemu-img', ['commit', '-q', '-d', '-f', 'qcow2', overlay]);
          execute('sync', [image]);
        }),
      );
      drop([image, cow]);
      await withServer(one, image, cow, folder, (volume, ask) => readMeanwhile(row, volume, ask, options, progress));
      restore();
    }
    return row;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Returns what puts all exceptions that the store has now back on its list. Their data stays where it is. */
function keepAreas(cow: string, chunk: number): () => void {
  const layout = layoutOf(sector(chunk / SECTOR));
  const { size } = statSync(cow);
  const areas: Buffer[] = [];
  const access = (flags: string, move: (file: number, area: number, at: number) => void) => {
    const file = openSync(cow, flags);
    for (let i = 0, at = 0; (at = areaChunk(layout, i) * chunk) < size; i++) move(file, i, at);
    closeSync(file);
  };
  access('r', (file, i, at) => {
    areas[i] = Buffer.alloc(chunk);
    readSync(file, areas[i], 0, chunk, at);
  });
  return () => access('r+', (file, i, at) => writeSync(file, areas[i], 0, chunk, at));
}

/** Reads a stretch of the origin that is in the page cache, wherever its chunks are: first alone, then beside the merge. */
async function readMeanwhile(
  row: MergeRow,
  volume: (name: string) => string[],
  ask: (word: string) => Promise<number>,
  { changes, seconds }: MergeOptions,
  progress: (text: string) => void,
): Promise<void> {
  const size = Math.min(2 ** 30, changes);
  const load: Load = { pattern: 'randread', blockSize: 4096, depth: 32 };
  const origin: Served = { volumes: [volume('origin')], flush: 'fsync', stop: async () => {} };
  const reads = async () => (await measure(origin, load, { at: 0, length: size }, seconds, '')).iops;
  progress('reads, warming up');
  for (const name of ['origin', 'snapshot']) await readThrough(volume(name), size);
  progress('reads');
  row.idle.push(await reads());
  progress('reads beside the merge');
  await ask('merge');
  row.during.push(await reads());
  if ((await ask('progress')) === 0) row.early++;
  while ((await ask('progress')) > 0) await pause(100);
}

const write = (volume: string[], { random }: MergeCase, { changes }: MergeOptions) =>
  scatter(volume, random ? 'randwrite' : 'write', random ? 2 * changes : changes, changes, WRITE);

async function withServer(
  { chunk }: MergeCase,
  image: string,
  cow: string,
  folder: string,
  use: (volume: (name: string) => string[], ask: (word: string) => Promise<number>) => Promise<void>,
): Promise<void> {
  const socket = join(folder, 's');
  const args = ['serve', image, cow, String(chunk), socket];
  const child = fork(SIDE, args, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
  const served = await serving(child, `${SIDE} ${args.join(' ')}`, socket);
  const ask = (word: string) =>
    new Promise<number>((resolve, reject) => {
      const gone = () => reject(new Error(`The server ended before it had answered ${word}`));
      child.once('exit', gone);
      child.once('message', (answer) => {
        child.off('exit', gone);
        resolve(answer as number);
      });
      child.send(word);
    });
  try {
    await use((name) => nbd(socket, name), ask);
  } finally {
    await served.stop();
  }
}

async function writeOverlay(
  one: MergeCase,
  image: string,
  overlay: string,
  folder: string,
  options: MergeOptions,
): Promise<void> {
  const socket = join(folder, 's');
  execute('qemu-img', [
    'create',
    '-q',
    '-f',
    'qcow2',
    '-F',
    'raw',
    '-b',
    image,
    '-o',
    `cluster_size=${WRITE}`,
    overlay,
  ]);
  const served = await start(socket, [nbd(socket)], 'qemu-nbd', [
    ...['--socket', socket, '--format', 'qcow2', '--persistent', overlay],
  ]);
  try {
    await write(served.volumes[0], one, options);
  } finally {
    await served.stop();
  }
}

/** Over what is there, as a merge writes, which spares the filesystem the allocation. */
const copy = (from: string, to: string, length: number) =>
  execute('dd', [
    `if=${from}`,
    `of=${to}`,
    'bs=1M',
    `count=${Math.ceil(length / 2 ** 20)}`,
    'conv=notrunc,fsync',
    'status=none',
  ]);

const execute = (command: string, args: string[]) => {
  execFileSync(command, args, { stdio: ['ignore', 'ignore', 'pipe'] });
};

/** Seconds of work on files that are on the disk and not in the page cache. */
function timed(files: readonly string[], work: () => void): number {
  drop(files);
  const from = performance.now();
  work();
  return (performance.now() - from) / 1000;
}

function drop(files: readonly string[]): void {
  for (const file of files)
    execute('dd', ['if=/dev/null', `of=${file}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none']);
}
