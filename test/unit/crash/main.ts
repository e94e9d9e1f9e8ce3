/**
 * `npm run crash -- [--seeds N] [--first N] [--kind KIND] [--bail]`: many seeds, on every core; 2,000 unless told
 * otherwise. `--bail` ends with the first that fails.
 * `npm run crash -- --seed N [--kind KIND] [--cut N]`: one of them again, with everything that happened up to the power
 * cut, what was left on the disks, and what came of it. Without `--cut`: until something is wrong.
 */
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { KINDS, kindOf } from './kinds.ts';
import { runSeed } from './run.ts';

/** Seeds given to a worker at once. */
const SHARE = 10;

interface Task {
  first: number;
  last: number;
  kind: string | undefined;
}

interface Done {
  cuts: number;
  failures: string[];
}

async function runTask({ first, last, kind }: Task): Promise<Done> {
  const done: Done = { cuts: 0, failures: [] };
  for (let seed = first; seed <= last; seed++) {
    try {
      done.cuts += await runSeed(kind ?? kindOf(seed), seed);
    } catch (error) {
      done.failures.push((error as Error).message);
    }
  }
  return done;
}

function work(): void {
  let seed = 0;
  // Whoever waits for something that never comes lets the thread end.
  process.on('exit', () => {
    if (seed > 0) parentPort!.postMessage({ cuts: 0, failures: [hung(seed, workerData as string | undefined)] });
  });
  parentPort!.on('message', async (task: Task) => {
    const done: Done = { cuts: 0, failures: [] };
    // The port must not keep a thread alive whose seed hangs.
    parentPort!.unref();
    for (seed = task.first; seed <= task.last; seed++) {
      const { cuts, failures } = await runTask({ ...task, first: seed, last: seed });
      done.cuts += cuts;
      done.failures.push(...failures);
    }
    seed = 0;
    parentPort!.ref();
    parentPort!.postMessage(done);
  });
}

const hung = (seed: number, kind = kindOf(seed)) =>
  `seed ${seed} waits for something that never comes\n  again, with its history: npm run crash -- --kind ${kind} --seed ${seed}`;

/** Prints what went wrong as it comes. Returns the number of seeds that failed. */
async function many(first: number, seeds: number, kind: string | undefined, bail: boolean): Promise<number> {
  const from = performance.now();
  const last = first + seeds - 1;
  let next = first;
  let cuts = 0;
  let failed = 0;
  let finished = 0;
  const progress = (end = '\r') => {
    if (process.stdout.isTTY || end === '\n')
      process.stdout.write(`${finished} of ${seeds} seeds, ${cuts} power cuts, ${failed} failed${end}`);
  };
  const one = () =>
    new Promise<void>((resolve, reject) => {
      const worker = new Worker(new URL(import.meta.url), { workerData: kind });
      let share = 0;
      const give = () => {
        if (next > last || (bail && failed > 0)) return void worker.terminate().then(() => resolve(), reject);
        share = Math.min(SHARE, last - next + 1);
        worker.postMessage({ first: next, last: next + share - 1, kind } satisfies Task);
        next += share;
      };
      worker.on('message', ({ cuts: count, failures }: Done) => {
        cuts += count;
        failed += failures.length;
        finished += share;
        share = 0;
        for (const failure of failures) console.error(`\n${failure}`);
        progress();
        give();
      });
      worker.on('error', reject);
      worker.on('exit', () => resolve());
      give();
    });
  await Promise.all(Array.from({ length: availableParallelism() }, one));
  progress('\n');
  console.log(`${((performance.now() - from) / 1000).toFixed(0)} s`);
  if (finished < seeds && failed === 0) throw new Error(`only ${finished} of ${seeds} seeds have ended`);
  return failed;
}

/** Prints the history of a seed up to the power cut, or to what went wrong. */
async function again(seed: number, kind: string, cut: number | undefined): Promise<boolean> {
  console.log(`seed ${seed}, kind ${kind}: ${JSON.stringify(KINDS[kind].options(seed))}`);
  let lines: string[] = [];
  let ended = false;
  process.once('exit', () => {
    if (ended) return;
    console.log(`${lines.join('\n')}\n\n${hung(seed, kind)}`);
    process.exitCode = 1;
  });
  const log = (line: string) => void lines.push(line);
  const run = async (at: number | undefined) => {
    lines = [];
    await runSeed(kind, seed, { cut: at, log }).then((cuts) => {
      if (cuts === 0 && at !== undefined && at === cut) log(`This seed has no operation #${at}.`);
    });
  };
  try {
    await run(cut);
    // Many crashes have as many histories: that of the life without one is shown.
    if (cut === undefined) await run(Number.POSITIVE_INFINITY);
    console.log(`${lines.join('\n')}\n\nEverything is as it should be.`);
    return true;
  } catch (error) {
    const found = / --cut (\d+)/.exec((error as Error).message);
    if (cut === undefined) await run(found ? Number(found[1]) : Number.POSITIVE_INFINITY).catch(() => {});
    console.log(`${lines.join('\n')}\n\n${(error as Error).message}`);
    return false;
  } finally {
    ended = true;
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      seeds: { type: 'string' },
      first: { type: 'string' },
      kind: { type: 'string' },
      seed: { type: 'string' },
      cut: { type: 'string' },
      bail: { type: 'boolean' },
    },
  });
  const number = (text: string | undefined) => {
    if (text !== undefined && !/^\d+$/.test(text)) throw new Error(`"${text}" is not a number`);
    return text === undefined ? undefined : Number(text);
  };
  if (values.kind !== undefined && !KINDS[values.kind])
    throw new Error(`"${values.kind}" is not one of ${Object.keys(KINDS).join(', ')}`);
  const seed = number(values.seed);
  const seeds = number(values.seeds ?? process.env.CRASH_SEEDS) ?? 2000;
  const fine =
    seed === undefined
      ? (await many(number(values.first) ?? 1, seeds, values.kind, values.bail ?? false)) === 0
      : await again(seed, values.kind ?? kindOf(seed), number(values.cut));
  process.exitCode = fine ? 0 : 1;
}

if (isMainThread)
  main().catch((error: Error) => {
    console.error(error.message);
    process.exitCode = 2;
  });
else work();
