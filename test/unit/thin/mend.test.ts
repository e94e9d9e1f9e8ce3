/** What a check puts right in place: the mark that a pool needs a check, and leaks. */
import { expect, test } from 'vitest';
import type { MemoryDevice } from '../../../src/device/memory.ts';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { mend } from '../../../src/stores/thin/mend.ts';
import { Image, wholeImage } from '../../support/thin-damage.ts';
import { contents, poolImage } from './images.ts';

const marked = (device: MemoryDevice) => new Image(device).setSuperblock(() => ({ flags: 1 }));

/** Data and metadata that nobody uses. */
function leaking(device: MemoryDevice): void {
  const image = new Image(device);
  for (const [block, count] of [
    [900, 1],
    [901, 2],
    [950, 1],
  ])
    image.setDataCount(block, count);
  image.setMetadataCount(200, 1);
  image.setMetadataCount(201, 2);
  image.setSuperblock(({ dataSpaceMap, metadataSpaceMap }) => ({
    dataSpaceMap: { ...dataSpaceMap, nrAllocated: dataSpaceMap.nrAllocated + 3 },
    metadataSpaceMap: { ...metadataSpaceMap, nrAllocated: metadataSpaceMap.nrAllocated + 2 },
  }));
}

test('metadata that is whole is not written', async () => {
  const device = await wholeImage();
  const before = contents(device);
  device.readOnly = true;
  expect((await mend(device)).findings).toEqual([]);
  expect(contents(device).equals(before)).toBe(true);
});

test('the mark is cleared, and nothing else changes', async () => {
  const device = await wholeImage();
  const before = contents(device);
  marked(device);
  expect(contents(device).equals(before)).toBe(false);
  expect(await mend(device)).toMatchObject({ findings: [], needsCheck: false });
  expect(contents(device).equals(before)).toBe(true);
});

test.each([false, true])('what leaks is free again; marked: %s', async (mark) => {
  const device = await wholeImage();
  const { freeDataBlocks, freeMetadataBlocks, devices } = await checkMetadata(device);
  leaking(device);
  if (mark) marked(device);
  expect((await checkMetadata(device)).leaks).toHaveLength(5);
  const report = await mend(device);
  expect(report.findings.filter(({ severity }) => severity !== 'total')).toEqual([]);
  expect(report).toMatchObject({ needsCheck: false, devices });
  expect(report).toMatchObject({ freeDataBlocks, freeMetadataBlocks });
});

test('more than are listed at once', async () => {
  const device = await poolImage();
  const image = new Image(device);
  for (let block = 1000; block < 2500; block++) image.setDataCount(block, 1);
  expect((await checkMetadata(device)).leaks).toHaveLength(1000);
  expect((await mend(device)).leaks).toEqual([]);
});

test('what is damaged is left alone, also behind more leaks than are listed', async () => {
  const device = await poolImage();
  const image = new Image(device);
  for (let block = 1000; block < 2500; block++) image.setDataCount(block, 1);
  image.setMetadataCount(image.leaf, 0);
  const before = contents(device);
  device.readOnly = true;
  const report = await mend(device);
  expect(report).toMatchObject({ damaged: true, truncated: true });
  expect(report.findings.some(({ severity }) => severity === 'error')).toBe(false);
  expect(contents(device).equals(before)).toBe(true);
});

test('what is damaged is left alone, marked', async () => {
  const device = await wholeImage();
  leaking(device);
  marked(device);
  const image = new Image(device);
  image.flip(image.leaf, 100);
  const before = contents(device);
  device.readOnly = true;
  expect(await mend(device)).toMatchObject({ needsCheck: true });
  expect(contents(device).equals(before)).toBe(true);
});

test('a power cut at any moment leaves metadata with leaks at most', async () => {
  const device = await wholeImage();
  leaking(device);
  marked(device);
  const before = contents(device);
  const { devices } = await checkMetadata(device);
  for (let cutAt = 0, on = false; !on; cutAt++)
    for (let seed = 0; seed < 10; seed++) {
      const power = new PowerSupply({ seed, cutAt });
      const disk = new SimulatedDisk(before.length, { power, contents: before });
      await mend(disk).catch((error) => {
        if (power.on) throw error;
      });
      on = power.on;
      const after = new SimulatedDisk(before.length, { contents: disk.afterCrash(seed) });
      const report = await checkMetadata(after);
      expect(report.findings.filter(({ severity }) => severity === 'error')).toEqual([]);
      expect(report.devices).toEqual(devices);
      expect([0, 5]).toContain(report.leaks.length);
      if (on) expect(report).toMatchObject({ leaks: [], needsCheck: false });
    }
});
