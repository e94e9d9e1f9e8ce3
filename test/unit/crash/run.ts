/** One seed: its life, and at every operation that changes a disk the power cut that might have come there. */
import type { Operation, Outcome } from '../../../src/device/simulated.ts';
import { prng } from '../../../src/lib/prng.ts';
import { Merging } from '../../../src/targets/snapshot/merging.ts';
import { OriginBuffer } from '../../../src/targets/snapshot/origin-buffer.ts';
import { SECTOR } from '../../../src/units.ts';
import { KINDS } from './kinds.ts';
import { finish } from './operations.ts';
import { type Crash, Stack, type StackOptions } from './stack.ts';
import { VirtualTime } from './virtual-time.ts';
import { type Mix, work } from './workload.ts';

export interface RunOptions {
  /** Only this crash point. */
  cut?: number | undefined;
  /** Takes a few of the crash points instead of all: about one in `sparse`. */
  sparse?: number;
  log?: ((line: string) => void) | undefined;
}

/** Operations of the second life that some crashes lead to. */
const SECOND_LIFE = 12;

/** Runs a seed of a kind. Returns the number of power cuts; throws with the command that repeats what went wrong. */
export async function runSeed(kind: string, seed: number, options: RunOptions = {}): Promise<number> {
  const { mix, options: optionsOf } = KINDS[kind];
  const time = new VirtualTime();
  time.install();
  const run = new Run(kind, optionsOf(seed), mix, time, options);
  const { batch, piece } = Merging;
  const { pages, enough } = OriginBuffer;
  const random = prng(seed + 3);
  Merging.batch = random.pick([1, 8, 32, 200]) * SECTOR;
  Merging.piece = random.pick([1, 8, 200]) * SECTOR;
  OriginBuffer.pages = random.pick([0, 2, 5, pages]);
  OriginBuffer.enough = random.pick([1, 2, 4, enough]);
  try {
    return await run.all();
  } finally {
    time.restore();
    Object.assign(Merging, { batch, piece });
    Object.assign(OriginBuffer, { pages, enough });
  }
}

class Run {
  readonly #kind: string;
  readonly #options: StackOptions;
  readonly #mix: Mix;
  readonly #time: VirtualTime;
  readonly #cut: number | undefined;
  readonly #sparse: number;
  readonly #log: RunOptions['log'];
  #muted = false;

  constructor(kind: string, options: StackOptions, mix: Mix, time: VirtualTime, { cut, sparse = 1, log }: RunOptions) {
    this.#kind = kind;
    this.#options = options;
    this.#mix = mix;
    this.#time = time;
    this.#cut = cut;
    this.#sparse = sparse;
    this.#log = log;
  }

  async all(): Promise<number> {
    const crashes = await this.#live();
    this.#muted = false;
    for (const crash of crashes) {
      const marks = [...crash.platters.values()].map(({ contents }) => [contents, contents.length] as const);
      try {
        await this.#afterwards(crash);
      } catch (error) {
        throw this.#broken(error, crash.cut);
      }
      for (const [contents, length] of marks) contents.truncate(length);
    }
    return crashes.length;
  }

  /** To its end; returns what the power cuts on the way would have left. */
  async #live(): Promise<Crash[]> {
    const crashes: Crash[] = [];
    const choose = prng(this.#options.seed + 1);
    const cut = ({ number, errno }: Operation) => {
      const wanted =
        this.#cut === undefined ? !errno && choose.below(this.#sparse) === 0 : number === this.#cut && !errno;
      if (!wanted) return;
      const outcomes = this.#log && new Map<string, Outcome[]>();
      crashes.push(stack.crash(number, outcomes));
      if (this.#cut === undefined) return;
      this.#tell('');
      this.#tell(`The power goes in the middle of #${number}.`);
      for (const [disk, list] of outcomes ?? []) this.#tell(describe(disk, list));
      // What this life goes on with is not of interest.
      this.#muted = true;
    };
    const stack: Stack = new Stack(this.#options, this.#surroundings(cut));
    try {
      await stack.start();
      await work(stack, this.#mix);
      await finish(stack);
      await stack.stop();
      await stack.start();
      await finish(stack);
      await stack.stop();
    } catch (error) {
      throw this.#broken(error);
    }
    return crashes;
  }

  /** What is on the disks after a crash is right, and of use; some go on, and crash again. */
  async #afterwards(crash: Crash): Promise<void> {
    const { model, options, cut } = crash;
    const random = prng(options.seed * 31 + cut);
    // A merge that was cut off goes on, or its store is opened as the snapshot that it was.
    const mayPause = options.cow === undefined;
    if (model.merging !== undefined) model.table = mayPause && random.chance(0.25) ? 'snapshot' : 'snapshot-merge';
    let again: Crash | undefined;
    const secondCut = random.below(120);
    const second = random.chance(0.15);
    const stack = new Stack(
      options,
      this.#surroundings(
        second
          ? (operation) => {
              if (operation.number >= secondCut && !again && !operation.errno) again = stack.crash(operation.number);
            }
          : undefined,
      ),
      crash,
    );
    this.#tell('Opened again:');
    await stack.start();
    await stack.expectPossible();
    if (second) {
      await work(stack, this.#mix, SECOND_LIFE);
      await finish(stack);
      await stack.stop();
      if (again) await this.#afterSecond(again);
    } else {
      if (model.merging === undefined || random.chance(0.3)) await finish(stack);
      await stack.stop();
    }
    this.#time.forget();
  }

  async #afterSecond(crash: Crash): Promise<void> {
    if (crash.model.merging !== undefined) crash.model.table = 'snapshot-merge';
    this.#tell(`The power goes again in the middle of #${crash.cut}; opened once more:`);
    const stack = new Stack(crash.options, this.#surroundings(), crash);
    await stack.start();
    await stack.expectPossible();
    await finish(stack);
    await stack.stop();
  }

  #surroundings(cut?: (operation: Operation) => void) {
    this.#time.forget();
    return { time: this.#time, log: this.#log && ((line: string) => this.#tell(line)), cut };
  }

  #tell(line: string): void {
    if (!this.#muted) this.#log?.(line);
  }

  #broken(error: unknown, cut?: number): Error {
    const again = `npm run crash -- --kind ${this.#kind} --seed ${this.#options.seed}${cut === undefined ? '' : ` --cut ${cut}`}`;
    const message = `${(error as Error).message}\n  again, with its history: ${again}`;
    return new Error(message, { cause: error });
  }
}

/** `/dev/cow0, not flushed: 16 17 lost, 18 has #7 of #7 #9`. */
function describe(disk: string, outcomes: readonly Outcome[]): string {
  if (outcomes.length === 0) return `    ${disk}: everything was flushed`;
  const groups = new Map<string, number[]>();
  for (const { sector, versions, kept } of outcomes) {
    const writes = versions.slice(1).map((number) => `#${number}`);
    const newest = versions[versions.length - 1];
    const fate = kept === newest ? 'kept' : kept === versions[0] ? 'lost' : `only #${kept} kept`;
    const key = `${fate}: ${writes.join(', ')}: sectors`;
    groups.set(key, [...(groups.get(key) ?? []), sector]);
  }
  return [`    ${disk}:`, ...[...groups].map(([key, sectors]) => `        ${key} ${ranges(sectors)}`)].join('\n');
}

function ranges(sectors: number[]): string {
  const sorted = [...sectors].sort((a, b) => a - b);
  const parts: string[] = [];
  for (let i = 0; i < sorted.length; ) {
    let end = i;
    while (end + 1 < sorted.length && sorted[end + 1] === sorted[end] + 1) end++;
    parts.push(end === i ? `${sorted[i]}` : `${sorted[i]}-${sorted[end]}`);
    i = end + 1;
  }
  return parts.join(' ');
}
