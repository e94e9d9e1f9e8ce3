/** The log of a log-writes target, by the names of the disks. */
import type { BlockDevice, Mode } from '../../device/block-device.ts';
import { Disks } from '../../device/open.ts';
import { LogReader, type ReadEntry } from '../../stores/log-writes/log-reader.ts';
import { type Replayed, type ReplayOptions, replay, skipEntries } from '../../stores/log-writes/replay.ts';

/** An entry of a log as programs see it. Numbers of bytes are of the device that was written to. */
export interface LoggedEntry {
  /** From 0. */
  readonly entry: number;
  readonly kind: ReadEntry['kind'];
  readonly at: number;
  readonly length: number;
  readonly flush: boolean;
  readonly fua: boolean;
  readonly metadata: boolean;
  readonly mark?: string;
}

/** Entries are read one after the other, by `next`, `skip` and `replay` alike. Every call rejects with a DmError. */
export interface WriteLogFile {
  /** Bytes of a logical block of the device that was written to. */
  readonly blockSize: number;
  readonly entries: number;
  /** Of the entry that comes next, from 0. */
  readonly position: number;
  /** Undefined at the end. */
  next(): Promise<LoggedEntry | undefined>;
  skip(count: number): Promise<void>;
  /** Repeats entries onto a disk, which is open only meanwhile. Before it is written to, all of them are checked. */
  replay(target: string, options?: ReplayOptions): Promise<Replayed>;
  close(): Promise<void>;
}

/** `log` and `target` as in a table. Relative paths start from `directory`. */
export async function openWriteLog(log: string, { directory = '.' } = {}): Promise<WriteLogFile> {
  const disks = new Disks();
  const open = async (argument: string, mode: Mode): Promise<BlockDevice> =>
    disks.open(await disks.identify(argument, directory), mode);
  const device = await open(log, 'r');
  try {
    const reader = await LogReader.open(device);
    return {
      blockSize: reader.blockSize,
      entries: reader.entries,
      get position() {
        return reader.position.index;
      },
      async next() {
        const entry = await reader.next();
        return entry && describe(entry);
      },
      skip: (count) => skipEntries(reader, count),
      async replay(target, options) {
        const disk = await open(target, 'rw');
        try {
          return await replay(reader, disk, options);
        } finally {
          await disk.close();
        }
      },
      close: () => device.close(),
    };
  } catch (error) {
    await device.close();
    throw error;
  }
}

const describe = ({ index, kind, at, length, flush, fua, metadata, mark }: ReadEntry): LoggedEntry => ({
  entry: index,
  kind,
  at,
  length,
  flush,
  fua,
  metadata,
  ...(mark !== undefined && { mark }),
});
