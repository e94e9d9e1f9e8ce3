/** A power cut at every operation on one exception store. */
import { expect, test } from 'vitest';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.ts';
import { headerOf, layoutOf, setException } from '../../../src/formats/exception-store.ts';
import { prng } from '../../../src/lib/prng.ts';
import { PersistentStore } from '../../../src/stores/exception/persistent.ts';
import { bytes, SECTOR, sector } from '../../../src/units.ts';
import { staleDisk } from './stamps.ts';

const attempt = async (run: () => Promise<void>) => {
  try {
    await run();
  } catch {
    // The power went; what had been promised until then is checked afterwards.
  }
};

/** Runs `run` on a disk with stale bytes, cutting at each operation in turn, and then `check` on several outcomes. */
async function everyCut(
  start: (seed: number) => Uint8Array,
  run: (disk: SimulatedDisk) => Promise<void>,
  check: (disk: SimulatedDisk, cut: number) => Promise<void>,
): Promise<void> {
  for (let seed = 1; seed <= 20; seed++) {
    for (let cutAt = 0; ; cutAt++) {
      const power = new PowerSupply({ seed, cutAt });
      const contents = start(seed);
      const disk = new SimulatedDisk(contents.length, { power, contents });
      await attempt(() => run(disk));
      const platter = disk.crash(seed * 1000 + cutAt);
      await check(new SimulatedDisk(platter.length, { contents: platter }), cutAt);
      if (power.on) break;
    }
  }
}

const stale = (seed: number) => staleDisk(128, prng(seed));

test('a store that is being made is empty or not there', async () => {
  await everyCut(
    stale,
    async (disk) => void (await PersistentStore.open(disk, sector(8))),
    async (disk) => {
      const store = await PersistentStore.open(disk, sector(8));
      expect(store.valid).toBe(true);
      expect(store.size).toBe(0);
    },
  );
});

test('a store that is being reset holds all its exceptions or none', async () => {
  for (let seed = 1; seed <= 20; seed++) {
    const disk = new SimulatedDisk(128 * SECTOR, { contents: stale(seed) });
    const made = await PersistentStore.open(disk, sector(2));
    for (let old = 0; old < 45; old++) made.settle(made.allocate(old), true);
    await made.commit(made.lastSettled);
    const before = disk.snapshot();
    await everyCut(
      () => before,
      async (again) => (await PersistentStore.open(again, sector(2))).reset(),
      async (again) => {
        const store = await PersistentStore.open(again, sector(2));
        expect([0, 45]).toContain(store.size);
        if (store.size > 0) for (let old = 0; old < 45; old++) expect(store.lookup(old)).toBe(made.lookup(old));
      },
    );
  }
});

test('entries that a torn area left behind its end stay dead, also when the next area write is torn', async () => {
  // Two-sector areas: twenty exceptions, then a stale sector full of others, as a power cut can leave it.
  const torn = (seed: number) => {
    const contents = stale(seed);
    const disk = new SimulatedDisk(contents.length, { contents });
    const area = new DataView(new ArrayBuffer(2 * SECTOR));
    for (let i = 0; i < 20; i++) setException(area, i, i, 2 + i);
    for (let i = 32; i < 64; i++) setException(area, i, 100 + i, 2 + i);
    disk.write(bytes(0), headerOf(layoutOf(sector(2)), true), 0, 2 * SECTOR);
    disk.write(bytes(2 * SECTOR), new Uint8Array(area.buffer), 0, 2 * SECTOR);
    return disk.snapshot();
  };
  await everyCut(
    torn,
    async (disk) => {
      const store = await PersistentStore.open(disk, sector(2));
      for (let old = 20; old < 32; old++) store.settle(store.allocate(old), true);
      await store.commit(store.lastSettled);
    },
    async (disk) => {
      const store = await PersistentStore.open(disk, sector(2));
      store.each((old) => expect(old).toBeLessThan(32));
    },
  );
});
