/** Thin volumes of dmkit, each in a pool of its own. */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { CHUNK, type Contestant, nbd, type Served } from './contestant.ts';
import { serveTables } from './dmkit.ts';
import { carryOut, copyChunks, createSnap, createThin, PoolFiles, volume } from './thin-pool.ts';

const KIB = CHUNK / 1024;

/** A server of the pool, which shows volume `id`. */
function serve(folder: string, files: PoolFiles, id: number, words: string[], zeroing = false): Promise<Served> {
  const socket = join(folder, 's');
  return serveTables(socket, [nbd(socket, `thin${id}`)], [files.pool(zeroing), ...words]);
}

/** The image is the external origin: it shows where nothing was written. */
export const thin: Contestant = {
  name: 'dmkit thin',
  describe: `dmkit thin: a volume of a thin pool with ${KIB} KiB blocks, the image its external origin`,
  copiesOnWrite: true,
  async serve(image, folder) {
    const { size } = statSync(image);
    return serve(folder, new PoolFiles(folder, size), 1, [createThin(1), volume(1, size, image)]);
  },
};

/** No image below: what was not written is zeroes. `zeroing`: in the rest of a block, too, whatever the disk held there. */
export const thinAlone = (zeroing: boolean): Contestant => ({
  name: zeroing ? 'dmkit thin, zeroing' : 'dmkit thin',
  describe: zeroing
    ? 'zeroing: the same pool without skip_block_zeroing'
    : 'dmkit thin without an image: a new volume of a pool with skip_block_zeroing',
  copiesOnWrite: true,
  async serve(image, folder) {
    const { size } = statSync(image);
    return serve(folder, new PoolFiles(folder, size), 1, [createThin(1), volume(1, size)], zeroing);
  },
});

/** All of its blocks are shared with the volume that it is a snapshot of, which holds the image. */
export const thinSnapshot: Contestant = {
  name: 'dmkit thin',
  describe: 'dmkit thin, snapshot: of a volume that holds all of the image, in the same pool',
  copiesOnWrite: true,
  async serve(image, folder) {
    const { size } = statSync(image);
    const files = new PoolFiles(folder, 2 * size);
    await files.prepare([createThin(1), volume(1, size)], async (mapper) => {
      await copyChunks(mapper, 'thin1', image, size, () => true);
    });
    return serve(folder, files, 2, [createSnap(2, 1), volume(2, size)]);
  },
};

/** The last of so many snapshots, each of the one before, over a volume that holds the image. Each has changed as many chunks of its own. */
export const thinChain = (depth: number): Contestant => ({
  name: `dmkit thin, depth ${depth}`,
  describe: `depth N: the last of N snapshots, each of the one before; each level holds as much of what is read`,
  copiesOnWrite: true,
  async serve(image, folder) {
    const { size } = statSync(image);
    const files = new PoolFiles(folder, 2 * size);
    await files.prepare([createThin(0), volume(0, size)], async (mapper) => {
      await copyChunks(mapper, 'thin0', image, size, () => true);
      for (let level = 1; level <= depth; level++) {
        await mapper.message({ name: 'pool' }, 0, `create_snap ${level} ${level - 1}`);
        await carryOut(mapper, volume(level, size));
        await copyChunks(mapper, `thin${level}`, image, size, (chunk) => chunk % (depth + 1) === level);
      }
    });
    return serve(folder, files, depth, [volume(depth, size)]);
  },
});
