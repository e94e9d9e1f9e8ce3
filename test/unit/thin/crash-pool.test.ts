/**
 * A pool with its thin devices loses power at any operation of either disk: what was flushed is there, what was not is old or new,
 * snapshots show what they were taken of, and the metadata is whole.
 */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type Platter, PowerSupply, SimulatedDisk } from '../../../src/device/simulated.ts';
import { type Prng, prng } from '../../../src/lib/prng.ts';
import { Mapper } from '../../../src/mapper/mapper.ts';
import { checkMetadata } from '../../../src/stores/thin/check.ts';
import { Pool } from '../../../src/targets/thin/pool.ts';
import { FakeClock } from '../../../src/testing/fake-clock.ts';
import { FakeDisks } from '../../../src/testing/fake-disks.ts';
import { bytes, SECTOR } from '../../../src/units.ts';

const BLOCK = 128;
const BLOCKS = 24;
/** Of each thin device. */
const SECTORS = 6 * BLOCK;
const METADATA = 64 * 4096;
const STEPS = 50;
const SEEDS = Number(process.env.CRASH_SEEDS ?? 24);
/** Of all operations, so many are left out between two at which the power fails. */
const APART = 5;

const clock = Pool.clock;
beforeEach(() => void (Pool.clock = new FakeClock()));
afterEach(() => void (Pool.clock = clock));

/** What a sector of a device may hold after a power cut; the last one is what it holds now. */
type Sectors = number[][];

class Life {
  readonly power: PowerSupply;
  readonly metadata: SimulatedDisk;
  readonly data: SimulatedDisk;
  readonly mapper: Mapper;
  readonly model = new Map<number, Sectors>();
  /** A device that is being made, or deleted: it may be there or not. */
  uncertain: number | undefined;
  #writes = 0;
  #next = 0;

  constructor(power: PowerSupply, platters?: { metadata: Platter; data: Platter }) {
    this.power = power;
    this.metadata = new SimulatedDisk(METADATA, { power, name: '1:0', contents: platters?.metadata });
    this.data = new SimulatedDisk(BLOCKS * BLOCK * SECTOR, { power, name: '1:1', contents: platters?.data });
    const disks = new FakeDisks();
    disks.add(this.metadata, '/dev/ram0');
    disks.add(this.data, '/dev/ram1');
    this.mapper = new Mapper({ opener: disks });
  }

  async create(name: string, line: string): Promise<void> {
    const [start, length, type, ...args] = line.split(' ');
    await this.mapper.create(name);
    await this.mapper.load({ name }, [{ start: Number(start), length: Number(length), type, args: args.join(' ') }]);
    await this.mapper.resume({ name });
  }

  async begin(): Promise<void> {
    await this.create('pool', `0 ${BLOCKS * BLOCK} thin-pool /dev/ram0 /dev/ram1 ${BLOCK} 0 1 error_if_no_space`);
  }

  activate(id: number): Promise<void> {
    return this.create(`t${id}`, `0 ${SECTORS} thin /dev/mapper/pool ${id}`);
  }

  device(id: number) {
    return this.mapper.device({ name: `t${id}` });
  }

  /** A message is durable when it is answered, and so is all that came before. */
  async #message(text: string): Promise<void> {
    await this.mapper.message({ name: 'pool' }, 0, text);
    for (const sectors of this.model.values()) settle(sectors);
  }

  async step(random: Prng): Promise<void> {
    const ids = [...this.model.keys()];
    const id = ids.length > 0 ? random.pick(ids) : -1;
    const kind = ids.length === 0 ? 0 : random.below(24);
    if (kind <= 1 && ids.length < 4) {
      const made = this.#next++;
      this.uncertain = made;
      const from = kind === 1 && id >= 0 ? this.model.get(id)! : undefined;
      await this.#message(from ? `create_snap ${made} ${id}` : `create_thin ${made}`);
      this.uncertain = undefined;
      this.model.set(
        made,
        Array.from({ length: SECTORS }, (_, i) => [from ? from[i].at(-1)! : 0]),
      );
      await this.activate(made);
    } else if (kind === 2) {
      await this.mapper.remove({ name: `t${id}` });
      this.uncertain = id;
      this.model.delete(id);
      await this.#message(`delete ${id}`);
      this.uncertain = undefined;
    } else if (kind === 3) {
      await this.device(id).flush();
      settle(this.model.get(id)!);
    } else if (kind >= 4 && kind < 10) {
      const at = random.below(SECTORS);
      const count = 1 + random.below(SECTORS - at);
      const sectors = this.model.get(id)!;
      const begin = Math.ceil(at / BLOCK) * BLOCK;
      const end = Math.floor((at + count) / BLOCK) * BLOCK;
      for (let i = begin; i < end; i++) sectors[i].push(0);
      await this.device(id).discard(bytes(at * SECTOR), count * SECTOR);
    } else {
      const at = random.below(SECTORS);
      const count = Math.min(random.pick([1, 8, BLOCK, 2 * BLOCK]), SECTORS - at);
      await this.write(id, at, count);
    }
  }

  async write(id: number, at: number, count: number): Promise<void> {
    const stamp = ++this.#writes;
    const content = new Uint8Array(count * SECTOR);
    const view = new DataView(content.buffer);
    for (let i = 0; i < count; i++) view.setUint32(i * SECTOR, stamp, true);
    const sectors = this.model.get(id)!;
    for (let i = at; i < at + count; i++) sectors[i].push(stamp);
    try {
      await this.device(id).write(bytes(at * SECTOR), content, 0, content.length);
    } catch (error) {
      // Of a write that found no space some blocks may have been written: the content tells.
      if (!this.power.on || (error as { errno?: string }).errno !== 'ENOSPC') throw error;
      const now = await this.read(id);
      for (let i = at; i < at + count; i++) if (now[i] !== stamp) sectors[i].push(now[i]);
    }
  }

  async read(id: number): Promise<number[]> {
    const content = new Uint8Array(SECTORS * SECTOR);
    await this.device(id).read(bytes(0), content, 0, content.length);
    const view = new DataView(content.buffer);
    return Array.from({ length: SECTORS }, (_, i) => view.getUint32(i * SECTOR, true));
  }
}

const settle = (sectors: Sectors) => {
  for (const values of sectors) values.splice(0, values.length - 1);
};

async function live(seed: number, cutAt?: number): Promise<Life> {
  const life = new Life(new PowerSupply({ seed, cutAt, slow: 0.2 }));
  const random = prng(seed);
  try {
    await life.begin();
    for (let step = 0; step < STEPS; step++) await life.step(random);
  } catch (error) {
    if (life.power.on) throw error;
  }
  return life;
}

test.each(Array.from({ length: SEEDS }, (_, i) => i + 1))(
  'seed %i',
  async (seed) => {
    const whole = await live(seed);
    for (const [id, sectors] of whole.model)
      expect(await whole.read(id)).toEqual(sectors.map((values) => values.at(-1)));
    for (let cutAt = seed % APART; cutAt < whole.power.count; cutAt += APART) {
      const { metadata, data, model, uncertain } = await live(seed, cutAt);
      const platters = { metadata: metadata.afterCrash(cutAt), data: data.afterCrash(cutAt + 1) };
      const after = new Life(new PowerSupply(), platters);
      await after.begin();
      const { findings, devices } = await checkMetadata(after.metadata);
      expect(
        findings.filter(({ severity }) => severity === 'error'),
        `cut at ${cutAt}`,
      ).toEqual([]);
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
