/** How far a merge is. The kernel's words tell, but for a snapshot that had overflowed: its store then has to. */
import type { BlockDevice } from '../../device/block-device.ts';
import { areaChunk, diskException, layoutOf } from '../../formats/exception-store.ts';
import { type Bytes, bytes, SECTOR, type Sector } from '../../units.ts';
import { fillOf } from '../events/fill.ts';

/** Exceptions by a status line with numbers; undefined for one that is a word. */
export function exceptionsBy(status: string, chunkSize: number): number | undefined {
  const fill = fillOf(status);
  return fill && Math.round((fill.allocated - fill.metadata) / chunkSize);
}

/** Exceptions in the list of a store on `cow`, which may change meanwhile. One read for each full area, one for the last. */
export async function exceptionsIn(cow: Pick<BlockDevice, 'read' | 'size'>, chunkSize: number): Promise<number> {
  const layout = layoutOf((chunkSize / SECTOR) as Sector);
  const { entries, chunkBytes } = layout;
  const sector = new Uint8Array(SECTOR);
  const view = new DataView(sector.buffer);
  const isUsed = async (area: number, entry: number): Promise<boolean> => {
    const at = entry * diskException.size;
    await cow.read(
      (areaChunk(layout, area) * chunkBytes + Math.floor(at / SECTOR) * SECTOR) as Bytes,
      sector,
      0,
      SECTOR,
    );
    return diskException.get(view, at % SECTOR).newChunk !== 0;
  };
  let area = 0;
  const exists = (index: number) => bytes((areaChunk(layout, index) + 1) * chunkBytes) <= cow.size;
  while (exists(area + 1) && (await isUsed(area, entries - 1))) area++;
  let low = 0;
  let high = entries;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (await isUsed(area, middle)) low = middle + 1;
    else high = middle;
  }
  return area * entries + low;
}
