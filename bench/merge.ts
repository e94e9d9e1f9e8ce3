/**
 * How fast do the changes of a snapshot flow back into their image, beside a plain copy of the same bytes and
 * `qemu-img commit` of the same changes in a qcow2 overlay, and what does a reader of the image notice of it? One after
 * the other on one filesystem, in one run, each from files that are on the disk and not in the page cache.
 */
import { execFileSync, fork } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, statfsSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { prng } from '../src/lib/prng.ts';
import { serving, start } from './contestants/contestant.ts';
import { fill, measure, readThrough } from './fio.ts';

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

/** What fits: image, store or overlay, and some room, on what the folder has free. */
export function fitting(folder: string, changes: number): number {
  const { bavail, bsize } = statfsSync(folder);
  const most = Math.floor((bavail * bsize * 0.9) / 3.2 / 2 ** 20) * 2 ** 20;
  return Math.min(changes, most);
}

export async function merging(options: MergeOptions, progress: (text: string) => void): Promise<MergeRow[]> {
  const folder = mkdtempSync(join(options.folder, 'dmkit-merge-'));
  try {
    const image = join(folder, 'image.raw');
    progress('merge: making the image');
    makeImage(image, 2 * options.changes);
    const rows = mergeCases.map(
      (one): MergeRow => ({ case: one, copy: [], merge: [], commit: [], idle: [], during: [], early: 0 }),
    );
    for (let run = 0; run < options.runs; run++)
      for (const row of rows)
        await measureOne(row, image, folder, options, (what) =>
          progress(`merge, ${row.case.title}, run ${run + 1} of ${options.runs}: ${what}`),
        );
    return rows;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function measureOne(
  row: MergeRow,
  image: string,
  parent: string,
  options: MergeOptions,
  progress: (text: string) => void,
): Promise<void> {
  const folder = join(parent, 'store');
  const inNewFolder = async (work: () => Promise<void>) => {
    mkdirSync(folder);
    try {
      await work();
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  };
  await inNewFolder(async () => {
    const cow = join(folder, 'store.cow');
    progress('writing the changes');
    await withServer(row.case, image, cow, folder, (uri) => write(uri('snapshot'), row.case, options));
    progress('copy');
    row.copy.push(timed([image, cow], () => copy(cow, image, options.changes)));
    progress('merge');
    row.merge.push(
      timed([image, cow], () => run(process.execPath, [SIDE, 'merge', image, cow, String(row.case.chunk)])),
    );
  });
  await inNewFolder(async () => {
    const overlay = join(folder, 'overlay.qcow2');
    progress('writing the changes to an overlay');
    await writeOverlay(row.case, image, overlay, folder, options);
    progress('qemu-img commit');
    row.commit.push(
      timed([image, overlay], () => {
        run('qemu-img', ['commit', '-q', '-f', 'qcow2', overlay]);
        run('sync', [image]);
      }),
    );
  });
  await inNewFolder(async () => {
    const cow = join(folder, 'store.cow');
    progress('writing the changes again');
    await withServer(row.case, image, cow, folder, (uri) => write(uri('snapshot'), row.case, options));
    drop([image, cow]);
    await withServer(row.case, image, cow, folder, (uri, ask) => readMeanwhile(row, uri, ask, options, progress));
  });
}

/** Reads a stretch of the origin that is in the page cache, wherever its chunks are: first alone, then beside the merge. */
async function readMeanwhile(
  row: MergeRow,
  uri: (name: string) => string,
  ask: (word: string) => Promise<number>,
  { changes, seconds }: MergeOptions,
  progress: (text: string) => void,
): Promise<void> {
  const size = Math.min(2 ** 30, changes);
  const load = { title: '', pattern: 'randread', blockSize: 4096, queueDepth: 32 } as const;
  progress('reads, warming up');
  for (const name of ['origin', 'snapshot']) await readThrough(uri(name), size);
  progress('reads');
  row.idle.push((await measure(uri('origin'), load, size, seconds)).iops);
  progress('reads beside the merge');
  await ask('merge');
  row.during.push((await measure(uri('origin'), load, size, seconds)).iops);
  if ((await ask('progress')) === 0) row.early++;
  while ((await ask('progress')) > 0) await pause(100);
}

const write = (uri: string, { random }: MergeCase, { changes }: MergeOptions) =>
  fill(uri, random ? 'randwrite' : 'write', random ? 2 * changes : changes, changes, WRITE);

async function withServer(
  { chunk }: MergeCase,
  image: string,
  cow: string,
  folder: string,
  use: (uri: (name: string) => string, ask: (word: string) => Promise<number>) => Promise<void>,
): Promise<void> {
  const socket = join(folder, 's');
  const args = ['serve', image, cow, String(chunk), socket];
  const child = fork(SIDE, args, { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
  const served = await serving(child, `${SIDE} ${args.join(' ')}`, socket, '');
  const ask = (word: string) =>
    new Promise<number>((resolve, reject) => {
      child.once('message', (answer) => resolve(answer as number));
      child.once('exit', () => reject(new Error(`The server ended before it had answered ${word}`)));
      child.send(word);
    });
  try {
    await use((name) => `nbd+unix:///${name}?socket=${socket}`, ask);
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
  run('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', image, '-o', `cluster_size=${WRITE}`, overlay]);
  const served = await start(socket, `nbd+unix:///?socket=${socket}`, 'qemu-nbd', [
    ...['--socket', socket, '--format', 'qcow2', '--persistent', overlay],
  ]);
  try {
    await write(served.uri, one, options);
  } finally {
    await served.stop();
  }
}

/** Over what is there, as a merge writes, which spares the filesystem the allocation. */
const copy = (from: string, to: string, length: number) =>
  run('dd', [
    `if=${from}`,
    `of=${to}`,
    'bs=1M',
    `count=${Math.ceil(length / 2 ** 20)}`,
    'conv=notrunc,fsync',
    'status=none',
  ]);

const run = (command: string, args: string[]) => {
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
    run('dd', ['if=/dev/null', `of=${file}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none']);
}

/** No zeroes and no holes: all of it is allocated. */
function makeImage(path: string, size: number): void {
  const random = prng(2);
  const block = Buffer.alloc(1 << 20);
  for (let at = 0; at < block.length; at += 4) block.writeUInt32LE(random.below(2 ** 32), at);
  const file = openSync(path, 'w');
  for (let at = 0; at < size; at += block.length) writeSync(file, block, 0, Math.min(block.length, size - at), at);
  closeSync(file);
}
