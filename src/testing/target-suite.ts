/**
 * What every target keeps, whatever it does with the data. A target passes when all cases pass on disks that answer at
 * once and on disks that answer later, on its own, over `linear`, under `linear` and behind another target.
 */
import assert from 'node:assert/strict';
import type { BlockDevice } from '../device/block-device.ts';
import { MemoryDevice } from '../device/memory.ts';
import { DmError } from '../errors.ts';
import { type Prng, prng } from '../lib/prng.ts';
import type { TargetSpec } from '../mapper/control.ts';
import { Mapper } from '../mapper/mapper.ts';
import { targetTypes } from '../mapper/registry.ts';
import type { TargetType } from '../targets/target.ts';
import { bytes, SECTOR } from '../units.ts';
import { FailingDevice } from './failing-device.ts';
import { FakeDisks } from './fake-disks.ts';
import { SlowDevice } from './slow-device.ts';

/** The target under test, and what it needs. */
export interface TargetSuite {
  type: TargetType;
  /** Length of the target in sectors. */
  sectors: number;
  /** Arguments over the disks `1:0`, `1:1`, …, each of `diskSectors`. */
  args(disks: readonly string[]): string;
  disks: number;
  /** How many of them a flush reaches, if not all. */
  flushedDisks?: number;
  diskSectors: number;
  /** `keep` what was written, read as `zeroes`, or `fail`. */
  data: 'keep' | 'zeroes' | 'fail';
  /** Arguments that are refused, and the error's text. */
  refused: readonly { args: string; sectors?: number; text: string }[];
}

type Test = (name: string, run: () => Promise<void>) => void;

const AROUND = 16;

/** Registers the suite's cases with a test runner's `test`. */
export function targetSuite(test: Test, suite: TargetSuite): void {
  const { type, sectors, data } = suite;
  const line = (args: string, start = 0, length = sectors): TargetSpec => ({ start, length, type: type.name, args });
  const size = sectors * SECTOR;

  for (const pace of ['at once', 'later'] as const)
    for (const place of ['alone', 'over linear', 'under linear', 'behind a target'] as const) {
      const title = (text: string) => `${type.name} ${place}, disks that answer ${pace}: ${text}`;
      const setup = () => stage(suite, pace, place, line);

      test(title('equals a model after random operations'), async () => {
        const { device, shift, finish } = await setup();
        const random = prng(suite.sectors * 31 + place.length);
        const model = new Model(size);
        for (let step = 0; step < 300; step++) await model.step(random, device, shift, data);
        await finish();
      });

      test(title('keeps its data over suspend and resume'), async () => {
        const { mapper, device, shift, finish } = await setup();
        const model = new Model(size);
        const random = prng(7);
        for (let step = 0; step < 20; step++) await model.step(random, device, shift, data);
        await mapper.suspend({ name: 'target' });
        const waiting = model.check(device, shift, data);
        await mapper.resume({ name: 'target' });
        await waiting;
        await finish();
      });

      test(title('loads again from its own table text to the same text'), async () => {
        const { mapper, finish } = await setup();
        const text = await mapper.table({ name: 'target' });
        await mapper.load(
          { name: 'target' },
          text.map(({ text: args, ...spec }) => ({ ...spec, args })),
        );
        await mapper.resume({ name: 'target' });
        assert.deepEqual(await mapper.table({ name: 'target' }), text);
        for (const { text: status } of await mapper.status({ name: 'target' })) assert.ok(!status.includes('\n'));
        await finish();
      });

      test(title('a write that completed is flushed below before a flush completes'), async () => {
        const { device, shift, flushed, finish } = await setup();
        if (data === 'keep') await device.write(bytes(shift), new Uint8Array(size).fill(1), 0, size);
        flushed.clear();
        await device.flush();
        if (data === 'keep') assert.equal(flushed.size, suite.flushedDisks ?? suite.disks);
        await finish();
      });

      if (suite.disks > 0)
        test(title('an error below fails the request and nothing else'), async () => {
          const { device, failing, shift, finish } = await setup();
          const buffer = new Uint8Array(size);
          for (const disk of failing) disk.fail(['read', 'write']);
          await assert.rejects(
            settle(() => device.read(bytes(shift), buffer, 0, size)),
            { errno: 'EIO' },
          );
          await assert.rejects(
            settle(() => device.write(bytes(shift), buffer, 0, size)),
            { errno: 'EIO' },
          );
          for (const disk of failing) disk.repair();
          await device.write(bytes(shift), buffer, 0, size);
          await device.read(bytes(shift), buffer, 0, size);
          await finish();
        });
    }

  test(`${type.name}: a read-only table refuses writes and opens its disks for reading`, async () => {
    const { disks, names } = makeDisks(suite, 'at once');
    const mapper = new Mapper({ opener: disks, types: withType(type) });
    await mapper.create('target');
    await mapper.load({ name: 'target' }, [line(suite.args(names))], { readOnly: true });
    await mapper.resume({ name: 'target' });
    assert.ok([...disks.opened.values()].every((mode) => mode === 'r'));
    const device = mapper.device({ name: 'target' });
    await assert.rejects(
      settle(() => device.write(bytes(0), new Uint8Array(512), 0, 512)),
      { errno: 'EPERM' },
    );
    await mapper.remove({ name: 'target' });
    assert.equal(disks.opened.size, 0);
  });

  for (const { args, sectors: length = sectors, text } of suite.refused)
    test(`${type.name} refuses "${args}" over ${length} sectors: ${text}`, async () => {
      const { disks } = makeDisks(suite, 'at once');
      const mapper = new Mapper({ opener: disks, types: withType(type) });
      await mapper.create('target');
      await assert.rejects(mapper.load({ name: 'target' }, [line(args, 0, length)]), (error) => {
        assert.ok(error instanceof DmError);
        assert.ok(error.message.startsWith(`${type.name}: ${text}`), error.message);
        return true;
      });
      assert.equal(disks.opened.size, 0);
      assert.equal((await mapper.info({ name: 'target' })).inactive, false);
    });
}

const withType = (type: TargetType) => [type, ...targetTypes.filter(({ name }) => name !== type.name)];

/** An operation that may throw at once, as a promise. */
const settle = async (operation: () => unknown): Promise<void> => {
  await operation();
};

function makeDisks(suite: TargetSuite, pace: 'at once' | 'later') {
  const disks = new FakeDisks();
  const failing: FailingDevice[] = [];
  const flushed = new Set<string>();
  const names: string[] = [];
  for (let index = 0; index < suite.disks; index++) {
    const memory = new MemoryDevice(suite.diskSectors * SECTOR, { name: `1:${index}` });
    memory.flush = () => void flushed.add(memory.name);
    const broken = new FailingDevice(memory);
    failing.push(broken);
    names.push(memory.name);
    disks.add(pace === 'later' ? new SlowDevice(broken) : broken);
  }
  return { disks, failing, flushed, names };
}

async function stage(
  suite: TargetSuite,
  pace: 'at once' | 'later',
  place: 'alone' | 'over linear' | 'under linear' | 'behind a target',
  line: (args: string, start?: number) => TargetSpec,
) {
  const { disks, failing, flushed, names } = makeDisks(suite, pace);
  const mapper = new Mapper({ opener: disks, types: withType(suite.type) });
  const activate = async (name: string, table: TargetSpec[]) => {
    await mapper.create(name);
    await mapper.load({ name }, table);
    await mapper.resume({ name });
    return mapper.device({ name });
  };
  let below = names;
  if (place === 'over linear') {
    below = [];
    for (const name of names) {
      const args = `${name} 0`;
      const lower = await activate(`linear-${name}`, [{ start: 0, length: suite.diskSectors, type: 'linear', args }]);
      below.push(lower.name);
    }
  }
  const before = place === 'behind a target' ? AROUND : 0;
  const own = line(suite.args(below), before);
  const table = before ? [{ start: 0, length: before, type: 'zero', args: '' }, own] : [own];
  const target = await activate('target', table);
  const args = `${target.name} 0`;
  const device =
    place === 'under linear'
      ? await activate('upper', [{ start: 0, length: suite.sectors, type: 'linear', args }])
      : target;
  const finish = async () => {
    await mapper.removeAll();
    assert.deepEqual(await mapper.list(), []);
    assert.equal(disks.opened.size, 0);
  };
  return { mapper, device, failing, flushed, shift: before * SECTOR, finish };
}

/** What a target of `size` bytes holds. 256 stands for: anything. */
class Model {
  #content: Uint16Array;

  constructor(size: number) {
    this.#content = new Uint16Array(size);
  }

  async step(random: Prng, device: BlockDevice, shift: number, data: TargetSuite['data']): Promise<void> {
    const sectors = this.#content.length / SECTOR;
    const first = random.below(sectors);
    const count = 1 + random.below(Math.min(sectors - first, random.chance(0.2) ? sectors : 24));
    const [at, length] = [first * SECTOR, count * SECTOR];
    const place = bytes(shift + at);
    const expectFailure = data === 'fail';
    const run = async (operation: () => unknown) => {
      if (expectFailure) await assert.rejects(settle(operation), { errno: 'EIO' });
      else await operation();
    };
    switch (random.below(5)) {
      case 0: {
        const value = 1 + random.below(255);
        await run(() => device.write(place, new Uint8Array(length).fill(value), 0, length));
        if (data === 'keep') this.#content.fill(value, at, at + length);
        break;
      }
      case 1:
        await run(() => device.writeZeroes(place, length, random.chance(0.5)));
        if (data === 'keep') this.#content.fill(0, at, at + length);
        break;
      case 2:
        if (!device.canDiscard) {
          await assert.rejects(
            settle(() => device.discard(place, length)),
            { errno: 'EOPNOTSUPP' },
          );
        } else {
          await run(() => device.discard(place, length));
          this.#content.fill(256, at, at + length);
        }
        break;
      case 3:
        await run(() => this.#checkExtents(device, place, at, length));
        break;
      default:
        await this.check(device, shift, data, at, length);
    }
  }

  async check(
    device: BlockDevice,
    shift: number,
    data: TargetSuite['data'],
    at = 0,
    length = this.#content.length,
  ): Promise<void> {
    const margin = SECTOR;
    const found = new Uint8Array(length + 2 * margin).fill(0xee);
    if (data === 'fail') {
      await assert.rejects(
        settle(() => device.read(bytes(shift + at), found, margin, length)),
        { errno: 'EIO' },
      );
      return;
    }
    await device.read(bytes(shift + at), found, margin, length);
    for (let i = 0; i < margin; i++) assert.ok(found[i] === 0xee && found[margin + length + i] === 0xee);
    for (let i = 0; i < length; i++) {
      const expected = this.#content[at + i];
      if (expected !== 256 && found[margin + i] !== expected)
        assert.fail(`byte ${at + i} is ${found[margin + i]}, expected ${expected}`);
    }
  }

  async #checkExtents(device: BlockDevice, place: number, at: number, length: number): Promise<void> {
    const extents = await device.extents(bytes(place), length);
    assert.ok(extents.length > 0);
    let covered = 0;
    for (const extent of extents) {
      assert.ok(extent.length > 0 && extent.length % SECTOR === 0);
      if (extent.zero)
        for (let i = at + covered; i < at + covered + extent.length; i++)
          assert.ok(this.#content[i] === 0 || this.#content[i] === 256, `byte ${i} is said to be zero`);
      covered += extent.length;
    }
    assert.ok(covered <= length);
  }
}
