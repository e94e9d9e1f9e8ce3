/**
 * Forks of several images, each on a thread of its own: loaded at once, and killed while tables over forks of two threads bring
 * these together. `FAULT_ROUNDS` and `FAULT_SEED` as in fault.test.ts.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { DeviceMapper, type RemoteMapper } from '../../src/api/index.ts';
import { type Prng, prng } from '../../src/lib/prng.ts';
import { SECTOR } from '../../src/units.ts';
import { Image, Load, readExport } from '../support/nbd-load.ts';
import { World } from './program.ts';

const ROUNDS = Math.ceil(Number(process.env.FAULT_ROUNDS ?? 100) / 5);
const SEED = Number(process.env.FAULT_SEED ?? 1);
const MIB = 1024 * 1024;
const SIZE = 2 * MIB;
const REPLIES_MAX = 1000;
const LOADED = ['a', 'b', 'c'];
const IDLE = ['d', 'e'];

let world: World;

beforeEach(() => {
  vi.stubEnv('DMKIT_ENGINES', '2');
  world = new World();
});

afterEach(async () => {
  vi.unstubAllEnvs();
  await world.close();
});

const connect = () => DeviceMapper.connect({ run: world.run, state: world.state, start: true });

const line = (name: string, start: number) => ({ start, length: SIZE / SECTOR, type: 'linear', args: `${name} 0` });

/** Forks and origins of all images, by name, and what they hold. */
async function prepare(dm: RemoteMapper): Promise<Map<string, Image>> {
  const images = new Map<string, Image>();
  const add = (name: string, content: Buffer) => images.set(name, new Image(images.size + 1, content));
  for (const name of [...LOADED, ...IDLE]) {
    const content = Buffer.alloc(SIZE, name);
    writeFileSync(world.path(`${name}.img`), content);
    await dm.fork(world.path(`${name}.img`), `f${name}`);
    add(name, content);
    add(`f${name}`, Buffer.from(content));
  }
  return images;
}

/** A table over forks of two threads, again and again; what is in use stays where it is. Rejects when the daemon dies. */
async function join(dm: RemoteMapper, random: Prng): Promise<void> {
  for (;;) {
    await dm.create('idle', { table: [line('fd', 0), line('fe', SIZE / SECTOR)] });
    await dm.remove({ name: 'idle' });
    const [first, second] = [random.pick(LOADED), random.pick(LOADED)];
    const table = [line(`f${first}`, 0), line(`f${second}`, SIZE / SECTOR)];
    await dm.create('used', { table }).then(
      () => dm.remove({ name: 'used' }),
      (error) => {
        if (error.code !== 'ENGINES_SHARED') throw error;
      },
    );
    await dm.fork(world.path(`${random.pick(IDLE)}.img`), 'passing');
    await dm.drop('passing');
  }
}

async function loadAndKill(dm: RemoteMapper, images: Map<string, Image>, random: Prng): Promise<void> {
  const { pid } = await dm.daemon();
  let left = 1 + random.below(REPLIES_MAX);
  const unlessKilled = (work: Promise<unknown>) =>
    work.catch((error) => {
      if (left > 0) throw error;
    });
  const loads: Load[] = [];
  const load = async (name: string) => {
    const answered = () => {
      if (--left === 0) process.kill(pid, 'SIGKILL');
    };
    const options = {
      depth: 1 + random.below(8),
      random: prng(random.below(2 ** 32)),
      hot: { from: random.below(2048), length: 1024 },
      answered,
    };
    loads.push(await Load.start(dm.uri(name), images.get(name)!, options));
  };
  for (const name of LOADED.flatMap((each) => [each, `f${each}`, `f${each}`])) await unlessKilled(load(name));
  await unlessKilled(join(dm, random));
  await Promise.all(loads.map(({ ended }) => ended));
  for (const { fault } of loads) expect(fault).toBeUndefined();
}

/** After a restart every device is there, and holds what it must. */
async function check(dm: RemoteMapper, images: Map<string, Image>): Promise<void> {
  const volumes = new Map((await dm.volumes()).map((volume) => [volume.name, volume]));
  for (const name of ['idle', 'used']) if (volumes.delete(name)) await dm.remove({ name });
  if (volumes.delete('passing')) await dm.drop('passing');
  expect([...volumes.keys()].sort()).toEqual([...images.keys()].sort());
  for (const [name, image] of images) {
    const { state, note } = volumes.get(name)!;
    expect([name, state, note]).toEqual([name, 'active', undefined]);
    const content = await readExport(dm.uri(name));
    expect(image.faultAfterCrash(content)).toBeUndefined();
    image.settle(content);
  }
  for (const name of [...LOADED, ...IDLE])
    expect(readFileSync(world.path(`${name}.img`)).equals(images.get(name)!.settled)).toBe(true);
}

test(`after kill -9 no device of any thread is lost, nor what a flush had covered, ${ROUNDS} times`, async () => {
  const random = prng(SEED);
  let dm = await connect();
  const images = await prepare(dm);
  for (let round = 0; round < ROUNDS; round++) {
    expect((await dm.daemon()).threads).toBe(3);
    await loadAndKill(dm, images, random);
    dm = await connect();
    try {
      await check(dm, images);
    } catch (error) {
      throw new Error(`round ${round} of seed ${SEED}: ${(error as Error).message}`, { cause: error });
    }
  }
}, 600_000);

test('fio finds what it wrote to volumes of two threads at once, and everything ends in order', async () => {
  for (const name of ['a', 'b']) {
    writeFileSync(world.path(`${name}.img`), Buffer.alloc(16 * MIB, name));
    await world.ok('dmkit', 'fork', `${name}.img`, `f${name}`);
  }
  const uri = async (name: string) => (await world.ok('dmkit', 'uri', name)).trim();
  const jobs = await Promise.all(
    ['fa', 'fb', 'a', 'b'].map(async (name) => [`--name=${name}`, `--uri=${await uri(name)}`]),
  );
  await world.ok(
    'fio',
    ...['--ioengine=nbd', '--rw=randwrite', '--bs=4k', '--size=16m', '--iodepth=16', '--verify=crc32c'],
    ...['--verify_fatal=1', '--fsync=64', ...jobs.flat()],
  );
  const dm = await connect();
  expect((await dm.daemon()).threads).toBe(2);
  const before = await readExport(dm.uri('fb'));
  await world.ok('dmkit', 'down');
  expect((await readExport((await connect()).uri('fb'))).equals(before)).toBe(true);
});
