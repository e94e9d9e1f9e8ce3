/**
 * What snapshots and deletes of thin volumes cost that have little or much mapped: metadata with that many mappings is made by
 * what `dmkit thin restore` is made of, and a server has the pool. Beside them, what qemu-img does with a qcow2 file that has as
 * much allocated. Everything lies on a disk, data is sparse.
 */
import { execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { FileDevice } from '../src/device/file.ts';
import { restore } from '../src/stores/thin/restore.ts';
import { SECTOR } from '../src/units.ts';
import { CHUNK, nbd, type Served, serving } from './contestants/contestant.ts';
import { createOverlay } from './contestants/qemu-nbd.ts';
import { createSnap, deleteThin, volume } from './contestants/thin-pool.ts';
import { type Figure, type Load, measure, readThrough } from './fio.ts';
import { grid, yesOrNo } from './report.ts';
import { scratchIn } from './scratch.ts';
import type { Options } from './table.ts';

const SERVER = join(import.meta.dirname, 'contestants/dmkit-server.js');
/** Bytes of the volume that is read meanwhile. */
const OTHER = 2 ** 27;
/** Blocks of data that lie side by side, but those of the other volume: 4 MiB. */
const RUN = 64;
/** Bytes: a snapshot of 1 TiB takes qemu-img many seconds. */
const QEMU_MOST = 2 ** 36;
const reads: Load = { pattern: 'randread', blockSize: 4096, depth: 8 };

/** Milliseconds until they are durable. */
interface Times {
  snapshot: number;
  deleteSnapshot: number;
}

export interface Operations {
  /** Bytes. */
  mapped: number;
  dmkit: Times & {
    /** From the start of the server. */
    opened: number;
    /** Of the volume, its last owner. */
    deleteAll: number;
    /** Reads of another volume of the pool, before that and meanwhile. */
    alone: Figure;
    meanwhile: Figure;
    /** Bytes that the server had in memory at most. */
    memory: number;
  };
  /** Of the internal snapshots of a file. `overlay`: a new file over it. Absent where it would take too long. */
  qemu?: Times & { overlay: number };
}

/** `sizes`: bytes that are mapped. Of short operations the median of `runs`; `seconds` of reads. */
export async function thinOperations(
  parent: string,
  sizes: readonly number[],
  { runs, seconds }: Pick<Options, 'runs' | 'seconds'>,
  progress: (text: string) => void,
): Promise<Operations[]> {
  const scratch = scratchIn(parent);
  const found: Operations[] = [];
  try {
    for (const mapped of sizes) {
      progress(`thin operations, ${sizeOf(mapped)} mapped`);
      const folder = join(scratch.path, String(mapped));
      mkdirSync(folder);
      const dmkit = await inPool(folder, mapped, runs, seconds);
      found.push({ mapped, dmkit, qemu: mapped <= QEMU_MOST ? inQcow2(folder, mapped, runs) : undefined });
      rmSync(folder, { recursive: true });
    }
    return found;
  } finally {
    scratch.remove();
  }
}

async function inPool(folder: string, mapped: number, runs: number, seconds: number): Promise<Operations['dmkit']> {
  const size = mapped + OTHER;
  const metadata = sparse(join(folder, 'pool.meta'), size / 2048 + 2 ** 24);
  const data = sparse(join(folder, 'pool.data'), size);
  await makeMetadata(metadata, mapped);
  const socket = join(folder, 's');
  const pool = `pool 0 ${size / SECTOR} thin-pool ${metadata} ${data} ${CHUNK / SECTOR} 0`;
  const from = performance.now();
  const child = fork(SERVER, [socket, pool, volume(2, OTHER)], {
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
    env: { ...process.env, UV_THREADPOOL_SIZE: '64' },
  });
  const { pid, stop } = await serving(child, SERVER, socket);
  const gone = new AbortController();
  child.once('exit', () => gone.abort());
  /** Resolves with the milliseconds that the server took. */
  const ask = async (words: string): Promise<number> => {
    child.send(words);
    const [took] = await once(child, 'message', { signal: gone.signal });
    return took;
  };
  try {
    const opened = performance.now() - from;
    const snapshot: number[] = [];
    const deleteSnapshot: number[] = [];
    for (let run = 0; run < runs; run++) {
      snapshot.push(await ask(createSnap(3, 1)));
      deleteSnapshot.push(await ask(deleteThin(3)));
    }
    const other: Served = { volumes: [nbd(socket, 'thin2')], flush: 'fsync', stop };
    const read = () => measure(other, reads, { at: 0, length: OTHER }, seconds, folder);
    await readThrough(other.volumes[0], OTHER);
    await read();
    const alone = await read();
    const [meanwhile, deleteAll] = await Promise.all([read(), ask(deleteThin(1))]);
    const memory = Number(/^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]) * 1024;
    const times = { opened, snapshot: median(snapshot), deleteSnapshot: median(deleteSnapshot), deleteAll };
    return { ...times, alone, meanwhile, memory };
  } finally {
    await stop();
  }
}

/** Volume 1 with so many bytes mapped, all over the data device, and volume 2, the other. */
async function makeMetadata(path: string, mapped: number): Promise<void> {
  const blocks = mapped / CHUNK;
  const others = OTHER / CHUNK;
  const device = (id: number, count: number) =>
    `<device dev_id="${id}" mapped_blocks="${count}" transaction="0" creation_time="0" snap_time="0">\n`;
  const range = (virtual: number, data: number, length: number) =>
    `<range_mapping origin_begin="${virtual}" data_begin="${data}" length="${length}" time="0"/>\n`;
  async function* xml() {
    yield `<superblock uuid="" time="0" transaction="0" flags="0" version="2" data_block_size="${CHUNK / SECTOR}" nr_data_blocks="${blocks + others}">\n`;
    yield device(1, blocks);
    const runs = blocks / RUN;
    // 5003 is a prime: each place comes once.
    for (let run = 0; run < runs; run++) yield range(run * RUN, ((run * 5003) % runs) * RUN, RUN);
    yield `</device>\n${device(2, others)}${range(0, blocks, others)}</device>\n</superblock>\n`;
  }
  const file = await FileDevice.open(path, 'rw');
  await restore(file, xml);
  await file.close();
}

function inQcow2(folder: string, mapped: number, runs: number): NonNullable<Operations['qemu']> {
  const path = join(folder, 'full.qcow2');
  const options = `cluster_size=${CHUNK},preallocation=metadata`;
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', options, path, String(mapped)]);
  const snapshots = (word: string) => timed(() => execFileSync('qemu-img', ['snapshot', word, 'before', path]));
  const times = Array.from({ length: runs }, () => ({
    snapshot: snapshots('-c'),
    deleteSnapshot: snapshots('-d'),
    overlay: timed(() => createOverlay(join(folder, 'new.qcow2'), { path, format: 'qcow2' })),
  }));
  const middle = (name: keyof (typeof times)[0]) => median(times.map((each) => each[name]));
  return { snapshot: middle('snapshot'), deleteSnapshot: middle('deleteSnapshot'), overlay: middle('overlay') };
}

function sparse(path: string, size: number): string {
  writeFileSync(path, '');
  truncateSync(path, size);
  return path;
}

function timed(work: () => unknown): number {
  const from = performance.now();
  work();
  return performance.now() - from;
}

const median = (values: number[]) => values.sort((a, b) => a - b)[Math.floor((values.length - 1) / 2)];

/** Goals in milliseconds, whatever is mapped: "constant" is no more than twice what it takes where least is. */
const MS_MOST = 10;
const GROWS_MOST = 2;

const sizeOf = (bytes: number) => (bytes < 2 ** 40 ? `${bytes / 2 ** 30} GiB` : `${bytes / 2 ** 40} TiB`);
const ms = (value?: number) => (value === undefined ? '' : `${value < 100 ? value.toFixed(1) : Math.round(value)} ms`);

export function thinOperationsTable(found: readonly Operations[]): string {
  const short = ({ dmkit }: Operations) =>
    Math.max(dmkit.snapshot, dmkit.deleteSnapshot) <= MS_MOST &&
    dmkit.snapshot <= GROWS_MOST * found[0].dmkit.snapshot &&
    dmkit.deleteSnapshot <= GROWS_MOST * found[0].dmkit.deleteSnapshot;
  const times = grid(
    ['mapped', 'snapshot', 'qemu-img', 'new overlay', 'delete of it', 'qemu-img', 'goal', 'met'],
    found.map((each) => [
      sizeOf(each.mapped),
      ms(each.dmkit.snapshot),
      ms(each.qemu?.snapshot),
      ms(each.qemu?.overlay),
      ms(each.dmkit.deleteSnapshot),
      ms(each.qemu?.deleteSnapshot),
      `≤ ${MS_MOST} ms, constant`,
      yesOrNo(short(each)),
    ]),
  );
  const rest = grid(
    ['mapped', 'opened in', 'volume deleted in', 'reads of another meanwhile', 'p99.9', 'memory'],
    found.map(({ mapped, dmkit: { opened, deleteAll, alone, meanwhile, memory } }) => [
      sizeOf(mapped),
      ms(opened),
      ms(deleteAll),
      `${Math.round(meanwhile.iops).toLocaleString('en')} IOPS (${(meanwhile.iops / alone.iops).toFixed(2)})`,
      `${Math.round(meanwhile.p999)} µs (${Math.round(alone.p999)} µs)`,
      `${Math.round(memory / 2 ** 20)} MiB`,
    ]),
  );
  return [
    ...times,
    '',
    'Until they are durable. qemu-img: internal snapshots of a qcow2 file with as much allocated, and a new file over it, each with the start of a program.',
    '',
    ...rest,
    '',
    'Opened: from the start of the server. In brackets: compared to the same reads before.',
    '',
  ].join('\n');
}
