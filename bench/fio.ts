/** One run of fio against an NBD export. */
import { spawn } from 'node:child_process';

/** What a client does. Data: a new row of a table is one more of these. */
export interface Workload {
  title: string;
  /** fio's words. */
  pattern: 'randread' | 'randwrite' | 'read' | 'write';
  /** Bytes. */
  blockSize: number;
  queueDepth: number;
}

export interface Figure {
  /** Requests a second. */
  iops: number;
  /** Bytes a second. */
  bandwidth: number;
  /** Microseconds from submission to completion. */
  p50: number;
  p99: number;
}

/** Throws with what fio said when it fails, or when a request did. */
export async function measure(uri: string, load: Workload, size: number, seconds: number): Promise<Figure> {
  const job = await fio([
    ...['--name=load', '--ioengine=nbd', `--uri=${uri}`, `--size=${size}`, `--rw=${load.pattern}`],
    ...[`--bs=${load.blockSize}`, `--iodepth=${load.queueDepth}`, '--time_based', `--runtime=${seconds * 1000}ms`],
    ...['--norandommap', '--randseed=1', '--refill_buffers=0'],
  ]);
  const side = load.pattern.endsWith('read') ? job.read : job.write;
  if (job.error !== 0 || side.total_ios === 0) throw new Error(`fio did no I/O on ${uri} (error ${job.error})`);
  const percentile = (name: string) => (side.clat_ns.percentile?.[name] ?? 0) / 1000;
  return {
    iops: side.iops,
    bandwidth: side.bw_bytes,
    p50: percentile('50.000000'),
    p99: percentile('99.000000'),
  };
}

/** Writes every second stretch of `chunk` bytes, so that half of a snapshot is its own. */
export async function fillHalf(uri: string, size: number, chunk: number): Promise<void> {
  await fio([
    ...['--name=fill', '--ioengine=nbd', `--uri=${uri}`, `--size=${size}`, `--io_size=${size / 2}`],
    ...[`--rw=write:${chunk}`, `--bs=${chunk}`, '--iodepth=16', '--end_fsync=1'],
  ]);
}

/** Writes `amount` bytes in pieces of `blockSize`, each to a place of its own within `size` bytes, and flushes. */
export async function fill(
  uri: string,
  pattern: 'write' | 'randwrite',
  size: number,
  amount: number,
  blockSize: number,
): Promise<void> {
  await fio([
    ...['--name=fill', '--ioengine=nbd', `--uri=${uri}`, `--size=${size}`, `--io_size=${amount}`, `--rw=${pattern}`],
    ...[`--bs=${blockSize}`, '--iodepth=16', '--randseed=1', '--end_fsync=1'],
  ]);
}

/** Reads the first `size` bytes once. */
export async function readThrough(uri: string, size: number): Promise<void> {
  const load = ['--rw=read', '--bs=1M', '--iodepth=4'];
  await fio(['--name=read', '--ioengine=nbd', `--uri=${uri}`, `--size=${size}`, ...load]);
}

interface Side {
  total_ios: number;
  iops: number;
  bw_bytes: number;
  clat_ns: { percentile?: Record<string, number> };
}

interface Job {
  error: number;
  read: Side;
  write: Side;
}

function fio(args: string[]): Promise<Job> {
  return new Promise((resolve, reject) => {
    const child = spawn('fio', ['--output-format=json', ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    let out = '';
    let complaint = '';
    child.stdout.on('data', (text) => (out += text));
    child.stderr.on('data', (text) => (complaint += text));
    child.once('error', reject);
    child.once('close', (code) => {
      if (code !== 0) return reject(new Error(`fio ${args.join(' ')} ended with ${code}: ${complaint}${out}`));
      // fio may print notes before the document.
      resolve(JSON.parse(out.slice(out.indexOf('{'))).jobs[0]);
    });
  });
}
