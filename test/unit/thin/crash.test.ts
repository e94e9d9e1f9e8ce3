/** Power cuts at every operation of a pool's metadata: what was committed is there, whole, and nothing else. */
import { expect, test } from 'vitest';
import { SimulatedDisk } from '../../../src/device/simulated.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { liveMetadata, open, SIZE, type State } from '../../support/thin-metadata-life.ts';

const SEEDS = 12;

async function shown(disk: SimulatedDisk): Promise<State> {
  const pool = await open(disk);
  const { findings, devices } = await checkMetadata(disk);
  expect(findings).toEqual([]);
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
    const whole = await liveMetadata(seed);
    expect(await shown(whole.disk)).toBe(whole.acknowledged);
    for (let cutAt = 0; cutAt < whole.power.count; cutAt++) {
      const { disk, acknowledged, reached } = await liveMetadata(seed, { cutAt });
      const after = new SimulatedDisk(SIZE, { contents: disk.afterCrash(cutAt) });
      // Cut off while it was made, the pool is made anew.
      expect([acknowledged ?? '[]', reached ?? '[]'], `cut at ${cutAt}`).toContain(await shown(after));
    }
  },
  60_000,
);
