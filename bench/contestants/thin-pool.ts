/** A pool in two files, and words of a server for it: a table line or a message, as `dmkit-server.ts` takes them. */
import { closeSync, ftruncateSync, openSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { Disks } from '../../src/device/open.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { bytes, SECTOR } from '../../src/units.ts';
import { CHUNK } from './contestant.ts';

/** Bytes: a hundred times what a GiB needs; a file takes only the space that is used. */
const METADATA = 64 * 2 ** 20;

/** Carries out words `NAME START LENGTH TARGET ARGUMENT...` or `NAME message MESSAGE...`. */
export async function carryOut(mapper: Mapper, words: string): Promise<void> {
  const [name, start, length, type, ...args] = words.split(' ');
  if (start === 'message') {
    await mapper.message({ name }, 0, [length, type, ...args].join(' '));
    return;
  }
  await mapper.create(name);
  await mapper.load({ name }, [{ start: Number(start), length: Number(length), type, args: args.join(' ') }]);
  await mapper.resume({ name });
}

export class PoolFiles {
  readonly #folder: string;
  readonly #data: number;

  /** Empty, with room for so many bytes of data. */
  constructor(folder: string, data: number) {
    this.#folder = folder;
    this.#data = data;
    for (const [path, size] of [
      [this.metadata, METADATA],
      [this.data, data],
    ] as const) {
      const file = openSync(path, 'w');
      ftruncateSync(file, size);
      closeSync(file);
    }
  }

  get metadata(): string {
    return join(this.#folder, 'pool.meta');
  }

  get data(): string {
    return join(this.#folder, 'pool.data');
  }

  /** With new blocks zeroed, or not. */
  pool(zeroing: boolean): string {
    const features = zeroing ? '' : ' 1 skip_block_zeroing';
    return `pool 0 ${this.#data / SECTOR} thin-pool ${this.metadata} ${this.data} ${CHUNK / SECTOR} 0${features}`;
  }

  /** Words, and work on what they make, here and now: all of it is in the files when this resolves. */
  async prepare(words: readonly string[], work: (mapper: Mapper) => Promise<void>): Promise<void> {
    const mapper = new Mapper({ opener: new Disks() });
    try {
      for (const word of [this.pool(false), ...words]) await carryOut(mapper, word);
      await work(mapper);
    } finally {
      await mapper.removeAll();
    }
  }
}

export const createThin = (id: number) => `pool message create_thin ${id}`;
export const createSnap = (id: number, of: number) => `pool message create_snap ${id} ${of}`;
export const deleteThin = (id: number) => `pool message delete ${id}`;
/** A volume of so many bytes, called `thinID`. */
export const volume = (id: number, size: number, origin?: string) =>
  `thin${id} 0 ${size / SECTOR} thin pool ${id}${origin === undefined ? '' : ` ${origin}`}`;

/** Writes the chunks of a file for which `which` holds to the same places of a device. */
export async function copyChunks(
  mapper: Mapper,
  name: string,
  path: string,
  size: number,
  which: (chunk: number) => boolean,
): Promise<void> {
  const device = mapper.device({ name });
  const buffer = new Uint8Array(CHUNK);
  const file = openSync(path, 'r');
  for (let chunk = 0; chunk < size / CHUNK; chunk++) {
    if (!which(chunk)) continue;
    readSync(file, buffer, 0, CHUNK, chunk * CHUNK);
    await device.write(bytes(chunk * CHUNK), buffer, 0, CHUNK);
  }
  closeSync(file);
  await device.flush();
}
