/**
 * Memory and time of an exception store: a persistent store with N exceptions over scattered origin chunks of 4 KiB is
 * laid down in a sparse file, opened, and asked for every chunk once.
 */
import { openSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { FileDevice } from '../src/device/file.ts';
import { areaChunk, chunksFor, headerOf, isMetadata, layoutOf, setException } from '../src/formats/exception-store.ts';
import { PersistentStore } from '../src/stores/exception/persistent.ts';
import { sector } from '../src/units.ts';
import { grid, yesOrNo } from './report.ts';
import { scratchIn } from './scratch.ts';

export interface ExceptionsRow {
  exceptions: number;
  /** Bytes of memory for one exception. */
  bytesEach: number;
  openMs: number;
  /** Nanoseconds for one lookup in random order. */
  lookupNs: number;
}

const layout = layoutOf(sector(8));
/** Old chunk of the i-th exception: all of 2^32 chunks (16 TiB) in an order that no cache likes. */
const oldChunk = (i: number) => Math.imul(i, 0x9e3779b1) >>> 0;

export async function exceptions(folder: string, counts: readonly number[]): Promise<ExceptionsRow[]> {
  const rows: ExceptionsRow[] = [];
  for (const count of counts) rows.push(await measure(folder, count));
  return rows;
}

async function measure(folder: string, count: number): Promise<ExceptionsRow> {
  const scratch = scratchIn(folder);
  const path = join(scratch.path, 'store.cow');
  try {
    lay(path, count);
    const device = await FileDevice.open(path, 'rw');
    const from = performance.now();
    const store = await PersistentStore.open(device, sector(8));
    const openMs = performance.now() - from;
    const start = performance.now();
    let found = 0;
    for (let i = 0; i < count; i++) if (store.lookup(oldChunk(i)) >= 0) found++;
    const lookupNs = ((performance.now() - start) * 1e6) / count;
    if (found !== count || store.size !== count) throw new Error(`${found} of ${count} exceptions were found`);
    await device.close();
    return { exceptions: count, bytesEach: store.memory / count, openMs, lookupNs };
  } finally {
    scratch.remove();
  }
}

function lay(path: string, count: number): void {
  writeFileSync(path, headerOf(layout, true));
  truncateSync(path, chunksFor(layout, count) * layout.chunkBytes);
  const fd = openSync(path, 'r+');
  let newChunk = 2;
  for (let index = 0, done = 0; done < count; index++) {
    const area = new DataView(new ArrayBuffer(layout.chunkBytes));
    for (let i = 0; i < layout.entries && done < count; i++, done++) {
      while (isMetadata(layout, newChunk)) newChunk++;
      setException(area, i, oldChunk(done), newChunk++);
    }
    writeSync(fd, area, 0, area.byteLength, areaChunk(layout, index) * layout.chunkBytes);
  }
}

/** Goals: no more than 24 of the kernel's 32 bytes, and a second for a million. */
const BYTES_MOST = 24;
const MS_MOST = 1e-3;

const good = ({ exceptions, bytesEach, openMs }: ExceptionsRow) =>
  bytesEach <= BYTES_MOST && openMs <= exceptions * MS_MOST;

export function exceptionsTable(rows: readonly ExceptionsRow[]): string {
  const head = ['exceptions', 'bytes each', 'goal', 'opened in', 'goal', 'one lookup', 'met'];
  const body = rows.map((row) => [
    row.exceptions.toLocaleString('en'),
    row.bytesEach.toFixed(1),
    `≤ ${BYTES_MOST}`,
    `${Math.round(row.openMs)} ms`,
    `≤ ${row.exceptions * MS_MOST} ms`,
    `${Math.round(row.lookupNs)} ns`,
    yesOrNo(good(row)),
  ]);
  return [...grid(head, body), ''].join('\n');
}
