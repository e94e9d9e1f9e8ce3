/**
 * Repeats on a disk what the log of a log-writes target tells. All that will be repeated is read and checked before the
 * first byte is written: a log that is damaged, a mark that is not there or a disk that is too small leave it as it was.
 */
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import { bytes } from '../../units.ts';
import type { LogReader, ReadEntry } from './log-reader.ts';

/** Bytes. */
const PIECE = 1024 * 1024;

export interface ReplayOptions {
  /** Ends with the first entry that is this mark; it must be there. */
  readonly toMark?: string;
  /** Ends with the next flush. */
  readonly toFlush?: boolean;
  /** At most so many entries. */
  readonly entries?: number;
  /** Called after each entry: how many have been repeated, of how many. */
  onProgress?(done: number, count: number): void;
}

export interface Replayed {
  /** Of the first entry, from 0. */
  readonly first: number;
  /** Of the entry behind the last one: where a later replay goes on. */
  readonly next: number;
  readonly writes: number;
  /** Bytes that were written. */
  readonly written: number;
  readonly discards: number;
  /** Discards that the disk cannot do, and that left it as it was. */
  readonly discardsSkipped: number;
  /** The last entry is a flush: a power cut here, or a little later, would have left this. */
  readonly atFlush: boolean;
}

/** Passes over entries without repeating them. Throws WRITE_LOG_ENTRY where there are not so many. */
export async function skipEntries(log: LogReader, count: number): Promise<void> {
  if (count > log.entries - log.position.index)
    throw new DmError('WRITE_LOG_ENTRY', 'EINVAL', `Cannot begin with entry ${count}: the log has ${log.entries}`);
  for (let index = 0; index < count; index++) await log.next();
}

/** Repeats entries from where `log` stands, and flushes the disk. */
export async function replay(log: LogReader, target: BlockDevice, options: ReplayOptions = {}): Promise<Replayed> {
  if (target.readOnly) throw new DmError('READ_ONLY', 'EPERM', `Cannot write to ${target.name}: it is read-only`);
  const start = log.position;
  const end = await check(log, target, options);
  log.seek(start);
  let [writes, written, discards, discardsSkipped, atFlush] = [0, 0, 0, 0, false];
  while (log.position.index < end) {
    const entry = (await log.next())!;
    atFlush = entry.flush;
    if (entry.kind === 'write') {
      await copy(log, entry, target);
      writes++;
      written += entry.length;
    } else if (entry.kind === 'discard') {
      discards++;
      if (!target.canDiscard) discardsSkipped++;
      else if (entry.length > 0) await target.discard(entry.at, entry.length);
    }
    options.onProgress?.(log.position.index - start.index, end - start.index);
  }
  await target.flush();
  return { first: start.index, next: end, writes, written, discards, discardsSkipped, atFlush };
}

/** Resolves with the index behind the last entry. */
async function check(
  log: LogReader,
  target: BlockDevice,
  { toMark, toFlush, entries }: ReplayOptions,
): Promise<number> {
  const stop = entries === undefined ? log.entries : Math.min(log.entries, log.position.index + entries);
  while (log.position.index < stop) {
    const entry = (await log.next())!;
    const reach = entry.at + entry.length;
    if (reach > target.size)
      throw new DmError(
        'WRITE_LOG_TARGET',
        'EINVAL',
        `Cannot replay onto ${target.name}: entry ${entry.index} reaches to ${reach}, and it has ${target.size} bytes`,
        { hint: 'take a copy of the disk that was written to, or one of its size' },
      );
    if (toMark !== undefined && entry.mark === toMark) return log.position.index;
    if (toFlush && entry.flush) break;
  }
  if (toMark === undefined) return log.position.index;
  throw new DmError(
    'WRITE_LOG_MARK',
    'EINVAL',
    `Cannot replay to the mark ${JSON.stringify(toMark)}: it is not there`,
    {
      hint: 'list the entries: dmkit replay-log LOG',
    },
  );
}

async function copy(log: LogReader, { at, dataAt, length }: ReadEntry, target: BlockDevice): Promise<void> {
  const buffer = Buffer.allocUnsafe(Math.min(PIECE, length));
  for (let done = 0; done < length; done += PIECE) {
    const piece = Math.min(PIECE, length - done);
    await log.read(bytes(dataAt + done), buffer, piece);
    await target.write(bytes(at + done), buffer, 0, piece);
  }
}
