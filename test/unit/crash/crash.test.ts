/**
 * The promises on what a write means, at every power cut of seeded runs: origin and snapshots, chunks of differing size,
 * operations that complete out of order, sectors lost and reordered. A failure names its seed and the
 * operation at which the power went.
 */
import { expect, test } from 'vitest';
import { PowerSupply, SimulatedDisk } from '../../../src/device/simulated.ts';
import { headerOf, layoutOf, setException } from '../../../src/formats/exception-store.ts';
import { prng } from '../../../src/lib/prng.ts';
import { PersistentStore } from '../../../src/stores/exception/persistent.ts';
import { bytes, SECTOR, sector } from '../../../src/units.ts';
import { Stack, type StackOptions, staleDisk } from './stack.ts';
import { CRASH_MIX, work } from './workload.ts';

/** Seeds of each test; `CRASH_SEEDS=1000 npx vitest run test/unit/crash` takes more. */
const SEEDS = Number(process.env.CRASH_SEEDS ?? 60);

const attempt = async (run: () => Promise<void>) => {
  try {
    await run();
  } catch {
    // The power went; what had been promised until then is checked afterwards.
  }
};

/** False when the run ended before the power went. */
async function runUntilCut(stack: Stack): Promise<boolean> {
  try {
    await work(stack, CRASH_MIX);
    if (stack.power.on) await stack.expectExact();
  } catch (error) {
    if (stack.power.on) throw error;
  }
  return !stack.power.on;
}

async function cutAndRecover(options: StackOptions, cutAt: number, mayBeInvalid: boolean): Promise<boolean> {
  const stack = new Stack(options, cutAt);
  await attempt(() => stack.start());
  if (stack.power.on && !(await runUntilCut(stack))) return false;
  await stack.recover(options.seed, mayBeInvalid);
  // Life goes on, and the power goes once more: what the first cut left on the disks must not come back.
  stack.power.cutAt = stack.random.below(60);
  await runUntilCut(stack);
  await stack.recover(options.seed + 1, mayBeInvalid);
  return true;
}

/** Runs seeds with cuts spread over the whole run, and says which seed and cut failed. */
async function crashes(name: string, make: (seed: number) => StackOptions, mayBeInvalid = false): Promise<void> {
  let cuts = 0;
  for (let seed = 1; seed <= SEEDS; seed++) {
    const random = prng(seed);
    // The first seed is cut at every operation, the others at a few.
    for (let cutAt = random.below(4); ; cutAt += seed === 1 ? 1 : 1 + random.below(60)) {
      try {
        if (!(await cutAndRecover(make(seed), cutAt, mayBeInvalid))) break;
        cuts++;
      } catch (error) {
        const where = `${name}: seed ${seed}, power cut at operation ${cutAt}`;
        throw new Error(`${where}: ${(error as Error).message}`, { cause: error });
      }
    }
  }
  expect(cuts).toBeGreaterThan(SEEDS);
}

test('75. an origin and a snapshot', async () => {
  await crashes('one snapshot', (seed) => ({ seed, origin: 41, chunks: [2], slow: 0 }));
}, 600_000);

test('75. three snapshots of differing chunk size, operations completing out of order', async () => {
  await crashes('three snapshots', (seed) => ({ seed, origin: 83, chunks: [1, 4, 8], slow: 0.3 }));
}, 600_000);

test('75. areas fill: the list goes on in the next area, whatever arrives first', async () => {
  await crashes('areas', (seed) => ({ seed, origin: 150, chunks: [1, 1], slow: seed % 2 ? 0 : 0.2 }));
}, 600_000);

test('75. a snapshot that ran full is right or invalid, never shows a later image', async () => {
  await crashes('full', (seed) => ({ seed, origin: 60, chunks: [2, 1], cow: 40, store: seed % 2 ? 'P' : 'PO' }), true);
}, 600_000);

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
