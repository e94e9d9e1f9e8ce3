/** Measures rows: the contestants take turns, so that a machine that slows down slows all of them. */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { cpuSeconds } from './cpu.ts';
import { type Figure, fill, measure, type Span } from './fio.ts';
import { makeImage } from './image.ts';
import type { Entrant, Row } from './rows.ts';
import { scratchIn } from './scratch.ts';

export interface Options {
  folders: Record<Row['where'], string>;
  /** All spans are multiplied by it. */
  scale: number;
  runs: number;
  /** Of each measurement that has no fixed amount. */
  seconds: number;
}

/** The median of each, by itself, over the runs. */
export interface Line extends Figure {
  name: string;
  /** Microseconds of the server's CPU for each request. */
  cpu: number;
  runs: (Figure & { cpu: number })[];
}

export interface Result {
  row: Row;
  /** By entrant. */
  lines: Line[];
}

export async function measureRows(
  rows: readonly Row[],
  options: Options,
  progress: (text: string) => void,
): Promise<Result[]> {
  const folders = { memory: scratchIn(options.folders.memory), disk: scratchIn(options.folders.disk) };
  try {
    const results: Result[] = [];
    for (const row of rows) {
      const { thin, entrants } = row;
      const all = thin ? { ...row, entrants: [...entrants, { contestant: thin }] } : row;
      results.push(...apart(row, await measureRow(all, folders[row.where].path, options, progress)));
    }
    return results;
  } finally {
    for (const folder of Object.values(folders)) folder.remove();
  }
}

/** A row, and that of the thin volume, whose line is the last. */
function apart(row: Row, lines: Line[]): Result[] {
  const { thin, entrants, workload } = row;
  if (!thin) return [{ row, lines }];
  const others = lines.slice(1, entrants.length);
  return [
    { row, lines: [lines[0], ...others] },
    {
      row: { ...row, workload: `${workload}, thin`, entrants: [{ contestant: thin }, ...entrants.slice(1)] },
      lines: [lines[entrants.length], ...others],
    },
  ];
}

/** Made once for all rows that use as much of it. */
function imageFor({ length }: Span, folder: string): string {
  const path = join(folder, `${length}.raw`);
  // Beyond the span there is room to warm up.
  if (!existsSync(path)) makeImage(path, length * 1.25);
  return path;
}

async function measureRow(
  row: Row,
  parent: string,
  options: Options,
  progress: (text: string) => void,
): Promise<Line[]> {
  const span = { at: 0, length: row.span * options.scale };
  const image = imageFor(span, parent);
  const sessions: (Session | undefined)[] = [];
  const runs: Line['runs'][] = row.entrants.map(() => []);
  try {
    for (let run = 0; run < options.runs; run++)
      for (const [i, entrant] of row.entrants.entries()) {
        progress(`${row.workload}, run ${run + 1} of ${options.runs}: ${entrant.name ?? entrant.contestant.name}`);
        const session = (sessions[i] ??= await open(row, entrant, span, image, parent));
        runs[i].push(await session.measure(options.seconds));
        if (firstWrites(row)) {
          sessions[i] = undefined;
          await session.close();
        }
      }
  } finally {
    for (const session of sessions) await session?.close();
  }
  return row.entrants.map(({ name, contestant }, i) => ({
    name: name ?? contestant.name,
    ...medians(runs[i]),
    runs: runs[i],
  }));
}

/** A contestant at work on a store of its own. */
interface Session {
  measure(seconds: number): Promise<Figure & { cpu: number }>;
  close(): Promise<void>;
}

async function open(row: Row, entrant: Entrant, span: Span, image: string, parent: string): Promise<Session> {
  const folder = mkdtempSync(join(parent, 'store-'));
  const scratch = join(folder, 'fio.log');
  const served = await entrant.contestant.serve(image, folder);
  const load = { ...row.load, ...entrant.load };
  const others = { ...served, volumes: served.others ?? [] };
  const session = {
    async measure(seconds: number) {
      const other = entrant.beside && measure(others, entrant.beside, span, seconds, scratch);
      const before = served.pid ? cpuSeconds(served.pid) : 0;
      const figure = await measure(served, load, span, seconds, scratch);
      const after = served.pid ? cpuSeconds(served.pid) : 0;
      await other;
      return { ...figure, cpu: ((after - before) * 1e6) / figure.requests };
    },
    async close() {
      await served.stop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
  try {
    if (row.filled > 0 && entrant.contestant.copiesOnWrite) await fill(served, span, row.filled);
    // A server that has just started is not as fast as it will be. Beyond the span, nothing is used up.
    if (firstWrites(row)) await measure(served, load, { at: span.length, length: span.length / 4 }, 0.3, scratch);
    return session;
  } catch (error) {
    await session.close();
    throw error;
  }
}

/** A first write is one only once: then each run has an empty store, else all runs of a contestant the same. */
const firstWrites = ({ load, filled }: Row) => load.pattern.endsWith('write') && filled < 1;

function medians(runs: Line['runs']): Line['runs'][number] {
  const median = (of: keyof Line['runs'][number]) =>
    runs.map((run) => run[of]).sort((a, b) => a - b)[Math.floor((runs.length - 1) / 2)];
  return {
    requests: median('requests'),
    iops: median('iops'),
    bandwidth: median('bandwidth'),
    p50: median('p50'),
    p99: median('p99'),
    p999: median('p999'),
    cpu: median('cpu'),
  };
}
