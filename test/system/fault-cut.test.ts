/**
 * A disk that stops writing at a moment, as when the power goes: everything lies on one file, below which a `flakey` table
 * takes the place of the one that works while the devices above are in use. Then the daemon is killed, the disk works
 * again, and everything is read back. FAULT_ROUNDS and FAULT_SEED as in fault.test.ts.
 */
import { truncateSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { DeviceMapper, type RemoteMapper } from '../../src/api/index.ts';
import { type Prng, prng } from '../../src/lib/prng.ts';
import { SECTOR } from '../../src/units.ts';
import { Image, Load, readExport } from '../support/nbd-load.ts';
import { World } from './program.ts';

const ROUNDS = Math.ceil(Number(process.env.FAULT_ROUNDS ?? 100) / 4);
const SEED = Number(process.env.FAULT_SEED ?? 1);
/** Sectors: of the origin, and of each COW device. */
const SIZE = 8192;
const COW = 10240;

let world: World;

beforeEach(() => {
  world = new World();
});

afterEach(() => world.close());

const connect = () => DeviceMapper.connect({ run: world.run, state: world.state, start: true });
const line = (length: number, type: string, args: string) => [{ start: 0, length, type, args }];

/** Lower devices first. */
const TABLES: [name: string, table: ReturnType<typeof line>][] = [
  ['real', line(SIZE, 'linear', 'bottom 0')],
  ['coarse-cow', line(COW, 'linear', `bottom ${SIZE}`)],
  ['fine-cow', line(COW, 'linear', `bottom ${SIZE + COW}`)],
  ['coarse', line(SIZE, 'snapshot', 'real coarse-cow P 32')],
  ['fine', line(SIZE, 'snapshot', 'real fine-cow P 8')],
  ['base', line(SIZE, 'snapshot-origin', 'real')],
];
const SHOWN = ['base', 'coarse', 'fine'];

class Stack {
  readonly images = new Map<string, Image>();
  readonly #disk = world.path('disk.img');

  /** The table of the device below all others. */
  async bottom(dm: RemoteMapper, type: string, args: string): Promise<void> {
    const name = 'bottom';
    await dm.load({ name }, line(SIZE + 2 * COW, type, args.replaceAll('DISK', this.#disk)));
    // What is not flushed may be lost.
    await dm.suspend({ name }, { noflush: true, nolockfs: true });
    await dm.resume({ name });
  }

  async works(dm: RemoteMapper, random: Prng): Promise<void> {
    if (random.chance(0.5)) await this.bottom(dm, 'linear', 'DISK 0');
    // A millisecond for each write.
    else await this.bottom(dm, 'delay', 'DISK 0 0 DISK 0 1');
  }

  async open(dm: RemoteMapper): Promise<void> {
    for (const [name, table] of TABLES) await dm.create(name, { table });
  }

  /** Those that were open over a disk that lied to them forget what they believe. */
  async close(dm: RemoteMapper): Promise<void> {
    for (const [name] of TABLES.toReversed()) await dm.remove({ name });
  }

  async check(dm: RemoteMapper): Promise<void> {
    for (const name of SHOWN) {
      const status = await dm.status({ name });
      expect([name, status[0].text]).toEqual([name, expect.not.stringContaining('Invalid')]);
      const content = await readExport(dm.uri(name));
      expect(this.images.get(name)!.faultAfterCrash(content)).toBeUndefined();
      this.images.get(name)!.settle(content);
    }
  }

  /** The snapshots begin anew: their stores are empty. */
  async renew(dm: RemoteMapper): Promise<void> {
    for (const [index, name] of SHOWN.entries()) {
      if (name !== 'base') await dm.revert({ name });
      this.images.set(name, new Image(index + 1, Buffer.from(this.images.get('base')!.settled)));
    }
  }
}

/** Loads all that is shown; after some replies the disk stops, after some more the daemon is killed. */
async function loadAndCut(stack: Stack, dm: RemoteMapper, random: Prng): Promise<void> {
  const { pid } = await dm.daemon();
  const cutAt = 1 + random.below(800);
  const more = 1 + random.below(200);
  const words = random.pick(['1 drop_writes', '1 error_writes']);
  let replies = 0;
  let killAt = Number.POSITIVE_INFINITY;
  let cut: Promise<void> | undefined;
  const loads: Load[] = [];
  const answered = () => {
    if (loads.length < 2 * SHOWN.length) return;
    replies++;
    if (replies === cutAt) {
      for (const image of stack.images.values()) image.die();
      cut = stack.bottom(dm, 'flakey', `DISK 0 0 1000 ${words}`).then(() => void (killAt = replies + more));
    }
    if (replies === killAt) process.kill(pid, 'SIGKILL');
  };
  for (const name of [...SHOWN, ...SHOWN])
    loads.push(
      await Load.start(dm.uri(name), stack.images.get(name)!, {
        depth: 1 + random.below(8),
        random: prng(random.below(2 ** 32)),
        hot: { from: random.below(SIZE - 1024), length: 1024 },
        answered,
        get mayFail() {
          return cut && (['EIO'] as const);
        },
      }),
    );
  await Promise.all(loads.map((load) => load.ended));
  await cut;
}

test(`a disk that stops writing loses nothing that a flush had covered, ${ROUNDS} times`, async () => {
  const origin = Buffer.alloc(SIZE * SECTOR);
  new Image(1, origin).fill(origin, 0, 1);
  writeFileSync(world.path('disk.img'), origin);
  truncateSync(world.path('disk.img'), (SIZE + 2 * COW) * SECTOR);
  const random = prng(SEED);
  const stack = new Stack();
  let dm = await connect();
  await dm.create('bottom');
  await stack.works(dm, random);
  await stack.open(dm);
  stack.images.set('base', new Image(1, origin));
  await stack.renew(dm);
  for (let round = 0; round < ROUNDS; round++) {
    await loadAndCut(stack, dm, random);
    dm = await connect();
    await stack.close(dm);
    await stack.works(dm, random);
    await stack.open(dm);
    await stack.check(dm).catch((error) => {
      throw new Error(`round ${round} of seed ${SEED}: ${error.message}`, { cause: error });
    });
    if (random.chance(0.5)) await stack.renew(dm);
  }
}, 600_000);
