/**
 * The daemon is killed at random moments under load, started again, and everything is read back. `FAULT_ROUNDS` and
 * `FAULT_SEED` give more rounds and others. A seed decides what is asked for and after how many replies the daemon is
 * killed; how far the requests in flight have come by then is the machine's.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { DeviceMapper, type RemoteMapper } from '../../src/api/index.ts';
import type { Errno } from '../../src/errors.ts';
import { type Prng, prng } from '../../src/lib/prng.ts';
import { SECTOR } from '../../src/units.ts';
import { Image, Load, readExport } from '../support/nbd-load.ts';
import { World } from './program.ts';

const ROUNDS = Number(process.env.FAULT_ROUNDS ?? 100);
const FIO_ROUNDS = Math.ceil(ROUNDS / 10);
const SEED = Number(process.env.FAULT_SEED ?? 1);
const MIB = 1024 * 1024;
const SIZE = 4 * MIB;
/** Replies of a round before the daemon is killed, at most. */
const REPLIES_MAX = 1500;

let world: World;

beforeEach(() => {
  world = new World();
});

afterEach(() => world.close());

/** An origin with three forks: chunks of 16 KiB, of 4 KiB, and a COW store that runs full. */
class Disks {
  readonly images = new Map<string, Image>();
  readonly #forks: Record<string, object> = {
    coarse: {},
    fine: { chunkSize: 4096 },
    small: { chunkSize: 8192, cowSize: MIB },
  };
  /** The fork that comes and goes under load: whether it must be there, if that is known. */
  passing: boolean | undefined = false;
  /** `coarse` flows into the image; undefined: perhaps. */
  merging: boolean | undefined = false;
  #tag = 0;

  get names(): string[] {
    return [...this.images.keys()];
  }

  add(name: string, settled: Buffer): void {
    this.images.set(name, new Image(++this.#tag, settled));
  }

  async fork(dm: RemoteMapper, name: string): Promise<void> {
    await dm.fork(world.path('disk.img'), name, this.#forks[name]);
    this.add(name, Buffer.from(this.images.get('disk')!.settled));
  }

  /** After a restart: each device is there, and holds what it must. */
  async check(dm: RemoteMapper): Promise<void> {
    const volumes = new Map((await dm.volumes()).map((volume) => [volume.name, volume]));
    if (volumes.has('renamed')) {
      await dm.rename({ name: 'renamed' }, 'fine');
      volumes.set('fine', volumes.get('renamed')!);
      volumes.delete('renamed');
    }
    if (this.merging === undefined && volumes.has('coarse')) this.merging = false;
    else if (this.merging === undefined) this.#begun();
    if (this.passing !== undefined) expect(volumes.has('passing')).toBe(this.passing);
    if (volumes.has('passing')) await dm.drop('passing');
    this.passing = false;
    volumes.delete('passing');
    expect([...volumes.keys()].sort()).toEqual(this.names.sort());
    for (const [name, image] of this.images) {
      const { state, note } = volumes.get(name)!;
      expect(note).toBeUndefined();
      if (state === 'suspended') await dm.resume({ name });
      else if (name === 'small' && (state === 'Invalid' || state === 'Overflow')) {
        await dm.drop(name);
        this.images.delete(name);
        continue;
      } else expect([name, state]).toEqual([name, expect.stringMatching(/^(active|merging coarse \d+%)$/)]);
      const content = await readExport(dm.uri(name));
      expect(image.faultAfterCrash(content)).toBeUndefined();
      image.settle(content);
    }
    if (this.merging) return;
    // What the forks show is theirs; the image itself holds what the origin shows.
    expect(readFileSync(world.path('disk.img')).equals(this.images.get('disk')!.settled)).toBe(true);
  }

  /** The changes of `coarse` begin to flow into the image: from now on the origin shows them, and the fork is gone. */
  async merge(dm: RemoteMapper): Promise<void> {
    this.merging = undefined;
    await dm.merge('coarse');
    this.#begun();
  }

  #begun(): void {
    this.images.get('disk')!.settle(this.images.get('coarse')!.settled);
    this.images.delete('coarse');
    this.merging = true;
  }

  async #merged(dm: RemoteMapper): Promise<void> {
    for (let since: number | undefined; this.merging; ) {
      const progress = await dm.mergeProgress('coarse', { since }).catch((error) => {
        // It was done before the restart.
        if (error.code !== 'NOT_MERGING') throw error;
      });
      if (progress)
        expect([progress.state, progress.error]).toEqual([expect.stringMatching(/merging|done/), undefined]);
      this.merging = progress?.state === 'merging';
      since = progress?.version;
    }
  }

  /** Brings back what has gone, and makes chunks that have no exception. */
  async renew(dm: RemoteMapper, random: Prng): Promise<void> {
    // A merge may also be killed again in the next round.
    if (this.merging && random.chance(0.3)) return;
    await this.#merged(dm);
    for (const name of Object.keys(this.#forks)) if (!this.images.has(name)) await this.fork(dm, name);
    const name = random.pick(['coarse', 'fine', 'small', '', '', '']);
    if (name === '') return;
    if (random.chance(0.5)) {
      await dm.revert({ name });
      this.add(name, Buffer.from(this.images.get('disk')!.settled));
    } else {
      await dm.drop(name);
      await this.fork(dm, name);
    }
  }

  /** What somebody else does at the control socket while the load runs. Rejects when the daemon dies. */
  async meddle(dm: RemoteMapper, random: Prng): Promise<void> {
    const device = { name: random.pick(this.names) };
    const deeds = this.merging !== false ? ['nothing', 'suspend'] : ['nothing', 'fork', 'suspend', 'reload', 'rename'];
    switch (random.pick(deeds)) {
      case 'fork':
        for (;;) {
          this.passing = undefined;
          await dm.fork(world.path('disk.img'), 'passing');
          this.passing = true;
          if (random.chance(0.3)) return;
          this.passing = undefined;
          await dm.drop('passing');
          this.passing = false;
        }
      case 'suspend':
        for (;;) {
          await dm.suspend(device);
          await dm.resume(device);
        }
      case 'reload':
        for (;;) {
          const table = await dm.table(device);
          await dm.load(
            device,
            table.map(({ text, ...line }) => ({ ...line, args: text })),
          );
          await dm.resume(device);
        }
      case 'rename':
        for (;;) {
          await dm.rename({ name: 'fine' }, 'renamed');
          await dm.rename({ name: 'renamed' }, 'fine');
        }
    }
  }
}

const connect = (start: boolean) => DeviceMapper.connect({ run: world.run, state: world.state, start });

/** Loads every disk, and kills the daemon after a number of replies. */
async function loadAndKill(disks: Disks, dm: RemoteMapper, random: Prng): Promise<void> {
  const { pid } = await dm.daemon();
  const toMerge = disks.images.has('coarse') && !disks.merging && random.chance(0.25);
  // A merge of so little is soon over.
  let left = 1 + random.below(toMerge || disks.merging ? REPLIES_MAX / 5 : REPLIES_MAX);
  // Now and then it may end as it should.
  const signal = random.chance(0.15) ? 'SIGTERM' : 'SIGKILL';
  const loads: Load[] = [];
  const length = 1024;
  const hot = { from: random.below(SIZE / SECTOR - length), length };
  /** What the death of the daemon fails. */
  const unlessKilled = async (work: Promise<unknown>) => {
    try {
      await work;
    } catch (error) {
      if (left > 0) throw error;
    }
  };
  const mayFail = (name: string): Errno[] => {
    if (name === 'small') return ['EIO', 'ENOSPC', 'ESHUTDOWN'];
    // What a suspended device still held.
    return signal === 'SIGTERM' ? ['ESHUTDOWN'] : [];
  };
  const load = async (name: string) => {
    const options = {
      depth: 1 + random.below(8),
      random: prng(random.below(2 ** 32)),
      hot,
      answered: () => {
        if (--left === 0) process.kill(pid, signal);
      },
      mayFail: mayFail(name),
    };
    loads.push(await Load.start(dm.uri(name), disks.images.get(name)!, options));
  };
  const others = disks.names.filter((name) => !toMerge || (name !== 'disk' && name !== 'coarse'));
  for (const name of [...others, ...others]) await unlessKilled(load(name));
  if (toMerge) {
    await unlessKilled(disks.merge(dm));
    if (disks.merging) await unlessKilled(load('disk'));
  }
  await unlessKilled(disks.meddle(dm, random));
  await Promise.all(loads.map((each) => each.ended));
  for (const { fault } of loads) expect(fault).toBeUndefined();
  if (signal === 'SIGTERM') for (const image of disks.images.values()) image.stop();
}

/** Kills a daemon that brings its devices back, or has just done so, some turns after it has its lock. */
async function killAtStart(turns: number): Promise<void> {
  const before = world.pid;
  const started = connect(true).catch(() => {});
  let pid = before;
  // While it is written the file is empty.
  while (pid === before || Number.isNaN(pid)) {
    await turn();
    pid = world.pid;
  }
  while (turns-- > 0) await turn();
  process.kill(pid, 'SIGKILL');
  await started;
}

test(`after kill -9 no write is lost that a flush had covered, ${ROUNDS} times`, async () => {
  const disks = new Disks();
  const origin = Buffer.alloc(SIZE);
  disks.add('disk', origin);
  disks.images.get('disk')!.fill(origin, 0, 1);
  writeFileSync(world.path('disk.img'), origin);
  const random = prng(SEED);
  let dm = await connect(true);
  for (const name of ['coarse', 'fine', 'small']) await disks.fork(dm, name);
  for (let round = 0; round < ROUNDS; round++) {
    await loadAndKill(disks, dm, random);
    if (random.chance(0.2)) await killAtStart(random.below(300));
    dm = await connect(true);
    try {
      await disks.check(dm);
    } catch (error) {
      throw new Error(`round ${round} of seed ${SEED}: ${(error as Error).message}`, { cause: error });
    }
    await disks.renew(dm, random);
  }
}, 600_000);

test(`after kill -9 fio finds what it had written and synced, ${FIO_ROUNDS} times`, async () => {
  writeFileSync(world.path('disk.img'), Buffer.alloc(SIZE, 'origin. '));
  const random = prng(SEED);
  let dm = await connect(true);
  /** fio on both, each in a half of its own. */
  const fio = (offset: number, ...words: string[]) =>
    world.exec('fio', [
      ...[`--offset=${offset}`, `--size=${SIZE / 2}`, '--ioengine=nbd', '--rw=randwrite', '--bs=4k', '--iodepth=8'],
      ...['--verify=crc32c', '--verify_state_save=0', '--verify_fatal=1', '--output-format=json', ...words],
      ...['dev', 'disk'].flatMap((name) => [`--name=${name}`, `--uri=${dm.uri(name)}`]),
    ]);
  for (let round = 0; round < FIO_ROUNDS; round++) {
    await dm.fork(world.path('disk.img'), 'dev');
    const half = (round % 2) * (SIZE / 2);
    const seed = `--randseed=${SEED + round}`;
    const { pid } = await dm.daemon();
    const written = () => Number(/^wchar: (\d+)/m.exec(readFileSync(`/proc/${pid}/io`, 'utf8'))![1]);
    const started = written() + MIB;
    const loaded = fio(SIZE / 2 - half, '--fsync=16', '--time_based', '--runtime=100');
    while (written() < started) await turn();
    expect(await fio(half, seed, '--do_verify=0', '--end_fsync=1')).toMatchObject({ status: 0 });
    const enough = written() + random.below(MIB);
    while (written() < enough) await turn();
    process.kill(pid, 'SIGKILL');
    expect((await loaded).status).not.toBe(0);
    dm = await connect(true);
    expect(await fio(half, seed, '--verify_only')).toMatchObject({ status: 0 });
    await dm.drop('dev');
  }
}, 600_000);
