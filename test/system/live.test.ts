/**
 * What dmsetup does to a device that is in use, seen by those who use it: fio, qemu-io, nbdcopy and a client of our own
 * that checks every read. None sees an error, or data that are not its own. Needs fio, qemu-utils and libnbd-bin.
 */
import { randomFillSync } from 'node:crypto';
import { copyFileSync, writeFileSync } from 'node:fs';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DeviceMapper, type RemoteMapper } from '../../src/api/index.ts';
import { prng } from '../../src/lib/prng.ts';
import { SECTOR } from '../../src/units.ts';
import { Image, Load, readExport } from '../support/nbd-load.ts';
import { World } from './program.ts';

const MIB = 1024 * 1024;
const SIZE = 16 * MIB;

let world: World;
let dm: RemoteMapper;

beforeEach(async () => {
  world = new World();
  dm = await DeviceMapper.connect({ run: world.run, state: world.state, start: true });
});

afterEach(() => world.close());

/** A client at work on the device of its name. */
interface Client {
  /** Settles when its work is done; rejects with what it saw. */
  ended: Promise<unknown>;
  /** Afterwards: what the device holds now. */
  check?(): Promise<void>;
}

/** A program that must find nothing to complain about. */
async function run(program: string, ...words: string[]): Promise<string> {
  const { status, stdout, stderr } = await world.exec(program, words);
  expect({ program, status, stderr }).toEqual({ program, status: 0, stderr: '' });
  return stdout;
}

async function fio(uri: string): Promise<void> {
  const output = await run(
    'fio',
    ...['--name=job', '--ioengine=nbd', `--uri=${uri}`, '--rw=randwrite', '--bs=4k', '--iodepth=8', '--size=8m'],
    ...['--loops=2', '--fsync=32', '--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0'],
    '--output-format=json',
  );
  const [job] = JSON.parse(output.replace(/^[^{]*/, '')).jobs;
  expect(job.error).toBe(0);
  expect(job.read.total_ios).toBe(job.write.total_ios);
}

async function qemuIo(uri: string): Promise<void> {
  const random = prng(1);
  const commands: string[] = [];
  for (let i = 1; i <= 250; i++) {
    const [at, length] = [random.below(SIZE - 65536), 1 + random.below(65536)];
    commands.push(`write -P ${i % 256} ${at} ${length}`, `read -P ${i % 256} ${at} ${length}`);
    if (i % 10 === 0) commands.push('flush');
  }
  const output = await run('qemu-io', '-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri);
  expect(output).not.toMatch(/fail|error|Pattern/i);
  expect(output.match(/^(read|wrote)/gm)).toHaveLength(500);
}

function nbdcopy(uri: string): Client {
  const data = randomFillSync(Buffer.alloc(SIZE));
  writeFileSync(world.path('data'), data);
  // One connection: a later one would ask for a name that the device may not have by then.
  const words = ['--connections=1', '--request-size=8192', '--requests=2', '--flush', 'data', uri];
  return {
    ended: run('nbdcopy', ...words),
    check: async () => expect((await readExport(uri)).equals(data)).toBe(true),
  };
}

/** The client of our own, which checks every read. */
async function checking(uri: string, tag: number): Promise<Client> {
  const image = new Image(tag, await readExport(uri));
  let left = 4000;
  let enough = () => {};
  const replies = new Promise<void>((done) => (enough = done));
  const loads = await Promise.all(
    [1, 2, 3].map((seed) =>
      Load.start(uri, image, {
        depth: 4,
        random: prng(seed),
        hot: { from: 1000, length: 4096 },
        answered: () => {
          if (--left === 0) enough();
        },
      }),
    ),
  );
  const work = async () => {
    await replies;
    for (const load of loads) await load.stop();
    expect(loads.map(({ fault }) => fault)).toEqual([undefined, undefined, undefined]);
  };
  return {
    ended: work(),
    check: async () => expect(image.faultNow(await readExport(uri), 0)).toBeUndefined(),
  };
}

const NAMES = ['checking', 'fio', 'qemu', 'copy'];

/**
 * Runs a client on each device, and when each has begun `work` on each, again and again until the last of them is done.
 * `more` clients come when those have begun.
 */
async function inUse(
  begun: (name: string) => Promise<boolean>,
  work: (name: string) => Promise<void>,
  more: () => Promise<Client[]> = async () => [],
): Promise<void> {
  const clients: Client[] = [
    await checking(dm.uri('checking'), 1),
    { ended: fio(dm.uri('fio')) },
    { ended: qemuIo(dm.uri('qemu')) },
    nbdcopy(dm.uri('copy')),
  ];
  let running = clients.length;
  for (const { ended } of clients) ended.catch(() => {}).then(() => running--);
  for (const name of NAMES) while (running > 0 && !(await begun(name))) await turn();
  clients.push(...(await more()));
  for (let round = 0; running > 0 || round < 3; round++) for (const name of NAMES) await work(name);
  for (const { ended } of clients) await ended;
  for (const { check } of clients) await check?.();
}

/** What `load` takes. */
const tableOf = async (name: string) =>
  (await dm.table({ name })).map(({ text, ...line }) => ({ ...line, args: text }));

describe('of a fork in use', () => {
  beforeEach(async () => {
    writeFileSync(world.path('disk.img'), Buffer.alloc(SIZE, 'origin. '));
    for (const name of NAMES) await dm.fork(world.path('disk.img'), name);
  });

  const written = async (name: string) => (await dm.volumes()).some((fork) => fork.name === name && fork.used! > 0);

  test.each<[string, (name: string) => Promise<unknown>]>([
    [
      'a reload over the same store',
      async (name) => {
        await dm.load({ name }, await tableOf(name));
        await dm.resume({ name });
      },
    ],
    [
      'a reload with and without overflow support, and a suspend before it',
      async (name) => {
        const [line] = await tableOf(name);
        const args = / PO /.test(line.args) ? line.args.replace(' PO ', ' P ') : line.args.replace(' P ', ' PO ');
        await dm.suspend({ name });
        await dm.load({ name }, [{ ...line, args }]);
        await dm.resume({ name });
        expect((await tableOf(name))[0].args).toBe(args);
      },
    ],
    [
      'a rename',
      async (name) => {
        await dm.rename({ name }, 'another');
        await dm.rename({ name: 'another' }, name);
      },
    ],
    [
      'a suspend',
      async (name) => {
        await dm.suspend({ name });
        // Requests come meanwhile, and wait.
        for (let i = 0; i < 20; i++) expect((await dm.info({ name })).suspended).toBe(true);
        await dm.resume({ name });
      },
    ],
    [
      'a suspend of its origin, which is in use too,',
      async () => {
        await dm.suspend({ name: 'disk' });
        await dm.resume({ name: 'disk' });
      },
    ],
  ])('%s is seen by no client', async (_what, work) => {
    const act = async (name: string) => void (await work(name));
    await inUse(written, act, async () => [await checking(dm.uri('disk'), 2)]);
    // And all of it is there after a restart.
    const before = await Promise.all(NAMES.map((name) => readExport(dm.uri(name))));
    await world.kill();
    dm = await DeviceMapper.connect({ run: world.run, state: world.state, start: true });
    for (const [index, name] of NAMES.entries())
      expect((await readExport(dm.uri(name))).equals(before[index])).toBe(true);
  });
});

test('a linear device in use is moved elsewhere, and no client sees it', async () => {
  const at = new Map<string, number>();
  const place = (name: string) => world.path(`${name}${at.get(name)! % 2}.img`);
  const table = (name: string) => [{ start: 0, length: SIZE / SECTOR, type: 'linear', args: `${place(name)} 0` }];
  for (const name of NAMES) {
    at.set(name, 0);
    writeFileSync(place(name), Buffer.alloc(SIZE));
    await dm.create(name, { table: table(name) });
  }
  const open = async (name: string) => (await dm.info({ name })).openCount > 0;
  await inUse(open, async (name) => {
    await dm.suspend({ name });
    const from = place(name);
    at.set(name, at.get(name)! + 1);
    copyFileSync(from, place(name));
    await dm.load({ name }, table(name));
    await dm.resume({ name });
    // What is left behind may be anything.
    writeFileSync(from, 'moved away');
  });
});

test('a removal that is deferred waits for the last client, which sees nothing of it', async () => {
  writeFileSync(world.path('disk.img'), Buffer.alloc(SIZE, 'origin. '));
  await dm.fork(world.path('disk.img'), 'dev');
  const client = await checking(dm.uri('dev'), 1);
  const other = await dm.device('dev');
  await world.ok('dmkit', 'dmsetup', 'remove', '--deferred', 'dev');
  expect(await world.ok('dmkit', 'dmsetup', 'info', 'dev')).toMatch(/^State: +ACTIVE \(DEFERRED REMOVE\)$/m);
  await client.ended;
  expect((await other.read(0, 512)).length).toBe(512);
  expect((await dm.info({ name: 'dev' })).deferredRemove).toBe(true);
  await other.close();
  // The end of a connection has no answer: the device goes when the daemon sees it.
  while ((await dm.list()).some(({ name }) => name === 'dev')) await turn();
  expect((await world.dmkit('dmsetup', 'info', 'dev')).stderr).toMatch(/Device does not exist/);
});

test('`dmsetup wait` returns with the event it waited for, while clients go on', async () => {
  writeFileSync(world.path('disk.img'), Buffer.alloc(SIZE, 'origin. '));
  await dm.fork(world.path('disk.img'), 'dev');
  await dm.fork(world.path('disk.img'), 'small', { cowSize: MIB });
  const event = async (name: string) => (await dm.info({ name })).eventNumber;
  /** Resolves when the daemon has the request. */
  const waiting = async (name: string, number: number) => {
    const { calls } = await dm.daemon();
    const ended = world.dmkit('dmsetup', '-v', 'wait', name, String(number));
    while ((await dm.daemon()).calls === calls) await turn();
    return { ended };
  };
  const [dev, small] = [await event('dev'), await event('small')];
  const renamed = await waiting('dev', dev);
  const invalidated = await waiting('small', small);
  const client = await checking(dm.uri('dev'), 1);
  const origin = await checking(dm.uri('disk'), 2);
  await dm.rename({ name: 'dev' }, 'renamed');
  const first = await renamed.ended;
  expect(first.status).toBe(0);
  expect(first.stdout).toMatch(new RegExp(`Event number: +${dev + 1}\n`));
  // A number that has passed does not wait.
  await world.ok('dmkit', 'dmsetup', 'wait', 'renamed', String(dev));
  await dm.rename({ name: 'renamed' }, 'dev');
  const second = await invalidated.ended;
  expect(second.status).toBe(0);
  expect(second.stdout).toMatch(new RegExp(`Event number: +${small + 1}\n`));
  expect(await world.ok('dmkit', 'dmsetup', 'status', 'small')).toMatch(/ snapshot Invalid\n$/);
  for (const each of [client, origin]) {
    await each.ended;
    await each.check?.();
  }
  expect(await event('dev')).toBe(dev + 2);
});
