/** A pool and its thin devices on disks that lose power, beside a model of what they may then hold. */
import { type Platter, type PowerOptions, PowerSupply, SimulatedDisk } from '../../src/device/simulated.ts';
import { type Prng, prng } from '../../src/lib/prng.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { Pool } from '../../src/targets/thin/pool.ts';
import { FakeClock } from '../../src/testing/fake-clock.ts';
import { FakeDisks } from '../../src/testing/fake-disks.ts';
import { bytes, SECTOR } from '../../src/units.ts';

const BLOCK = 128;
const BLOCKS = 24;
/** Of each thin device. */
const SECTORS = 6 * BLOCK;
const METADATA = 64 * 4096;
const STEPS = 50;

/** What a sector of a device may hold after a power cut; the last one is what it holds now. */
type Sectors = number[][];

export class PoolLife {
  readonly power: PowerSupply;
  readonly metadata: SimulatedDisk;
  readonly data: SimulatedDisk;
  readonly mapper: Mapper;
  readonly clock = new FakeClock();
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
  async message(text: string): Promise<void> {
    await this.mapper.message({ name: 'pool' }, 0, text);
    for (const sectors of this.model.values()) settle(sectors);
  }

  async step(random: Prng): Promise<void> {
    const ids = [...this.model.keys()];
    const id = ids.length > 0 ? random.pick(ids) : -1;
    const kind = ids.length === 0 ? 0 : random.below(28);
    if (kind <= 1 && ids.length < 4) {
      const made = this.#next++;
      this.uncertain = made;
      const from = kind === 1 && id >= 0 ? this.model.get(id)! : undefined;
      await this.message(from ? `create_snap ${made} ${id}` : `create_thin ${made}`);
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
      await this.message(`delete ${id}`);
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
    } else if (kind < 24) await this.#writeSomewhere(id, random);
    else await this.#together(ids, id, random);
  }

  #writeSomewhere(id: number, random: Prng): Promise<void> {
    const at = random.below(SECTORS);
    const count = Math.min(random.pick([1, 8, BLOCK, 2 * BLOCK]), SECTORS - at);
    return this.write(id, at, count);
  }

  /** All but one are written while that one is flushed, or while a second passes, after which what nobody flushed is committed. */
  async #together(ids: number[], id: number, random: Prng): Promise<void> {
    const others = ids.filter((other) => other !== id);
    const writes = others.map((other) => this.#writeSomewhere(other, random));
    if (random.below(2) === 0) this.clock.pass(1000);
    const flush = async () => {
      await this.device(id).flush();
      settle(this.model.get(id)!);
    };
    const failed = (await Promise.allSettled([...writes, flush()])).find(({ status }) => status === 'rejected');
    if (failed) throw (failed as PromiseRejectedResult).reason;
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

/** Random operations until the end, or until the power fails. `begun` is told of the disks before the first one. */
export async function livePool(
  seed: number,
  options: PowerOptions = {},
  begun: (life: PoolLife) => void = () => {},
): Promise<PoolLife> {
  const clock = Pool.clock;
  const life = new PoolLife(new PowerSupply({ seed, slow: 0.2, ...options }));
  Pool.clock = life.clock;
  const random = prng(seed);
  begun(life);
  try {
    await life.begin();
    for (let step = 0; step < STEPS; step++) await life.step(random);
  } catch (error) {
    if (life.power.on) throw error;
  } finally {
    Pool.clock = clock;
  }
  return life;
}
