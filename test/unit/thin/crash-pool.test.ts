/**
 * A pool with its thin devices loses power at any operation of either disk: what was flushed is there, what was not is old or new,
 * snapshots show what they were taken of, and the metadata is whole (dm-thin scenario 73).
 */
import { expect, test } from 'vitest';
import { PowerSupply, type SimulatedDisk } from '../../../src/device/simulated.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { expectLeaksOnly } from '../../support/thin.ts';
import { livePool, PoolLife } from '../../support/thin-pool-life.ts';

const SEEDS = Number(process.env.CRASH_SEEDS ?? 24);
/** Of all operations, so many are left out between two at which the power fails. */
const APART = 5;

/** It was cut off while it was made. */
const isBlank = (disk: SimulatedDisk) =>
  disk
    .snapshot()
    .subarray(0, 4096)
    .every((byte) => byte === 0);

test.each(Array.from({ length: SEEDS }, (_, i) => i + 1))(
  '73. seed %i',
  async (seed) => {
    const whole = await livePool(seed);
    for (const [id, sectors] of whole.model)
      expect(await whole.read(id)).toEqual(sectors.map((values) => values.at(-1)));
    for (let cutAt = seed % APART; cutAt < whole.power.count; cutAt += APART) {
      const { metadata, data, model, uncertain } = await livePool(seed, { cutAt });
      const platters = { metadata: metadata.afterCrash(cutAt), data: data.afterCrash(cutAt + 1) };
      const after = new PoolLife(new PowerSupply(), platters);
      if (!isBlank(after.metadata)) expectLeaksOnly(await checkMetadata(after.metadata), `cut at ${cutAt}`);
      await after.begin();
      const report = await checkMetadata(after.metadata);
      expectLeaksOnly(report, `cut at ${cutAt}, opened`);
      const { devices } = report;
      const there = [...devices.keys()].filter((id) => id !== uncertain);
      expect(there, `cut at ${cutAt}`).toEqual([...model.keys()]);
      for (const [id, sectors] of model) {
        await after.activate(id);
        const found = await after.read(id);
        const wrong = found.findIndex((value, i) => !sectors[i].includes(value));
        expect(
          wrong < 0
            ? undefined
            : `device ${id} sector ${wrong} holds ${found[wrong]}, not ${sectors[wrong]}, cut at ${cutAt}`,
        ).toBe(undefined);
      }
    }
  },
  120_000,
);
