/** A pool's metadata on a disk that loses power. */
import { type PowerOptions, PowerSupply, SimulatedDisk } from '../../src/device/simulated.ts';
import { prng } from '../../src/lib/prng.ts';
import { PoolMetadata } from '../../src/stores/thin/pool-metadata.ts';
import { sector } from '../../src/units.ts';
import { allocateBlock } from './allocate-block.ts';

/** Bytes of the device. */
export const SIZE = 2 ** 20;
const DATA = 600;
const STEPS = 25;

export const open = (device: SimulatedDisk) =>
  PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });

/** What is mapped, as text. */
export type State = string;

export interface MetadataLife {
  readonly disk: SimulatedDisk;
  readonly power: PowerSupply;
  /** The last one that was acknowledged, and the one that may have been reached since. */
  acknowledged: State | undefined;
  reached: State | undefined;
}

/** Random operations until the end, or until the power fails. `begun` is told of the disk before the first one. */
export async function liveMetadata(
  seed: number,
  options: PowerOptions = {},
  begun: (life: MetadataLife) => void = () => {},
): Promise<MetadataLife> {
  const power = new PowerSupply({ seed, slow: 0.1, ...options });
  const life: MetadataLife = {
    disk: new SimulatedDisk(SIZE, { power, name: 'metadata' }),
    power,
    acknowledged: undefined,
    reached: undefined,
  };
  begun(life);
  const random = prng(seed);
  const mapped = new Map<number, Set<number>>();
  const commit = async (pool: PoolMetadata) => {
    life.reached = JSON.stringify([...mapped].map(([id, blocks]) => [id, [...blocks].sort((a, b) => a - b)]));
    await pool.commit();
    life.acknowledged = life.reached;
  };
  try {
    const pool = await open(life.disk);
    life.reached = life.acknowledged = '[]';
    await pool.resizeData(DATA);
    await commit(pool);
    let next = 0;
    for (let step = 0; step < STEPS; step++) {
      const kind = mapped.size === 0 ? 0 : random.below(8);
      const id = mapped.size === 0 ? 0 : random.pick([...mapped.keys()]);
      if (kind === 0) {
        await pool.createThin(next);
        await pool.openThin(next);
        mapped.set(next++, new Set());
      } else if (kind === 1) {
        await pool.createSnapshot(next, id);
        await pool.openThin(next);
        mapped.set(next++, new Set(mapped.get(id)));
      } else if (kind === 2) {
        pool.closeThin(id);
        await pool.delete(id);
        mapped.delete(id);
      } else if (kind === 3) {
        const begin = random.below(400);
        await pool.removeRange(id, begin, begin + 90);
        for (let block = begin; block < begin + 90; block++) mapped.get(id)!.delete(block);
      } else
        for (let i = 0; i < 30 && pool.freeDataBlocks > 60; i++) {
          const block = random.below(400);
          const mapping = await pool.lookup(id, block);
          if (mapping && !mapping.shared) continue;
          await pool.insert(id, block, await allocateBlock(pool));
          mapped.get(id)!.add(block);
        }
      if (random.below(2) === 0) await commit(pool);
    }
    await commit(pool);
  } catch (error) {
    if (power.on) throw error;
  }
  return life;
}
