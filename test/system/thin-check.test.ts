/**
 * Debian's thin_check 0.9.0 beside our own check, on what the property tests and the simulated power cuts of the unit suite leave, and
 * its thin_dump and thin_restore beside ours. `THIN_CHECK_SEEDS`: how many of each kind, 3 unless given.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { type Operation, PowerSupply, SimulatedDisk } from '../../src/device/simulated.ts';
import { checkMetadata } from '../../src/stores/thin/check.ts';
import { dump } from '../../src/stores/thin/dump.ts';
import { MetadataReader } from '../../src/stores/thin/reader.ts';
import { restore } from '../../src/stores/thin/restore.ts';
import { bytes } from '../../src/units.ts';
import { expectLeaksOnly } from '../support/thin.ts';
import { goldenBitmaps, goldenPool } from '../support/thin-golden.ts';
import { liveMetadata } from '../support/thin-metadata-life.ts';
import { modelledPool } from '../support/thin-model.ts';
import { livePool } from '../support/thin-pool-life.ts';
import { contents, EXAMPLE, poolImage } from '../unit/thin/images.ts';

const SEEDS = Array.from({ length: Number(process.env.THIN_CHECK_SEEDS ?? 3) }, (_, i) => i + 1);
const BLOCK = 4096;
const ZEROES = Buffer.alloc(BLOCK);
/** Of theirs at once: most of the time each one waits for the kernel to let go of its I/O context. */
const AT_ONCE = 16;

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-thin-check-'));
});
afterAll(() => rmSync(directory, { recursive: true }));

/** Their programs are where only root's PATH leads. */
const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };

function run(program: string, ...words: string[]): Promise<{ status: number; output: string }> {
  return new Promise((resolve) => {
    execFile(program, words, { cwd: directory, env, maxBuffer: 2 ** 28 }, (error, stdout, stderr) =>
      resolve({ status: error ? Number(error.code) : 0, output: error ? stdout + stderr : stdout }),
    );
  });
}

async function ok(program: string, ...words: string[]): Promise<string> {
  const { status, output } = await run(program, ...words);
  expect(status, `${program} ${words.join(' ')}\n${output}`).toBe(0);
  return output;
}

/** With holes where there are zeroes. */
function writeImage(name: string, image: Uint8Array): string {
  const fd = openSync(join(directory, name), 'w');
  ftruncateSync(fd, image.length);
  for (let at = 0; at < image.length; at += BLOCK) {
    const block = image.subarray(at, at + BLOCK);
    if (!ZEROES.equals(block)) writeSync(fd, block, 0, BLOCK, at);
  }
  closeSync(fd);
  return name;
}

function deviceOf(image: Uint8Array): MemoryDevice {
  const device = new MemoryDevice(image.length);
  device.write(bytes(0), image, 0, image.length);
  return device;
}

/** Ours finds leaks of data at most, which theirs does not see: it finds nothing. */
async function checkBoth(name: string, image: Uint8Array, file: string): Promise<void> {
  expectLeaksOnly(await checkMetadata(deviceOf(image)), name);
  const { status, output } = await run('thin_check', writeImage(file, image));
  expect(status, `thin_check of ${name}\n${output}`).toBe(0);
}

/** Images that are not the same as others, each with where it comes from. */
class Images {
  readonly all = new Map<string, { name: string; image: Uint8Array }>();

  add(name: string, image: Uint8Array): void {
    // Cut off while it was made: the pool is made anew.
    if (ZEROES.equals(image.subarray(0, BLOCK))) return;
    const key = createHash('sha256').update(image).digest('hex');
    if (!this.all.has(key)) this.all.set(key, { name, image: Uint8Array.from(image) });
  }

  async check(): Promise<void> {
    const left = [...this.all.values()];
    const worker = async (number: number) => {
      for (let next = left.pop(); next; next = left.pop()) await checkBoth(next.name, next.image, `image${number}`);
    };
    await Promise.all(Array.from({ length: AT_ONCE }, (_, i) => worker(i)));
  }
}

/** Called at each operation with what a power cut in its middle leaves on a disk. */
const observer = (disk: () => SimulatedDisk, images: Images, name: string) => (operation: Operation) =>
  images.add(`${name}, cut at ${operation.number}`, disk().crash(operation.number));

async function dumpOf(device: MemoryDevice, held = false): Promise<string> {
  let text = '';
  await dump(await MetadataReader.open(device, { held }), 'xml', (part) => {
    text += part;
  });
  return text;
}

/** What both dump is the same, and either restores what the other dumps. */
async function expectSameDump(name: string, image: Uint8Array): Promise<void> {
  const device = deviceOf(image);
  const file = writeImage('image', image);
  const xml = await ok('thin_dump', file);
  expect(await dumpOf(device), name).toBe(xml);
  const { heldRoot } = (await MetadataReader.open(device)).superblock;
  if (heldRoot !== 0) expect(await dumpOf(device, true), name).toBe(await ok('thin_dump', '-m', file));

  const ours = new MemoryDevice(2 ** 23);
  await restore(ours, async function* () {
    yield xml;
  });
  const restored = writeImage('ours', contents(ours));
  await ok('thin_check', restored);
  expect(await ok('thin_dump', restored), name).toBe(xml);
  writeFileSync(join(directory, 'pool.xml'), await dumpOf(device));
  writeImage('theirs', new Uint8Array(2 ** 23));
  await ok('thin_restore', '-i', 'pool.xml', '-o', 'theirs');
  const theirs = deviceOf(readFileSync(join(directory, 'theirs')));
  expect((await checkMetadata(theirs)).findings.filter(({ severity }) => severity !== 'total')).toEqual([]);
  expect(await dumpOf(theirs), name).toBe(xml);
}

describe('both checks find nothing, and both dumps are the same', () => {
  test('after random operations beside a model', async () => {
    const images = new Images();
    for (const seed of SEEDS) images.add(`seed ${seed}`, contents(await modelledPool(seed)));
    expect(images.all.size).toBe(SEEDS.length);
    await images.check();
    for (const { name, image } of images.all.values()) await expectSameDump(name, image);
  });

  test("of what is a kernel's, byte for byte", async () => {
    const images = new Images();
    // From J12 on they are ten times as large, and one at a time in memory.
    for await (const { step, device } of goldenPool()) {
      if (device.size === 2 ** 23) images.add(step, contents(device));
      else await checkBoth(step, contents(device), 'large');
    }
    for await (const { step, device } of goldenBitmaps()) images.add(step, contents(device));
    await images.check();
    for (const { name, image } of images.all.values())
      if (['J3', 'J5', 'J7', 'J9', 'J11', 'write 1'].includes(name)) await expectSameDump(name, image);
  });
});

describe('theirs finds nothing after a power cut at any operation, and ours no more than leaked data blocks', () => {
  test.each(SEEDS)('metadata alone, seed %i', async (seed) => {
    const images = new Images();
    let disk!: SimulatedDisk;
    await liveMetadata(seed, { observe: observer(() => disk, images, `seed ${seed}`) }, (life) => (disk = life.disk));
    expect(images.all.size).toBeGreaterThan(20);
    await images.check();
  });

  test('metadata that is restored over a pool', async () => {
    const before = contents(await poolImage());
    const images = new Images();
    for (const seed of SEEDS) {
      let disk!: SimulatedDisk;
      const power = new PowerSupply({ seed, observe: observer(() => disk, images, `seed ${seed}`) });
      disk = new SimulatedDisk(before.length, { power, contents: before });
      const xml = async function* () {
        yield EXAMPLE;
      };
      await restore(disk, xml, { overwrite: true });
      images.add('afterwards', disk.snapshot());
    }
    // The old pool, and the new one, among blocks of the other that nothing leads to.
    expect(images.all.size).toBeGreaterThan(1);
    await images.check();
  });

  test.each(SEEDS)('a pool with its devices, seed %i', async (seed) => {
    const images = new Images();
    let disk!: SimulatedDisk;
    const observe = observer(() => disk, images, `seed ${seed}`);
    await livePool(seed, { observe }, (life) => (disk = life.metadata));
    expect(images.all.size).toBeGreaterThan(20);
    await images.check();
  });
});
