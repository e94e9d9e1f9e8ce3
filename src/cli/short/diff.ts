import type { Diff } from '../../api/index.ts';
import { define, printJson } from './command.ts';
import { printSize } from './sizes.ts';
import { deviceName } from './volume-name.ts';

/** Lines of ranges that a person is shown; --json has all. */
const SHOWN = 20;

export const command = define({
  name: 'diff',
  operands: 'NAME',
  summary: 'Shows which bytes of a fork differ from its origin now.',
  help: `An exception is a chunk that was written since the fork, on either side; only its sectors
that really differ are listed.`,
  options: { json: { help: 'print everything as JSON: ranges in bytes' } },
  async run({ operands: [word], options, io }) {
    const daemon = await io.control();
    const name = await deviceName(daemon, word);
    let diff: Diff | undefined;
    for (let start: number | undefined = 0; start !== undefined; ) {
      const part: Diff = await daemon.diff(name, { start });
      diff = diff ? append(diff, part) : part;
      start = part.next;
      if (start !== undefined && io.progress) io.stderr.write(`\r${Math.floor((start / part.size) * 100)} %`);
    }
    if (io.progress) io.stderr.write('\r\x1b[K');
    const { next: _, ...whole } = diff!;
    if (options.json !== undefined) return void printJson(io, whole);
    const { differingBytes, exceptions, exceptionBytes, origin, size, ranges, pool } = whole;
    const parts = `${exceptions} ${pool === undefined ? 'chunks' : 'blocks'}, ${printSize(exceptionBytes)}`;
    const what = pool === undefined ? 'have exceptions' : "are its own or the other's";
    io.stdout.write(
      `${name} differs from ${origin} in ${printSize(differingBytes)} of ${printSize(size)} (${parts}, ${what})\n`,
    );
    for (const { start, length } of ranges.slice(0, SHOWN))
      io.stdout.write(`  ${start}..${start + length - 1}  ${length} bytes\n`);
    if (ranges.length > SHOWN)
      io.stdout.write(`  and ${ranges.length - SHOWN} more ranges: dmkit diff ${name} --json\n`);
  },
});

function append(whole: Diff, part: Diff): Diff {
  const last = whole.ranges.at(-1);
  const [first] = part.ranges;
  // Two answers may meet in the middle of a range.
  if (last && first && last.start + last.length === first.start) {
    last.length += first.length;
    part.ranges.shift();
  }
  for (const range of part.ranges) whole.ranges.push(range);
  whole.exceptions += part.exceptions;
  whole.exceptionBytes += part.exceptionBytes;
  whole.differingBytes += part.differingBytes;
  return whole;
}
