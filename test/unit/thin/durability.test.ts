/** What survives a power cut of a pool and its thin devices (dm-thin scenarios by number). */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { PowerSupply } from '../../../src/device/simulated.ts';
import { CMD_FLAG } from '../../../src/formats/nbd/constants.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { Pool } from '../../../src/targets/thin/pool.ts';
import { FakeClock } from '../../../src/testing/fake-clock.ts';
import { bytes, SECTOR } from '../../../src/units.ts';
import { originData, snapshotData, turns } from '../../support/rig.ts';
import { errno, expectLeaksOnly, poolOf, whole, zeroes } from '../../support/thin.ts';
import { PoolLife } from '../../support/thin-pool-life.ts';
import { RawClient, serve } from '../nbd-support.ts';

const usual = Pool.clock;
let clock: FakeClock;
beforeEach(() => void (Pool.clock = clock = new FakeClock()));
afterEach(() => void (Pool.clock = usual));

/** What any of a few power cuts leaves, with the pool active again. */
async function* afterCuts({ metadata, data }: PoolLife): AsyncGenerator<PoolLife> {
  for (let seed = 0; seed < 20; seed++) {
    const platters = { metadata: metadata.afterCrash(seed), data: data.afterCrash(seed + 1) };
    const after = new PoolLife(new PowerSupply(), platters);
    await after.begin();
    yield after;
  }
}

async function begin(...ids: number[]): Promise<PoolLife> {
  const life = new PoolLife(new PowerSupply());
  await life.begin();
  for (const id of ids) {
    await life.message(`create_thin ${id}`);
    await life.activate(id);
  }
  return life;
}

const write = async (life: PoolLife, id: number, sector: number, content: Uint8Array) =>
  life.device(id).write(bytes(sector * SECTOR), content, 0, content.length);

async function read(life: PoolLife, id: number, sector: number, count: number): Promise<Buffer> {
  const found = Buffer.alloc(count * SECTOR);
  await life.device(id).read(bytes(sector * SECTOR), found, 0, found.length);
  return found;
}

test('21. a message that was answered', async () => {
  const life = await begin(1);
  await life.message('create_snap 2 1');
  await life.message('set_transaction_id 0 5');
  await life.message('reserve_metadata_snap');
  for await (const after of afterCuts(life)) {
    const { devices, transactionId } = await checkMetadata(after.metadata);
    expect([[...devices.keys()], transactionId]).toEqual([[1, 2], 5n]);
    await expect(after.message('reserve_metadata_snap')).rejects.toMatchObject(errno('EBUSY'));
  }
});

test('55. a discard that is cut off at any operation: what was there, or nothing, and no count is wrong', async () => {
  const life = async (cutAt?: number) => {
    const life = await begin(1);
    await write(life, 1, 0, originData(0, 512));
    await life.message('create_snap 2 1');
    await life.activate(2);
    await write(life, 1, 128, snapshotData(128, 256));
    await life.device(1).flush();
    life.power.cutAt = life.power.count + (cutAt ?? Number.POSITIVE_INFINITY);
    const before = life.power.count;
    await Promise.resolve(life.device(1).discard(bytes(0), 512 * SECTOR))
      .then(() => life.device(1).flush())
      .catch((error) => {
        if (life.power.on) throw error;
      });
    return { life, operations: life.power.count - before };
  };
  const { operations } = await life();
  expect(operations).toBeGreaterThan(5);
  for (let cutAt = 0; cutAt < operations; cutAt++) {
    const { life: cut } = await life(cutAt);
    expect(cut.power.on).toBe(false);
    for await (const after of afterCuts(cut)) {
      expect((await checkMetadata(after.metadata)).findings, `cut at ${cutAt}`).toEqual([]);
      for (const id of [1, 2]) await after.activate(id);
      expect(await read(after, 2, 0, 512)).toEqual(originData(0, 512));
      const found = await read(after, 1, 0, 512);
      const mine = Buffer.concat([originData(0, 128), snapshotData(128, 256), originData(384, 128)]);
      for (let sector = 0; sector < 512; sector++) {
        const there = found.subarray(sector * SECTOR, (sector + 1) * SECTOR);
        const kept = there.equals(mine.subarray(sector * SECTOR, (sector + 1) * SECTOR));
        expect(kept || there.equals(zeroes(1)), `sector ${sector}, cut at ${cutAt}`).toBe(true);
      }
    }
  }
});

test('70. what nobody flushed is lost, or kept a second later', async () => {
  const life = await begin(1);
  await write(life, 1, 0, originData(0, 8));
  for await (const after of afterCuts(life)) {
    await after.activate(1);
    expect(await read(after, 1, 0, 8)).toEqual(zeroes(8));
  }
  clock.pass(999);
  await turns();
  expect((await checkMetadata(life.metadata)).devices).toEqual(new Map([[1, 0]]));
  clock.pass(1001);
  await turns();
  for await (const after of afterCuts(life)) {
    await after.activate(1);
    expect(await read(after, 1, 0, 8)).toEqual(originData(0, 8));
  }
});

test('71. what was flushed', async () => {
  const life = await begin(1);
  await write(life, 1, 0, originData(0, 200));
  await life.device(1).flush();
  for await (const after of afterCuts(life)) {
    await after.activate(1);
    expect(await read(after, 1, 0, 200)).toEqual(originData(0, 200));
    expect((await checkMetadata(after.metadata)).findings).toEqual([]);
  }
});

test('72. a write with FUA to a new block', async () => {
  const life = await begin(1);
  const { path } = await serve({ t1: life.device(1) });
  const client = await RawClient.go(path, 't1');
  client.write(4096, originData(0, 8), CMD_FLAG.FUA);
  expect((await client.reply()).error).toBe(0);
  for await (const after of afterCuts(life)) {
    await after.activate(1);
    expect(await read(after, 1, 0, 17)).toEqual(Buffer.concat([zeroes(8), originData(0, 8), zeroes(1)]));
  }
});

test('74. a flush has nothing to do for another device', async () => {
  const rig = await poolOf(64);
  await rig.thin(1, 1024);
  await rig.thin(2, 1024);
  await rig.write('t1', 0, originData(0, 8));
  rig.meta.takeLog();
  await rig.flush('t2');
  expect(rig.meta.takeLog()).toEqual([]);
  await rig.flush('t1');
  expect((await checkMetadata(rig.meta)).devices.get(1)).toBe(1);
});

test('a block that was allocated for a write under way, and committed by somebody else, is a leak until it is mapped', async () => {
  const rig = await poolOf(64);
  await rig.thin(1, 1024);
  await rig.thin(2, 1024);
  await rig.write('t2', 0, originData(0, 8));
  rig.data.hold = (operation) => operation === 'write';
  const written = rig.write('t1', 0, originData(0, 8));
  await rig.data.held(1);
  await rig.flush('t2');
  const report = await checkMetadata(rig.meta);
  expect(report.findings).toEqual([
    { severity: 'leak', message: 'data block 1 is referred to 0 times, and 1 are counted' },
  ]);
  expectLeaksOnly(report, 'now');
  rig.data.go();
  await written;
  await whole(rig);
});
