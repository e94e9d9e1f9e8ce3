/** Reads the logs of test/fixtures/kernel (grammar: the README there) and makes the patterns they speak of. */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import type { BlockDevice } from '../../src/device/block-device.ts';
import { bytes, SECTOR } from '../../src/units.ts';

export const FIXTURES = join(import.meta.dirname, '../fixtures/kernel');

/** By the letter that stands for it in a log. */
export const THIN_PATTERNS = { a: 'extern', b: 'thinwr', c: 'thinw2' } as const;
export const PATTERNS = { a: 'origin', b: 'snapwr', c: 'origwr' } as const;
export type PatternTag = keyof typeof PATTERNS;

export interface Put {
  kind: 'put';
  tag: PatternTag;
  /** A mapped device's name. */
  device: string;
  /** Sectors: where in the pattern, where on the device, how many. */
  skip: number;
  seek: number;
  count: number;
  /** What the device answered instead of success. */
  failed?: string;
}

export type Step =
  | { kind: 'command'; words: string[]; output: string[]; exit: number }
  | Put
  /** `lines` as logged: `table NAME: LINE` and `status NAME: LINE`. */
  | { kind: 'state'; label: string; lines: string[] }
  | { kind: 'sha256'; label: string; hash: string }
  /** A status line, taken while something ran. */
  | { kind: 'poll'; line: string }
  | { kind: 'keep'; image: string };

/** Throws on a line that the grammar does not know: a log that is half understood proves nothing. */
export function parseSteps(text: string): Step[] {
  const steps: Step[] = [];
  for (const line of text.split('\n').slice(0, -1)) {
    const last = steps.at(-1);
    const put = /^put ([abc]) (?:\/dev\/mapper\/)?(\S+) (\d+) (\d+) (\d+)(?: \[failed: (.+)\])?$/.exec(line);
    const word = line.split(' ');
    if (line.startsWith('$ ')) steps.push({ kind: 'command', words: splitShell(line.slice(2)), output: [], exit: 0 });
    else if (put) {
      const [tag, device, ...rest] = put.slice(1);
      const [skip, seek, count] = rest.map(Number);
      steps.push({ kind: 'put', tag: tag as PatternTag, device, skip, seek, count, failed: put[6] });
    } else if (line.startsWith('# state ')) steps.push({ kind: 'state', label: line.slice(8), lines: [] });
    else if (word[0] === 'sha256' && word.length === 3) steps.push({ kind: 'sha256', label: word[1], hash: word[2] });
    else if (word[0] === 'poll') steps.push({ kind: 'poll', line: line.slice(5) });
    else if (word[0] === 'keep' && word.length === 2) steps.push({ kind: 'keep', image: word[1] });
    else if (last?.kind === 'state' && /^(table|status) \S+: /.test(line)) last.lines.push(line);
    else if (last?.kind === 'command' && /^\[exit \d+\]$/.test(line)) last.exit = Number(line.slice(6, -1));
    else if (last?.kind === 'command') last.output.push(line);
    else throw new Error(`steps.txt has a line that nothing explains: ${line}`);
  }
  return steps;
}

/** Recorded commands quote nothing, but for `--table` all words up to the end are one argument. */
function splitShell(command: string): string[] {
  const [head, table] = command.split(' --table ');
  return table === undefined ? head.split(' ') : [...head.split(' '), '--table', table];
}

export const loadSteps = (folder: string) => parseSteps(readFileSync(join(FIXTURES, folder, 'steps.txt'), 'utf8'));
export const loadImage = (folder: string, image: string) =>
  gunzipSync(readFileSync(join(FIXTURES, folder, `${image}.gz`)));

/** `count` sectors of a pattern, from its sector `skip`. */
export function pattern(
  tag: PatternTag,
  skip: number,
  count: number,
  names: Record<PatternTag, string> = PATTERNS,
): Buffer {
  const out = Buffer.alloc(count * SECTOR);
  for (let i = 0; i < count; i++) {
    const text = `${names[tag]}:${String(skip + i).padStart(8, '0')} `;
    out.fill(text, i * SECTOR, (i + 1) * SECTOR, 'latin1');
  }
  return out;
}

export async function readAll(device: BlockDevice): Promise<Buffer> {
  const content = Buffer.alloc(device.size);
  const step = 1 << 20;
  for (let at = 0; at < content.length; at += step)
    await device.read(bytes(at), content, at, Math.min(step, content.length - at));
  return content;
}

export async function writeAt(device: BlockDevice, sector: number, content: Uint8Array): Promise<void> {
  await device.write(bytes(sector * SECTOR), content, 0, content.length);
  await device.flush();
}

export const sha256 = (content: Uint8Array) => createHash('sha256').update(content).digest('hex');
