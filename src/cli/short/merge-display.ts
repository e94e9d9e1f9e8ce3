import type { ShortIo } from './command.ts';
import { printSize } from './sizes.ts';

/** What a merge in the daemon and one of files have in common. */
export interface Shown {
  image: string;
  cow: string;
  chunkSize: number;
  total: number;
  merged: number;
}

/** The rate is that of the last seconds. */
const WINDOW_MS = 10_000;
const BAR = 24;

/** How far a merge is: a line that is drawn anew on a terminal, an event a line as JSON, or nothing. */
export class MergeDisplay {
  readonly #io: ShortIo;
  readonly #json: boolean;
  readonly #now: () => number;
  #samples: { at: number; merged: number }[] = [];
  #drawn = false;

  constructor(io: ShortIo, json: boolean, now: () => number = () => performance.now()) {
    this.#io = io;
    this.#json = json;
    this.#now = now;
  }

  /** One line of JSON; nothing unless that was asked for. */
  event(event: string, fields: object): void {
    if (this.#json) this.#io.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);
  }

  progress({ chunkSize, total, merged }: Shown): void {
    const at = this.#now();
    this.#samples.push({ at, merged });
    while (this.#samples.length > 2 && at - this.#samples[1].at > WINDOW_MS) this.#samples.shift();
    const [first] = this.#samples;
    const rate = at > first.at ? ((merged - first.merged) * chunkSize * 1000) / (at - first.at) : 0;
    const secondsLeft = rate > 0 ? Math.ceil(((total - merged) * chunkSize) / rate) : undefined;
    this.event('progress', {
      merged,
      total,
      bytesMerged: merged * chunkSize,
      bytes: total * chunkSize,
      bytesPerSecond: Math.round(rate),
      secondsLeft,
    });
    if (this.#json || !this.#io.progress) return;
    const share = total === 0 ? 1 : merged / total;
    const full = Math.floor(share * BAR);
    const percent = `${Math.floor(share * 100)}%`.padStart(5);
    const left = secondsLeft === undefined ? '' : `, ${printTime(secondsLeft)} left`;
    const speed = rate > 0 ? `, ${printSize(rate)}/s` : '';
    const line = `[${'#'.repeat(full)}${'.'.repeat(BAR - full)}]${percent}  ${merged}/${total} chunks, ${printSize(merged * chunkSize)}${speed}${left}`;
    // A line that is broken cannot be drawn over.
    this.#io.stderr.write(`\r${line.slice(0, this.#io.columns && this.#io.columns - 1)}\x1b[K`);
    this.#drawn = true;
  }

  /** What is printed next begins on an empty line. */
  end(): void {
    if (this.#drawn) this.#io.stderr.write('\r\x1b[K');
    this.#drawn = false;
  }
}

/** `0:09`, `12:30`, `1:02:03`. */
export function printTime(seconds: number): string {
  const two = (value: number) => String(value).padStart(2, '0');
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}:${two(seconds % 60)}`;
  return `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(seconds % 60)}`;
}

/** `4 chunks, 64.0 KiB`. */
export const printAmount = ({ chunkSize, merged }: Pick<Shown, 'chunkSize' | 'merged'>) =>
  `${merged} chunk${merged === 1 ? '' : 's'}, ${printSize(merged * chunkSize)}`;
