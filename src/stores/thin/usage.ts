/** How much of a pool's data each thin device has to itself. */
import type { MetadataReader, ThinDevice } from './reader.ts';

export interface ThinUsage extends ThinDevice {
  /** Blocks that no other device has mapped. */
  readonly exclusiveBlocks: number;
}

/**
 * Of all devices, by number. Reference counts of data do not tell it: a leaf of mappings that two devices share counts once. So it is counted
 * by device, in two bits for each data block.
 */
export async function usage(reader: MetadataReader): Promise<ThinUsage[]> {
  const owners = new Owners();
  const devices: ThinDevice[] = [];
  for await (const device of reader.devices()) {
    devices.push(device);
    for await (const runs of reader.runs(device))
      for (const { data, length } of runs) for (let block = data; block < data + length; block++) owners.add(block);
  }
  const found: ThinUsage[] = [];
  for (const device of devices) {
    let exclusiveBlocks = 0;
    for await (const runs of reader.runs(device))
      for (const { data, length } of runs)
        for (let block = data; block < data + length; block++) if (owners.one(block)) exclusiveBlocks++;
    found.push({ ...device, exclusiveBlocks });
  }
  return found;
}

/** None, one or many: two bits for each block, in pages that come as needed. */
class Owners {
  readonly #pages = new Map<number, Uint8Array>();

  add(block: number): void {
    const index = Math.floor(block / PAGE);
    let page = this.#pages.get(index);
    if (!page) this.#pages.set(index, (page = new Uint8Array(PAGE / 4)));
    const at = block % PAGE;
    const shift = 2 * (at & 3);
    const count = (page[at >> 2] >> shift) & 3;
    if (count < 2) page[at >> 2] += 1 << shift;
  }

  one(block: number): boolean {
    const at = block % PAGE;
    return (((this.#pages.get(Math.floor(block / PAGE))?.[at >> 2] ?? 0) >> (2 * (at & 3))) & 3) === 1;
  }
}

/** Blocks. */
const PAGE = 2 ** 18;
