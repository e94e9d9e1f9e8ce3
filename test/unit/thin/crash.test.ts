/** Power cuts at every operation of a pool's metadata: what was committed is there, whole, and nothing else. */
import { expect, test } from 'vitest';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.ts';
import { prng } from '../../../src/lib/prng.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { PoolMetadata } from '../../../src/stores/thin/pool-metadata.ts';
import { sector } from '../../../src/units.ts';

const SIZE = 2 ** 20;
const DATA = 600;
const STEPS = 25;
const SEEDS = 12;

const open = (device: SimulatedDisk) => PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });

/** What is mapped, as text. */
type State = string;

interface Life {
  readonly disk: SimulatedDisk;
  readonly power: PowerSupply;
  /** The last one that was acknowledged, and the one that may have been reached since. */
  acknowledged: State | undefined;
  reached: State | undefined;
}

/** Random operations until the end, or until the power fails. */
async function live(seed: number, cutAt?: number): Promise<Life> {
  const power = new PowerSupply({ seed, cutAt, slow: 0.1 });
  const life: Life = {
    disk: new SimulatedDisk(SIZE, { power, name: 'metadata' }),
    power,
    acknowledged: undefined,
    reached: undefined,
  };
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
          await pool.insert(id, block, await pool.allocateDataBlock());
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

async function shown(disk: SimulatedDisk): Promise<State> {
  const pool = await open(disk);
  const { findings, devices } = await checkMetadata(disk);
  expect(findings.filter(({ severity }) => severity === 'error')).toEqual([]);
  const state: [number, number[]][] = [];
  for (const id of devices.keys()) {
    await pool.openThin(id);
    const blocks: number[] = [];
    for (let block = 0; block < 500; block++) if (await pool.lookup(id, block)) blocks.push(block);
    state.push([id, blocks]);
  }
  return JSON.stringify(state);
}

test.each(Array.from({ length: SEEDS }, (_, i) => i + 1))(
  'seed %i',
  async (seed) => {
    const whole = await live(seed);
    expect(await shown(whole.disk)).toBe(whole.acknowledged);
    for (let cutAt = 0; cutAt < whole.power.count; cutAt++) {
      const { disk, acknowledged, reached } = await live(seed, cutAt);
      const after = new SimulatedDisk(SIZE, { contents: disk.afterCrash(cutAt) });
      // Cut off while it was made, the pool is made anew.
      expect([acknowledged ?? '[]', reached ?? '[]'], `cut at ${cutAt}`).toContain(await shown(after));
    }
  },
  60_000,
);
