/**
 * How fast is a snapshot, and its origin, over NBD beside a qcow2 overlay of qemu-nbd and the cow filter of nbdkit?
 * Same image, same client, same run, one after the other; each figure is the median of several runs.
 */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { CHUNK, type Contestant, type Side } from './contestants/contestant.ts';
import { dmkit } from './contestants/dmkit.ts';
import { nbdkit } from './contestants/nbdkit.ts';
import { qemuNbd } from './contestants/qemu-nbd.ts';
import { type Figure, fillHalf, measure, type Workload } from './fio.ts';
import { makeImage } from './image.ts';

export const workloads: Workload[] = [
  { title: '4 KiB random read, QD 32', pattern: 'randread', blockSize: 4096, queueDepth: 32 },
  { title: '4 KiB random read, QD 1', pattern: 'randread', blockSize: 4096, queueDepth: 1 },
  { title: '4 KiB random write, QD 32', pattern: 'randwrite', blockSize: 4096, queueDepth: 32 },
  { title: '4 KiB random write, QD 1', pattern: 'randwrite', blockSize: 4096, queueDepth: 1 },
  { title: '128 KiB sequential read', pattern: 'read', blockSize: 131072, queueDepth: 8 },
  { title: '128 KiB sequential write', pattern: 'write', blockSize: 131072, queueDepth: 8 },
];

export const contestants: Contestant[] = [dmkit, qemuNbd, nbdkit];
export const sides: Side[] = ['snapshot', 'origin'];

export interface Options {
  /** Where image and stores lie. */
  folder: string;
  /** Bytes, a multiple of two chunks. */
  imageSize: number;
  runs: number;
  /** Of each measurement. */
  seconds: number;
}

export interface Row {
  side: Side;
  workload: Workload;
  /** By contestant, in their order: the median run by IOPS. */
  figures: Figure[];
  /** IOPS of every run, by contestant. */
  runs: number[][];
}

export async function besideOthers(options: Options, progress: (text: string) => void): Promise<Row[]> {
  const folder = mkdtempSync(join(options.folder, 'dmkit-bench-'));
  try {
    const image = join(folder, 'image.raw');
    makeImage(image, options.imageSize);
    const rows: Row[] = [];
    for (const side of sides)
      for (const workload of workloads) {
        const figures: Figure[][] = contestants.map(() => []);
        // The contestants take turns, so that a machine that slows down slows all of them.
        for (let run = 0; run < options.runs; run++)
          for (const [i, contestant] of contestants.entries()) {
            progress(`${side}, ${workload.title}, run ${run + 1} of ${options.runs}: ${contestant.name}`);
            figures[i].push(await measureOne(contestant, side, workload, image, folder, options));
          }
        rows.push({
          side,
          workload,
          figures: figures.map(median),
          runs: figures.map((runs) => runs.map(({ iops }) => Math.round(iops))),
        });
      }
    return rows;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Every measurement starts with an empty store; reads find half of the chunks in it. */
async function measureOne(
  contestant: Contestant,
  side: Side,
  workload: Workload,
  image: string,
  parent: string,
  { imageSize, seconds }: Options,
): Promise<Figure> {
  const folder = join(parent, 'store');
  mkdirSync(folder);
  try {
    const served = await contestant.serve(side, image, folder);
    try {
      if (side === 'snapshot' && workload.pattern.endsWith('read')) await fillHalf(served.uri, imageSize, CHUNK);
      return await measure(served.uri, workload, imageSize, seconds);
    } finally {
      await served.stop();
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function median(figures: Figure[]): Figure {
  const sorted = [...figures].sort((a, b) => a.iops - b.iops);
  return sorted[Math.floor((sorted.length - 1) / 2)];
}
