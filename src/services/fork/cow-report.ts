/**
 * What a COW store holds and what is wrong with it. The kernel checks no entry when it loads a store; this is the check
 * to run before one trusts a store that is not one's own.
 */
import type { BlockDevice } from '../../device/block-device.ts';
import {
  areaChunk,
  chunkSizeFault,
  chunksFor,
  diskException,
  diskHeader,
  eachException,
  isMetadata,
  layoutOf,
  MAGIC,
  VERSION,
} from '../../formats/exception-store.ts';
import { ChunkMap, MAX_CHUNK } from '../../lib/chunk-map.ts';
import { type Bytes, bytes, SECTOR } from '../../units.ts';

export interface Problem {
  /** Stable: `old-beyond-origin`, `new-beyond-store`, … */
  kind: string;
  /** Of the first entry, in words. */
  message: string;
  /** Entries that have it. */
  count: number;
}

/** As much of a device as is needed here. */
export type Readable = Pick<BlockDevice, 'size' | 'blockSize' | 'read'>;

export interface CowReport {
  /** Nothing was ever written: the first use makes a store. */
  blank: boolean;
  valid: boolean;
  version: number;
  /** Bytes. */
  chunkSize: number;
  exceptions: number;
  areas: number;
  /** Bytes of the device that header, areas and data take; of the device. */
  allocated: number;
  size: number;
  /** Highest old chunk, in bytes from the origin's start to its end: what the origin must have at least. */
  originReach: number;
  /** Entries behind the end of the list, as a power cut leaves them. No harm: the next commit wipes them. */
  leftovers: boolean;
  problems: Problem[];
}

const PIECE = 1024 * 1024;

/** Reads the whole list of exceptions, a MiB at a time. Throws only what the device throws. */
export async function inspectCow(device: Readable, origin?: { size: number }): Promise<CowReport> {
  const found = new Map<string, Problem>();
  const problem = (kind: string, message: string) => {
    const known = found.get(kind);
    if (known) known.count++;
    else found.set(kind, { kind, message, count: 1 });
  };
  const report: CowReport = {
    blank: false,
    valid: false,
    version: 0,
    chunkSize: 0,
    exceptions: 0,
    areas: 0,
    allocated: 0,
    size: device.size,
    originReach: 0,
    leftovers: false,
    problems: [],
  };
  const done = () => ({ ...report, problems: [...found.values()] });

  if (device.size < SECTOR) {
    problem('too-small', `the device has ${device.size} bytes, and a header takes ${SECTOR}`);
    return done();
  }
  const sector = new Uint8Array(SECTOR);
  await device.read(bytes(0), sector, 0, SECTOR);
  const header = diskHeader.get(new DataView(sector.buffer), 0);
  if (header.magic === 0) return { ...done(), blank: true };
  if (header.magic !== MAGIC) {
    problem('magic', `the magic is 0x${header.magic.toString(16).padStart(8, '0')}, expected 0x${MAGIC.toString(16)}`);
    return done();
  }
  report.version = header.version;
  report.valid = header.valid !== 0;
  report.chunkSize = header.chunkSize * SECTOR;
  if (!report.valid) problem('invalidated', 'the store was invalidated: it missed copies and cannot be recovered');
  if (header.version !== VERSION)
    problem('version', `the version is ${header.version}, and ${VERSION} is the only one`);
  const fault = chunkSizeFault(header.chunkSize, [device.blockSize]);
  if (fault) problem('chunk-size', `a chunk has ${header.chunkSize} sectors: ${fault}`);
  if (fault || header.version !== VERSION) return done();

  const layout = layoutOf(header.chunkSize);
  const chunks = Math.floor(device.size / layout.chunkBytes);
  const originChunks = origin && Math.ceil(origin.size / layout.chunkBytes);
  const byOld = new ChunkMap();
  const byNew = new ChunkMap();
  let highest = 1;
  let highestOld = -1;

  const check = (where: string, oldChunk: number, newChunk: number) => {
    report.exceptions++;
    const pair = `${where} maps chunk ${oldChunk} to ${newChunk}`;
    if (newChunk > highest) highest = newChunk;
    if (oldChunk > highestOld) highestOld = oldChunk;
    if (originChunks !== undefined && oldChunk >= originChunks)
      problem('old-beyond-origin', `${pair}, and the origin has ${originChunks} chunks`);
    if (newChunk >= 2 ** 56) problem('new-too-high', `${pair}: the kernel keeps a count in the highest byte`);
    else if (newChunk >= chunks) problem('new-beyond-store', `${pair}, and the store has ${chunks} chunks`);
    else if (isMetadata(layout, newChunk)) problem('new-in-metadata', `${pair}, which is the header or an area`);
    if (oldChunk > MAX_CHUNK || newChunk > MAX_CHUNK) return;
    if (!byOld.add(oldChunk, 0)) problem('old-twice', `${pair}, and an entry before it has that old chunk`);
    if (!byNew.add(newChunk, 0)) problem('new-twice', `${pair}, and an entry before it has that new chunk`);
  };

  const piece = new Uint8Array(Math.min(PIECE, layout.chunkBytes));
  const view = new DataView(piece.buffer);
  const perPiece = piece.length / diskException.size;
  for (let ended = false; !ended; ) {
    const area = report.areas;
    const start = areaChunk(layout, area) * layout.chunkBytes;
    if (start + layout.chunkBytes > device.size) {
      problem('area-beyond-store', `area ${area} is missing: the list has no end, and the store has ${chunks} chunks`);
      break;
    }
    report.areas++;
    for (let from = 0; from < layout.chunkBytes; from += piece.length) {
      await device.read((start + from) as Bytes, piece, 0, piece.length);
      if (ended) {
        if (piece.some((byte) => byte !== 0)) report.leftovers = true;
        continue;
      }
      let index = from / diskException.size;
      const count = eachException(view, (oldChunk, newChunk) =>
        check(`entry ${index++} of area ${area}`, oldChunk, newChunk),
      );
      if (count === perPiece) continue;
      ended = true;
      if (piece.subarray(count * diskException.size).some((byte) => byte !== 0)) report.leftovers = true;
    }
  }
  report.originReach = (highestOld + 1) * layout.chunkBytes;
  report.allocated = Math.max(highest + 1, chunksFor(layout, report.exceptions)) * layout.chunkBytes;
  return done();
}
