/** Power cuts at every operation of a restore over a pool: afterwards there is the old pool, the new one, or none, and never a mix. */
import { expect, test } from 'vitest';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { dump } from '../../../src/stores/thin/dump.ts';
import { MetadataReader } from '../../../src/stores/thin/reader.ts';
import { restore } from '../../../src/stores/thin/restore.ts';
import { contents, EXAMPLE, kernelDump, poolImage } from './images.ts';

async function* once(text: string): AsyncGenerator<string> {
  yield text;
}

/** What is on a disk, as XML; undefined if it is no pool. */
async function dumped(disk: SimulatedDisk): Promise<string | undefined> {
  let reader: MetadataReader;
  try {
    reader = await MetadataReader.open(disk);
  } catch {
    return undefined;
  }
  let text = '';
  await dump(reader, 'xml', (part) => {
    text += part;
  });
  expect((await checkMetadata(disk)).findings).toEqual([]);
  return text;
}

test.each([
  ['the worked example', EXAMPLE],
  ['what a kernel wrote', kernelDump()],
])('%s', async (_, xml) => {
  const before = contents(await poolImage());
  const old = await dumped(new SimulatedDisk(before.length, { contents: before }));
  const found = new Set<string | undefined>();
  for (let cutAt = 0, on = false; !on; cutAt++)
    for (let seed = 0; seed < 20; seed++) {
      const power = new PowerSupply({ seed, cutAt });
      const disk = new SimulatedDisk(before.length, { power, contents: before });
      await restore(disk, () => once(xml), { overwrite: true }).catch((error) => {
        if (power.on) throw error;
      });
      on = power.on;
      const after = await dumped(new SimulatedDisk(before.length, { contents: disk.afterCrash(seed) }));
      // What has been acknowledged is there.
      if (on) expect(after).toBe(xml);
      expect([old, undefined, xml], `cut at ${cutAt}, seed ${seed}`).toContain(after);
      found.add(after);
    }
  expect(found.size).toBe(3);
});
