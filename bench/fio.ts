/** Runs of fio, the client of all contestants. */
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { prng } from '../src/lib/prng.ts';
import { CHUNK, own, type Served } from './contestants/contestant.ts';

/** What a client does. */
export interface Load {
  /** fio's words. */
  pattern: 'randread' | 'randwrite' | 'read' | 'write';
  /** Bytes. */
  blockSize: number;
  /** Requests in flight, on each connection. */
  depth: number;
  /** To each volume; 1 if not said. */
  connections?: number;
  /** A fixed amount instead of a fixed time: through all of the span, or at random places, one request to each chunk of it; then a flush. */
  once?: boolean;
  /** A fixed amount, too: as many requests to random places as this part of the chunks of the span. */
  part?: number;
  /** A flush after each write, before the next. */
  flush?: boolean;
  /** Requests a second at most. */
  rate?: number;
}

/** Bytes of a volume; several volumes share it out among each other. */
export interface Span {
  at: number;
  length: number;
}

export interface Figure {
  requests: number;
  /** Requests a second. */
  iops: number;
  /** Bytes a second. */
  bandwidth: number;
  /** Microseconds from submission to completion, of the flush if there is one. */
  p50: number;
  p99: number;
  p999: number;
}

/** Throws with what fio said when it fails, or when a request did. `scratch` is a path that may be written. */
export async function measure(
  served: Served,
  load: Load,
  span: Span,
  seconds: number,
  scratch: string,
): Promise<Figure> {
  const words = [`--rw=${load.pattern}`, `--bs=${load.blockSize}`, `--iodepth=${load.depth}`, '--refill_buffers=0'];
  if (load.connections) words.push(`--numjobs=${load.connections}`);
  const connections = served.volumes.length * (load.connections ?? 1);
  // Threads start one after the other, and each has a time of its own. What all of them do at once shows only between two
  // looks at them in the middle.
  const timed = !load.once && load.part === undefined;
  const looks = connections > 1 && timed;
  const look = Math.round(400 + seconds * 400);
  if (load.flush) words.push(`--${served.flush}=1`);
  if (load.rate) words.push(`--rate_iops=${load.rate}`);
  if (looks) words.push(`--status-interval=${look}ms`);
  const runtime = looks ? 2 * look + 200 : seconds * 1000;
  if (timed) words.push('--time_based', `--runtime=${runtime}ms`, '--norandommap');
  // The flush counts, so that nothing is put off until after the measurement.
  else words.push('--end_fsync=1');
  if (load.part) {
    const requests = Math.ceil((load.part * span.length) / CHUNK / connections);
    words.push(`--io_size=${requests * load.blockSize}`);
  }
  const scattered = load.once && load.pattern === 'randwrite';
  const reports = await fio(served.volumes, span, words, (share, i) =>
    scattered ? onePerChunk(`${scratch}.${i}`, share, load.blockSize) : [],
  );
  const sideOf = ({ jobs: [job] }: Report) => (load.pattern.endsWith('read') ? job.read : job.write);
  const last = reports[reports.length - 1];
  const [job] = last.jobs;
  const side = sideOf(last);
  const iops = looks ? between(reports[0], reports[1], sideOf) : side.iops;
  if (job.error !== 0 || side.total_ios === 0) throw new Error(`fio did no I/O (error ${job.error})`);
  const latency = load.flush ? job.sync.lat_ns : side.clat_ns;
  const percentile = (name: string) => (latency.percentile?.[name] ?? 0) / 1000;
  return {
    requests: side.total_ios,
    iops,
    bandwidth: iops * load.blockSize,
    p50: percentile('50.000000'),
    p99: percentile('99.000000'),
    p999: percentile('99.900000'),
  };
}

/** Requests a second from one report to the next. */
const between = (from: Report, to: Report, sideOf: (report: Report) => Side) =>
  ((sideOf(to).total_ios - sideOf(from).total_ios) * 1000) / (to.timestamp_ms - from.timestamp_ms);

/** Writes this part of all chunks of the span: evenly spread, one after the other, and flushed. */
export async function fill(served: Served, span: Span, part: number): Promise<void> {
  const step = part === 1 ? '' : `:${CHUNK / part - CHUNK}`;
  const amount = (span.length * part) / served.volumes.length;
  const words = [`--rw=write${step}`, `--io_size=${amount}`, '--end_fsync=1'];
  await fio(served.volumes, span, [`--bs=${CHUNK}`, '--iodepth=16', ...words]);
}

/** Writes `amount` bytes in pieces of `blockSize`, each to a place of its own within `size` bytes, and flushes. */
export async function scatter(
  volume: string[],
  pattern: 'write' | 'randwrite',
  size: number,
  amount: number,
  blockSize: number,
): Promise<void> {
  const words = [`--io_size=${amount}`, `--rw=${pattern}`, `--bs=${blockSize}`, '--iodepth=16', '--end_fsync=1'];
  await fio([volume], { at: 0, length: size }, words);
}

/** Reads the first `size` bytes once. */
export async function readThrough(volume: string[], size: number): Promise<void> {
  await fio([volume], { at: 0, length: size }, ['--rw=read', '--bs=1M', '--iodepth=4']);
}

/** A log for fio to replay, as none of its patterns writes to every chunk exactly once in random order. */
function onePerChunk(path: string, { at, length }: Span, blockSize: number): string[] {
  const random = prng(1);
  const chunks = Array.from({ length: length / CHUNK }, (_, i) => i);
  for (let i = chunks.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [chunks[i], chunks[j]] = [chunks[j], chunks[i]];
  }
  const place = (chunk: number) => at + chunk * CHUNK + random.below(CHUNK / blockSize) * blockSize;
  const writes = chunks.map((chunk) => `nbd write ${place(chunk)} ${blockSize}\n`);
  // Were the file closed in the log, fio would not wait for what is in flight then.
  writeFileSync(path, `fio version 2 iolog\nnbd add\nnbd open\n${writes.join('')}`);
  return [`--read_iolog=${path}`, `--io_size=${chunks.length * blockSize}`];
}

interface Latency {
  percentile?: Record<string, number>;
}

interface Side {
  total_ios: number;
  iops: number;
  clat_ns: Latency;
}

interface Job {
  error: number;
  read: Side;
  write: Side;
  sync: { lat_ns: Latency };
}

interface Report {
  timestamp_ms: number;
  jobs: Job[];
}

/**
 * One process for all volumes, with a thread for each connection; reports sum them up, and the last one is on all. `more`:
 * words for a volume of which this span is used.
 */
function fio(
  volumes: string[][],
  { at, length: all }: Span,
  words: string[],
  more = (_share: Span, _volume: number): string[] => [],
): Promise<Report[]> {
  const length = all / volumes.length;
  const jobs = volumes.flatMap((volume, i) => {
    const share = { at: at + i * length, length };
    return ['--name=load', ...volume, `--offset=${share.at}`, `--size=${length}`, ...more(share, i)];
  });
  const common = ['--thread', '--group_reporting', '--randseed=1', '--percentile_list=50:99:99.9'];
  const args = ['--output-format=json', ...common, ...words, ...jobs];
  return new Promise((resolve, reject) => {
    const child = own(spawn('fio', args, { stdio: ['ignore', 'pipe', 'pipe'] }));
    let out = '';
    let complaint = '';
    child.stdout.on('data', (text) => (out += text));
    child.stderr.on('data', (text) => (complaint += text));
    child.once('error', reject);
    child.once('close', (code) => {
      // Notes may come before each.
      const reports = out.match(/^\{$.*?^\}$/gms) ?? [];
      if (code === 0 && reports.length > 0) resolve(reports.map((report) => JSON.parse(report)));
      else reject(new Error(`fio ${args.join(' ')} ended with ${code}: ${complaint}${out.slice(0, 4096)}`));
    });
  });
}
