/**
 * Thin pools go back and forth between dmkit and a real Linux kernel: each activates what the other wrote, and the same commands give
 * the same lines, sums and data blocks on both. The metadata is whole each time, by our own check and by thin_check.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { type Prng, prng } from '../../src/lib/prng.ts';
import { checkMetadata } from '../../src/stores/thin/check.ts';
import { dump } from '../../src/stores/thin/dump.ts';
import { mend } from '../../src/stores/thin/mend.ts';
import { PoolMetadata } from '../../src/stores/thin/pool-metadata.ts';
import { MetadataReader } from '../../src/stores/thin/reader.ts';
import { bytes, sector } from '../../src/units.ts';
import { allocateBlock } from '../support/allocate-block.ts';
import { Session } from '../support/session.ts';
import { Image } from '../support/thin-damage.ts';
import { pattern } from '../unit/golden.ts';
import { contents } from '../unit/thin/images.ts';
import { PATTERN_SECTORS, play, sharePatterns } from './play.ts';
import { Kernel } from './vm/vm.ts';

let kernel: Kernel;
beforeAll(async () => {
  kernel = await Kernel.boot();
  await sharePatterns(kernel);
});
afterAll(() => kernel?.close());

const SEEDS = Array.from({ length: Number(process.env.KERNEL_SEEDS ?? 1) }, (_, i) => i + 1);
const ROUNDS = 3;
const WRITES = 12;
/** Sectors. */
const METADATA = 4096;
const DATA = 65_536;
const ORIGIN = 6184;
const THIN = 16_384;
const BLOCK = 128;

const thin = (id: number) =>
  `run dmsetup create t${id} --table "0 ${THIN} thin /dev/mapper/pool ${id}${id === 9 ? ' /dev/loop2' : ''}"`;
const message = (text: string) => `run dmsetup message pool 0 ${text}`;

/** Some devices that are there already, or are made; writes, snapshots, discards, a delete. */
function roundOf(random: Prng, round: number, ids: number[]): string[] {
  const lines = [`run dmsetup create pool --table "0 ${DATA} thin-pool /dev/loop0 /dev/loop1 ${BLOCK} 0"`];
  if (round === 0) lines.push(...[1, 9].map((id) => message(`create_thin ${id}`)));
  lines.push(...ids.map(thin), 'state opened', ...ids.map((id) => `sum t${id}-opened t${id}`));
  const write = () => {
    const count = random.pick([1, 8, 8, BLOCK, 300]);
    const from = random.below(PATTERN_SECTORS - count);
    lines.push(`put ${random.pick(['b', 'c'])} t${random.pick(ids)} ${from} ${random.below(THIN - count)} ${count}`);
  };
  for (let i = 0; i < WRITES; i++) write();
  const of = random.pick(ids.filter((id) => id !== 9));
  const made = 10 + round;
  lines.push(
    `run dmsetup suspend t${of}`,
    message(`create_snap ${made} ${of}`),
    `run dmsetup resume t${of}`,
    thin(made),
  );
  ids.push(made);
  for (let i = 0; i < WRITES; i++) write();
  for (let i = 0; i < 2; i++) {
    const at = random.below(THIN / 2) * 512;
    lines.push(`run blkdiscard -o ${at} -l ${random.below(THIN / 2) * 512 + 512} /dev/mapper/t${random.pick(ids)}`);
  }
  for (let i = 0; i < WRITES; i++) write();
  if (round === 1) {
    lines.push('run dmsetup remove t1', message('delete 1'));
    ids.splice(ids.indexOf(1), 1);
  }
  lines.push(message(`set_transaction_id ${round} ${round + 1}`));
  return [...lines, 'state written', ...ids.map((id) => `sum t${id}-written t${id}`)];
}

async function playHere(disks: readonly Buffer[], scenario: readonly string[]) {
  const session = new Session();
  for (const [i, content] of disks.entries()) session.loop(i, content.length / 512, content);
  const log = await session.play(scenario);
  await session.close();
  return { log, disks: await Promise.all(disks.map((_, i) => session.content(i))) };
}

async function playThere(disks: readonly Buffer[], scenario: readonly string[]) {
  const made = disks.map((content) => kernel.disk(content.length / 512, content));
  const log = await play(kernel, made, scenario);
  return { log, disks: made.map((disk) => disk.read()) };
}

/** What two checks find of metadata, which must be nothing. */
async function checked(metadata: Buffer) {
  const device = new MemoryDevice(metadata.length);
  device.write(bytes(0), metadata, 0, metadata.length);
  const report = await checkMetadata(device);
  expect(report.findings).toEqual([]);
  const folder = mkdtempSync(join(tmpdir(), 'dmkit-thin-'));
  try {
    writeFileSync(join(folder, 'meta'), metadata);
    execFileSync('thin_check', ['-q', join(folder, 'meta')]);
  } finally {
    rmSync(folder, { recursive: true });
  }
  return report;
}

it.each(SEEDS)('pools with snapshots, discards and an external origin, seed %i', async (seed) => {
  const random = prng(seed);
  const ids = [1, 9];
  let fromHere = [Buffer.alloc(METADATA * 512), Buffer.alloc(DATA * 512), pattern('a', 0, ORIGIN)];
  let fromThere = fromHere;
  for (let round = 0; round < ROUNDS; round++) {
    const scenario = roundOf(random, round, ids);
    const here = await playHere(fromThere, scenario);
    const there = await playThere(fromHere, scenario);
    expect(here.log, `round ${round}`).toEqual(there.log);
    expect(await checked(here.disks[0]), `round ${round}`).toEqual(await checked(there.disks[0]));
    for (const i of [1, 2]) expect(here.disks[i].equals(there.disks[i]), `round ${round}, disk ${i}`).toBe(true);
    [fromHere, fromThere] = [here.disks, there.disks];
  }
});

/** What a metadata snapshot holds, as XML; nothing is wrong with it. */
async function heldDump(metadata: Buffer): Promise<string> {
  const device = new MemoryDevice(metadata.length);
  device.write(bytes(0), metadata, 0, metadata.length);
  expect((await checkMetadata(device, { scope: 'held' })).findings).toEqual([]);
  let text = '';
  await dump(await MetadataReader.open(device, { held: true }), 'xml', (part) => {
    text += part;
  });
  return text;
}

it('the metadata snapshot of a pool that a kernel has active, and goes on with', async () => {
  const [meta, data] = [
    kernel.disk(METADATA, Buffer.alloc(METADATA * 512)),
    kernel.disk(DATA, Buffer.alloc(DATA * 512)),
  ];
  const seen: string[] = [];
  const wrong: unknown[] = [];
  const look = () =>
    heldDump(kernel.crash([meta])[0]).then(
      (xml) => void seen.push(xml),
      (error) => void wrong.push(error),
    );
  const write = (from: number, count: number) =>
    `dd if=/dev/urandom of=/dev/mapper/t1 bs=64k seek=${from} count=${count} oflag=direct status=none`;
  const script = [
    'set -e',
    `${meta.attach(0)}; ${data.attach(1)}`,
    `dmsetup create pool --table "0 ${DATA} thin-pool /dev/loop0 /dev/loop1 ${BLOCK} 0"`,
    'dmsetup message pool 0 create_thin 1',
    `dmsetup create t1 --table "0 ${THIN} thin /dev/mapper/pool 1"`,
    ...[0, 20, 50].map((from) => write(from, 7)),
    'dmsetup suspend t1; dmsetup message pool 0 create_snap 2 1; dmsetup resume t1',
    write(3, 20),
    'dmsetup message pool 0 reserve_metadata_snap',
    'echo mark held >&3',
    ...[1, 2, 3, 4].flatMap((i) => [
      write(i * 10, 25),
      `dmsetup message pool 0 create_snap ${i + 2} 1`,
      'echo mark written >&3',
    ]),
    // Their disk is not read through a cache that the pool writes past.
    'blockdev --flushbufs /dev/loop0',
    'thin_dump -m /dev/loop0',
    'dmsetup remove t1; dmsetup remove pool; losetup -d /dev/loop0; losetup -d /dev/loop1',
  ];
  const looks: Promise<void>[] = [];
  const printed = await kernel.run(script.join('\n'), () => void looks.push(look()));
  await Promise.all(looks);
  expect(wrong).toEqual([]);
  expect(seen).toHaveLength(5);
  for (const xml of [...seen, await heldDump(meta.read())]) expect(xml).toBe(printed);
  expect(printed).toMatch(/<device dev_id="1" mapped_blocks="34" (.|\n)*<device dev_id="2" mapped_blocks="21" /);
});

it('a pool that needs a check, until dmkit has made one', async () => {
  const device = new MemoryDevice(METADATA * 512);
  const pool = await PoolMetadata.open(device, { dataBlockSize: sector(BLOCK), flushData() {} });
  await pool.resizeData(DATA / BLOCK);
  await pool.createThin(1);
  // And a leak.
  await allocateBlock(pool);
  await pool.commit();
  new Image(device).setSuperblock(() => ({ flags: 1 }));
  const status = async () => {
    const meta = kernel.disk(METADATA, contents(device));
    const data = kernel.disk(DATA, Buffer.alloc(DATA * 512));
    return kernel.run(
      [
        'set -e',
        `${meta.attach(0)}; ${data.attach(1)}`,
        `dmsetup create pool --table "0 ${DATA} thin-pool /dev/loop0 /dev/loop1 ${BLOCK} 0"`,
        'dmsetup status pool',
        'dmsetup remove pool; losetup -d /dev/loop0; losetup -d /dev/loop1',
      ].join('\n'),
    );
  };
  expect(await status()).toMatch(/ 1\/512 - ro .* needs_check /);
  await mend(device);
  expect(await status()).toMatch(/ 0\/512 - rw .* - 128 /);
});
