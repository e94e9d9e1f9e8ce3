/** A pool's metadata under random operations, beside a naive model. */
import { expect } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { prng } from '../../src/lib/prng.ts';
import { checkMetadata } from '../../src/stores/thin/check.ts';
import { PoolMetadata } from '../../src/stores/thin/pool-metadata.ts';
import { sector } from '../../src/units.ts';
import { allocateBlock } from './allocate-block.ts';

const DATA = 4000;
const VIRTUAL = 3000;

const open = (device: MemoryDevice) => PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });

/** What each device shows: the number of the write, by virtual block. */
type Model = Map<number, Map<number, number>>;

class Beside {
  readonly device = new MemoryDevice(4 * 2 ** 20);
  pool!: PoolMetadata;
  model: Model = new Map();
  committed: Model = new Map();
  /** By data block: the write that is there. */
  content = new Map<number, number>();
  opened = new Set<number>();
  writes = 0;

  async begin(): Promise<void> {
    this.pool = await open(this.device);
    await this.pool.resizeData(DATA);
    await this.commit();
  }

  async commit(): Promise<void> {
    await this.pool.commit();
    this.committed = copyOf(this.model);
  }

  async use(id: number): Promise<Map<number, number>> {
    if (!this.opened.has(id)) {
      await this.pool.openThin(id);
      this.opened.add(id);
    }
    return this.model.get(id)!;
  }

  async write(id: number, block: number): Promise<void> {
    const shown = await this.use(id);
    const mapping = await this.pool.lookup(id, block);
    let at = mapping && !mapping.shared ? mapping.block : -1;
    if (at < 0) {
      if (this.pool.freeDataBlocks === 0) return;
      try {
        at = await allocateBlock(this.pool);
      } catch {
        // What was freed is to be had after a commit.
        return;
      }
      await this.pool.insert(id, block, at);
    }
    const before = this.content.get(at);
    this.content.set(at, ++this.writes);
    shown.set(block, this.writes);
    // Written in place, it is there after a power cut too.
    if (mapping?.block === at && this.committed.get(id)?.get(block) === before)
      this.committed.get(id)!.set(block, this.writes);
  }

  /** As after a power cut: what was not committed is gone. */
  async reopen(): Promise<void> {
    this.pool = await open(this.device);
    this.opened.clear();
    this.model = copyOf(this.committed);
  }

  async compare(): Promise<void> {
    for (const [id, shown] of this.model) {
      await this.use(id);
      for (let block = 0; block < VIRTUAL; block += shown.size > 200 ? 1 : 7) {
        const mapping = await this.pool.lookup(id, block);
        expect(mapping && this.content.get(mapping.block)).toBe(shown.get(block));
      }
    }
  }

  async check(): Promise<void> {
    await this.commit();
    const { findings, devices } = await checkMetadata(this.device);
    expect(findings).toEqual([]);
    expect(devices).toEqual(new Map([...this.model].map(([id, shown]) => [id, shown.size])));
  }
}

const copyOf = (model: Model): Model => new Map([...model].map(([id, shown]) => [id, new Map(shown)]));

/** Any operations, as a seed chooses; afterwards it is what the model says, and whole. Resolves with what is on the device. */
export async function modelledPool(seed: number): Promise<MemoryDevice> {
  const random = prng(seed);
  const rig = new Beside();
  await rig.begin();
  const some = () => random.pick([...rig.model.keys()]);
  let next = 0;
  for (let step = 0; step < 60; step++) {
    const kind = rig.model.size === 0 ? 0 : random.below(12);
    if (kind === 0) {
      await rig.pool.createThin(next);
      rig.model.set(next++, new Map());
    } else if (kind === 1) {
      const of = some();
      await rig.pool.createSnapshot(next, of);
      rig.model.set(next++, new Map(rig.model.get(of)));
    } else if (kind === 2) {
      const id = some();
      if (rig.opened.delete(id)) rig.pool.closeThin(id);
      await rig.pool.delete(id);
      rig.model.delete(id);
    } else if (kind === 3) await rig.commit();
    else if (kind === 4 && random.below(4) === 0) await rig.reopen();
    else if (kind === 5) {
      if (rig.pool.heldRoot === 0) {
        await rig.pool.reserveSnapshot();
        rig.committed = copyOf(rig.model);
      } else await rig.pool.releaseSnapshot();
    } else if (kind <= 7) {
      const id = some();
      const shown = await rig.use(id);
      const begin = random.below(VIRTUAL);
      const end = Math.min(VIRTUAL, begin + 1 + random.below(random.pick([3, 100, VIRTUAL])));
      await rig.pool.removeRange(id, begin, end);
      for (let block = begin; block < end; block++) shown.delete(block);
    } else {
      const id = some();
      const count = random.pick([1, 20, 500]);
      const from = random.below(VIRTUAL);
      const apart = random.pick([1, 1, 7, 1237]);
      for (let i = 0; i < count; i++) await rig.write(id, (from + i * apart) % VIRTUAL);
    }
  }
  await rig.compare();
  await rig.check();
  await rig.reopen();
  await rig.compare();
  return rig.device;
}
