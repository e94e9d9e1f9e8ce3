import { type LoggedEntry, openWriteLog, type Replayed, type WriteLogFile } from '../../api/index.ts';
import { define, printJson, type ShortIo, UsageError } from './command.ts';
import { printSize } from './sizes.ts';

export const command = define({
  name: 'replay-log',
  operands: 'LOG [DEVICE]',
  summary: 'Repeats onto DEVICE what a log-writes target wrote to LOG; without DEVICE, lists the entries of LOG.',
  help: `DEVICE is a copy of the disk as it was before the log began: a file, a block device, or the
URI of a fork (dmkit uri NAME). Everything is checked before the first byte is written.
With --at-flush COMMAND, a shell runs COMMAND at each flush that is passed: DEVICE then is as a
power cut at that moment would have left it. The first COMMAND that fails ends the replay.`,
  options: {
    to: { value: 'MARK', help: 'end with the first mark of that name' },
    entries: { value: 'N', help: 'end after N entries' },
    'next-flush': { help: 'end with the next flush' },
    start: { value: 'N', help: 'begin with entry N, counted from 0' },
    'at-flush': { value: 'COMMAND', help: 'run a command at each flush' },
    json: { help: 'print the result as JSON' },
  },
  async run({ operands: [path, target], options, io }) {
    const atFlush = options['at-flush'];
    const entries = countOf(options.entries, '--entries');
    const toFlush = options['next-flush'] !== undefined;
    const start = countOf(options.start, '--start') ?? 0;
    if (target === undefined)
      for (const option of ['to', 'at-flush', 'next-flush'] as const)
        if (options[option] !== undefined) throw new UsageError(`--${option} needs a DEVICE`);
    const ends = (['to', 'next-flush', 'at-flush'] as const).filter((option) => options[option] !== undefined);
    if (ends.length > 1) throw new UsageError(`--${ends.join(' and --')} exclude one another`);
    const log = await openWriteLog(path, { directory: io.cwd });
    try {
      await log.skip(start);
      if (target === undefined) return await list(log, entries, options.json !== undefined, io);
      const json = options.json !== undefined;
      if (atFlush !== undefined) return await replayEach(log, target, entries, atFlush, json, io);
      const done = await log.replay(target, { toMark: options.to, entries, toFlush, onProgress: progress(io) });
      if (io.progress) io.stderr.write('\r\x1b[K');
      if (json) printJson(io, { ...done, total: log.entries });
      else io.stdout.write(describe(done, log, target));
    } finally {
      await log.close();
    }
  },
});

function countOf(text: string | undefined, option: string): number | undefined {
  if (text === undefined) return undefined;
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw new UsageError(`${option} is ${JSON.stringify(text)}, not a number`);
  return value;
}

/** A terminal is told each time when another percent is done. */
function progress(io: ShortIo): ((done: number, count: number) => void) | undefined {
  if (!io.progress) return undefined;
  let shown = -1;
  return (done, count) => {
    const percent = Math.floor((100 * done) / count);
    if (percent !== shown) io.stderr.write(`\r${percent} %`);
    shown = percent;
  };
}

/** What comes behind the last flush is repeated too. */
async function replayEach(
  log: WriteLogFile,
  target: string,
  entries = log.entries,
  commandLine: string,
  json: boolean,
  io: ShortIo,
): Promise<number> {
  const end = Math.min(log.entries, log.position + entries);
  let flushes = 0;
  let next = log.position;
  while (next < end) {
    const done = await log.replay(target, { toFlush: true, entries: end - next });
    next = done.next;
    if (!done.atFlush) break;
    flushes++;
    const status = await io.exec!(['sh', '-c', commandLine]);
    if (status === 0) continue;
    io.stderr.write(`dmkit: the command failed with status ${status} at entry ${next - 1}\n`);
    io.stderr.write(`hint: the same state again, on a fresh copy: dmkit replay-log LOG DEVICE --entries ${next}\n`);
    return 1;
  }
  if (json) printJson(io, { flushes, next, total: log.entries });
  else
    io.stdout.write(
      `the command succeeded at each of ${flushes} flushes; ${next} of ${log.entries} entries replayed\n`,
    );
  return 0;
}

function describe(
  { first, next, writes, written, discards, discardsSkipped }: Replayed,
  log: WriteLogFile,
  target: string,
) {
  if (next === first) return `nothing to replay: ${target} stays as it is\n`;
  const skipped = discardsSkipped > 0 ? `, ${discardsSkipped} of them left out as it cannot discard` : '';
  return `replayed entries ${first} to ${next - 1} of ${log.entries} onto ${target}
  ${writes} writes, ${printSize(written)}; ${discards} discards${skipped}
${next < log.entries ? `  the next entry is ${next}\n` : ''}`;
}

async function list(log: WriteLogFile, entries = log.entries, json: boolean, io: ShortIo): Promise<void> {
  const { blockSize, entries: total } = log;
  // Entry by entry: a log may have millions.
  if (json) io.stdout.write(`{\n  "blockSize": ${blockSize},\n  "total": ${total},\n  "entries": [`);
  else io.stdout.write(`${total} entries, blocks of ${blockSize} bytes\n`);
  for (let count = 0; count < entries; count++) {
    const entry = await log.next();
    if (!entry) break;
    if (json) io.stdout.write(`${count === 0 ? '' : ','}\n    ${JSON.stringify(entry)}`);
    else io.stdout.write(line(entry));
  }
  if (json) io.stdout.write('\n  ]\n}\n');
}

function line({ entry, kind, at, length, mark, flush, fua, metadata }: LoggedEntry): string {
  const words = [kind === 'write' || kind === 'discard' ? `${at}..${at + length - 1}  ${length} bytes` : ''];
  // A write may be more than that.
  if (flush && kind !== 'flush') words.push('flush');
  if (fua) words.push('FUA');
  if (metadata) words.push('metadata');
  if (mark !== undefined) words.push(printable(mark));
  return (
    `${String(entry).padStart(7)}  ${kind.padEnd(7)}  ${words.filter((word) => word !== '').join('  ')}`.trimEnd() +
    '\n'
  );
}

/** A terminal obeys what a log may hold. */
const printable = (text: string) => (/[^\x20-\x7e\u00a0-\uffff]/.test(text) ? JSON.stringify(text) : text);
