/**
 * Pools and volumes under load: the daemon is killed at random moments, started again, and everything is read back; a pool that fills up,
 * with clients that wait; a disk that is full below it. `FAULT_ROUNDS` and `FAULT_SEED` as in fault.test.ts. Needs thin_check, qemu-io,
 * root and mount (tmpfs).
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { DeviceMapper, type RemoteMapper } from '../../src/api/index.ts';
import { type Prng, prng } from '../../src/lib/prng.ts';
import { SECTOR } from '../../src/units.ts';
import { Image, Load, readExport } from '../support/nbd-load.ts';
import { World } from './program.ts';

const ROUNDS = Math.ceil(Number(process.env.FAULT_ROUNDS ?? 100) / 20);
const SEED = Number(process.env.FAULT_SEED ?? 1);
const MIB = 1024 * 1024;
const SIZE = 2 * MIB;
/** Replies of a round before the daemon is killed, at most. */
const REPLIES_MAX = 1500;

let world: World;

beforeEach(() => {
  world = new World();
});

afterEach(() => world.close());

const connect = (start = true) => DeviceMapper.connect({ run: world.run, state: world.state, start });

/** Of the pool in `file` that nobody has open, real tools and our own find nothing; resolves with the numbers of its thin devices. */
async function checked(file: string): Promise<number[]> {
  await world.ok('thin_check', file);
  // A crash may leave blocks that were about to be mapped, as in the kernel.
  await world.ok('dmkit', 'thin', 'check', '--ignore-non-fatal-errors', file);
  const rows = await world.ok('dmkit', 'thin', 'ls', '--no-headers', '-o', 'DEV', file);
  return rows.split('\n').filter(Boolean).map(Number);
}

/** A volume, a fork of it, and one over an image, in a pool that must grow for them. */
class Volumes {
  readonly images = new Map<string, Image>();
  readonly golden: Buffer;
  /** The one that comes and goes under load: whether it must be there, if that is known. */
  passing: boolean | undefined = false;
  #tag = 0;

  constructor(golden: Buffer) {
    this.golden = golden;
  }

  get names(): string[] {
    return [...this.images.keys()];
  }

  /** `plain` has to be there for `fork`. */
  async make(dm: RemoteMapper, name: string): Promise<void> {
    const sources = { plain: { size: SIZE }, fork: { volume: 'plain' }, over: { image: world.path('golden.img') } };
    await dm.createVolume('pool', name, sources[name as keyof typeof sources]);
    const settled = { plain: Buffer.alloc(SIZE), fork: this.images.get('plain')?.settled, over: this.golden };
    this.images.set(name, new Image(++this.#tag, Buffer.from(settled[name as keyof typeof settled]!)));
  }

  /** After a restart: each is there, and holds what it must. */
  async check(dm: RemoteMapper): Promise<void> {
    const volumes = new Map((await dm.volumes()).filter(({ pool }) => pool).map((volume) => [volume.name, volume]));
    if (volumes.has('renamed')) {
      await dm.rename({ name: 'renamed' }, 'over');
      volumes.set('over', volumes.get('renamed')!);
      volumes.delete('renamed');
    }
    if (this.passing !== undefined) expect(volumes.has('passing')).toBe(this.passing);
    if (volumes.delete('passing')) await dm.drop('passing');
    this.passing = false;
    expect([...volumes.keys()].sort()).toEqual(this.names.sort());
    for (const [name, image] of this.images) {
      const { state, note, origin } = volumes.get(name)!;
      expect([name, note, origin]).toEqual([name, undefined, name === 'fork' ? 'pool/plain' : origin]);
      if (state === 'suspended') await dm.resume({ name });
      else expect([name, state]).toEqual([name, 'active']);
      const content = await readExport(dm.uri(name));
      expect(image.faultAfterCrash(content)).toBeUndefined();
      image.settle(content);
    }
  }

  async renew(dm: RemoteMapper, random: Prng): Promise<void> {
    const name = random.pick(['fork', 'over', '']);
    if (name === '') return;
    await dm.drop(name);
    await this.make(dm, name);
  }

  /** What somebody else does at the control socket while the load runs. Rejects when the daemon dies. */
  async meddle(dm: RemoteMapper, random: Prng): Promise<void> {
    const device = { name: random.pick(this.names) };
    switch (random.pick(['nothing', 'come and go', 'come and go', 'suspend', 'extend', 'rename'])) {
      case 'come and go':
        for (;;) {
          this.passing = undefined;
          await dm.createVolume('pool', 'passing', { volume: random.pick(this.names) });
          this.passing = true;
          this.passing = undefined;
          await dm.drop('passing');
          this.passing = false;
        }
      case 'suspend':
        for (;;) {
          await dm.suspend(device);
          await dm.resume(device);
        }
      case 'extend':
        for (;;) {
          const { size } = (await dm.volumes()).find(({ name }) => name === 'pool')!;
          // It may have grown by more meanwhile.
          await dm
            .extendPool('pool', size + 65536)
            .catch((error) => expect(error).toMatchObject({ code: 'POOL_SIZE' }));
        }
      case 'rename':
        for (;;) {
          await dm.rename({ name: 'over' }, 'renamed');
          await dm.rename({ name: 'renamed' }, 'over');
        }
    }
  }
}

/** Loads every volume, and kills the daemon after a number of replies. */
async function loadAndKill(volumes: Volumes, dm: RemoteMapper, random: Prng): Promise<void> {
  const { pid } = await dm.daemon();
  let left = 1 + random.below(REPLIES_MAX);
  const loads: Load[] = [];
  const length = 1024;
  const hot = { from: random.below(SIZE / SECTOR - length), length };
  const answered = () => {
    if (--left === 0) process.kill(pid, 'SIGKILL');
  };
  /** What the death of the daemon fails. */
  const unlessKilled = async (work: Promise<unknown>) => {
    try {
      await work;
    } catch (error) {
      if (left > 0) throw error;
    }
  };
  const load = async (name: string) => {
    const options = { depth: 1 + random.below(8), random: prng(random.below(2 ** 32)), hot, answered };
    loads.push(await Load.start(dm.uri(name), volumes.images.get(name)!, options));
  };
  for (const name of [...volumes.names, ...volumes.names]) await unlessKilled(load(name));
  await unlessKilled(volumes.meddle(dm, random));
  await Promise.all(loads.map((each) => each.ended));
  for (const { fault } of loads) expect(fault).toBeUndefined();
}

test(`after kill -9 no volume of a pool that grows has lost what was flushed, ${ROUNDS} times`, async () => {
  const volumes = new Volumes(Buffer.alloc(SIZE, 'golden. '));
  writeFileSync(world.path('golden.img'), volumes.golden);
  const random = prng(SEED);
  const file = world.path('pool.img');
  let dm = await connect();
  await dm.createPool(file, { size: MIB, autoextend: { threshold: 80, percent: 20 } });
  for (const name of ['plain', 'fork', 'over']) await volumes.make(dm, name);
  for (let round = 0; round < ROUNDS; round++) {
    await loadAndKill(volumes, dm, random);
    while ((await world.dmkit('thin', 'ls', file)).stderr.includes('has it open')) await turn();
    await checked(file);
    dm = await connect();
    try {
      await volumes.check(dm);
    } catch (error) {
      throw new Error(`round ${round} of seed ${SEED}: ${(error as Error).message}`, { cause: error });
    }
    await volumes.renew(dm, random);
  }
  expect((await dm.volumes()).find(({ name }) => name === 'pool')!.size).toBeGreaterThan(MIB);
  const ids = (await dm.volumes()).flatMap(({ id }) => (id === undefined ? [] : [id]));
  await world.ok('dmkit', 'down');
  // None is left of those that came and went.
  expect(await checked(file)).toEqual(ids.sort((a, b) => a - b));
  expect(readFileSync(world.path('golden.img')).equals(volumes.golden)).toBe(true);
  expect(readFileSync(world.path('state/dmkit.log'), 'utf8')).not.toMatch(/^\s+at |unhandled|fatal|cannot tidy/m);
}, 300_000);

test('clients of a pool that is full wait, and go on when it has more', async () => {
  const dm = await connect();
  await dm.createPool(world.path('pool.img'), { size: MIB });
  for (const name of ['one', 'two']) await dm.createVolume('pool', name, { size: 4 * MIB });
  const qemu = (name: string, ...commands: string[]) =>
    world.exec('qemu-io', ['-f', 'raw', dm.uri(name), ...commands.flatMap((command) => ['-c', command])]);
  expect(await qemu('two', 'write -P 2 0 64k', 'flush')).toMatchObject({ status: 0 });
  const filling = qemu('one', 'write -P 1 0 4M', 'flush');
  const stateOf = async () => (await dm.volumes()).find(({ name }) => name === 'pool')!.state;
  while ((await stateOf()) !== 'full') await turn();
  // What needs no block is not kept waiting; nor is a fork, though the volume has requests under way.
  expect(await qemu('two', 'write -P 3 0 4k', 'read -P 2 4k 60k')).toMatchObject({ status: 0 });
  const fork = world.dmkit('fork', 'pool/one', 'fork');
  await world.ok('dmkit', 'pool', 'extend', 'pool', '--size', '8M');
  expect(await filling).toMatchObject({ status: 0 });
  expect(await fork).toMatchObject({ status: 0 });
  expect((await qemu('one', 'read -P 1 0 4M')).stdout).not.toContain('Pattern');
  expect(await stateOf()).toBe('active');
});

test('a disk that is full below a pool costs nothing that was flushed', async () => {
  mkdirSync(world.path('small'));
  await world.ok('mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', 'small');
  try {
    const file = world.path('small/pool.img');
    let dm = await connect();
    await dm.createPool(file, { size: 64 * MIB });
    await dm.createVolume('pool', 'dev', { size: 64 * MIB });
    const block = (at: number) => Buffer.alloc(65536, `${at};`);
    let written = 0;
    const writeTo = async (end: number) => {
      const disk = await dm.device('dev');
      try {
        for (; written < end; written += 65536) {
          await disk.write(written, block(written));
          await disk.flush();
        }
      } finally {
        await disk.close();
      }
    };
    const check = async () => {
      const disk = await dm.device('dev');
      for (let at = 0; at < written; at += 65536) expect((await disk.read(at, 65536)).equals(block(at))).toBe(true);
      await disk.close();
    };
    await expect(writeTo(8 * MIB)).rejects.toMatchObject({ errno: 'ENOSPC' });
    expect(written).toBeGreaterThan(MIB);
    await check();
    await world.kill();
    dm = await connect();
    await check();
    await world.ok('mount', '-o', 'remount,size=16m', 'small');
    // As `dmkit ls` says, where there was no room for metadata either.
    await world.ok('dmkit', 'down');
    await world.ok('dmkit', 'thin', 'check', '--clear-needs-check-flag', file);
    dm = await connect();
    await check();
    await writeTo(8 * MIB);
    await check();
    await world.ok('dmkit', 'down');
    expect(await checked(file)).toEqual([1]);
  } finally {
    await world.ok('dmkit', 'down', '--force');
    while ((await world.exec('umount', ['small'])).status !== 0) await turn();
  }
});
