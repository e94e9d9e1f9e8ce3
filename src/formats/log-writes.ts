/**
 * The log of the log-writes target: version 1, little-endian, in blocks (Linux `dm-log-writes.c`).
 *
 *     block 0       1         2 ... n+1     n+2
 *    +-------+---------+--------------+---------+---
 *    | super | entry 0 | its n blocks | entry 1 | ...      a block is a logical block of the device that was written to
 *    +-------+---------+--------------+---------+---
 *
 * Entries follow each other in the order in which what they tell became safe. Only a write has data behind it. Nothing
 * ends the list but the number of entries in the super block, which may lag behind the entries.
 */
import { FormatError } from '../errors.ts';
import { type Bytes, bytes } from '../units.ts';
import { struct, u32, u64 } from './struct.ts';

/** One block, zeroes to its end. */
export const logSuper = struct({
  magicLow: u32, // the magic's halves: it has more bits than a number
  magicHigh: u32,
  version: u64,
  nrEntries: u64,
  sectorsize: u32, // bytes of a block
});

/** One block: these fields, the text of a mark, zeroes. */
export const logEntry = struct({
  sector: u64, // in blocks
  nrSectors: u64, // in blocks
  flags: u64,
  dataLen: u64, // bytes of a mark's text, else 0
});

export const LOG_FLAG = { FLUSH: 1, FUA: 2, DISCARD: 4, MARK: 8, METADATA: 16 } as const;
const FLAGS_KNOWN = 31;

const MAGIC_LOW = 0x77736872;
const MAGIC_HIGH = 0x006a7366;
const VERSION = 1;
const BLOCK_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536];

/** The mark with which a log ends that was closed in order. */
export const END_MARK = 'dm-log-writes-end';

export interface LogHead {
  /** Bytes. */
  readonly blockSize: number;
  readonly entries: number;
}

/** The super block, whole. */
export function superOf({ blockSize, entries }: LogHead): Uint8Array {
  const block = new Uint8Array(blockSize);
  logSuper.set(new DataView(block.buffer), 0, {
    magicLow: MAGIC_LOW,
    magicHigh: MAGIC_HIGH,
    version: VERSION,
    nrEntries: entries,
    sectorsize: blockSize,
  });
  return block;
}

/** Throws FormatError. The number of entries is as it stands there. `name` is the log's. */
export function parseSuper(block: DataView, name: string): LogHead {
  const { magicLow, magicHigh, version, nrEntries, sectorsize } = logSuper.get(block, 0);
  if (magicLow !== MAGIC_LOW || magicHigh !== MAGIC_HIGH)
    throw new FormatError('WRITE_LOG_MAGIC', 'EINVAL', `Cannot read ${name}: it holds no log of a log-writes target`, {
      hint: 'the log is the second device of the table; its head is written at the first flush or mark',
    });
  if (version !== VERSION)
    throw new FormatError('WRITE_LOG_VERSION', 'EINVAL', `Cannot read ${name}: a log of version ${version}, not 1`);
  if (!BLOCK_SIZES.includes(sectorsize)) throw corruptLog(name, `its blocks have ${sectorsize} bytes`);
  return { blockSize: sectorsize, entries: nrEntries };
}

/** What the text of a mark may take: the rest of its block but for the zero that ends it. */
export const markBytesMax = (blockSize: number) => blockSize - logEntry.size - 1;

export type LogEntryKind = 'write' | 'discard' | 'flush' | 'mark';

export interface LogEntry {
  readonly kind: LogEntryKind;
  /** Bytes on the device that was written to. */
  readonly at: Bytes;
  readonly length: Bytes;
  /** The write or flush was durable when it completed. */
  readonly fua: boolean;
  /** Its data is durable, and so is all that completed before it was issued: `flush`, or a write that came with one. */
  readonly flush: boolean;
  readonly metadata: boolean;
  /** Of a mark. */
  readonly mark?: string;
  /** Bytes of data behind the entry's block. */
  readonly dataBytes: Bytes;
}

/** Throws FormatError for what no log-writes target writes. `where` names the log and the entry. */
export function parseEntry(block: DataView, blockSize: number, where: string): LogEntry {
  const { sector, nrSectors, flags, dataLen } = logEntry.get(block, 0);
  if (flags > FLAGS_KNOWN) throw corruptLog(where, `flags ${flags} are not known`);
  const has = (flag: number) => (flags & flag) !== 0;
  const isMark = has(LOG_FLAG.MARK);
  const isDiscard = has(LOG_FLAG.DISCARD);
  if (isMark && (flags !== LOG_FLAG.MARK || nrSectors !== 0)) throw corruptLog(where, 'a mark that is a write, too');
  if (isDiscard && (has(LOG_FLAG.FLUSH) || has(LOG_FLAG.FUA)))
    throw corruptLog(where, 'a discard that is a flush, too');
  if (dataLen > (isMark ? markBytesMax(blockSize) : 0)) throw corruptLog(where, `${dataLen} bytes of text`);
  const [at, length] = [bytes(sector * blockSize), bytes(nrSectors * blockSize)];
  if (!Number.isSafeInteger(at + length))
    throw corruptLog(where, `${nrSectors} blocks at ${sector} lie beyond any device`);
  return {
    kind: isMark ? 'mark' : isDiscard ? 'discard' : nrSectors > 0 ? 'write' : 'flush',
    at,
    length,
    fua: has(LOG_FLAG.FUA),
    flush: has(LOG_FLAG.FLUSH),
    metadata: has(LOG_FLAG.METADATA),
    mark: isMark ? textOf(block, dataLen) : undefined,
    dataBytes: isDiscard ? bytes(0) : length,
  };
}

const textOf = (block: DataView, length: number) =>
  new TextDecoder().decode(new Uint8Array(block.buffer, block.byteOffset + logEntry.size, length));

export const corruptLog = (where: string, what: string) =>
  new FormatError('WRITE_LOG_CORRUPT', 'EINVAL', `Cannot read ${where}: ${what}`);
