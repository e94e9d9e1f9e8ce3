/** The tools for metadata of pools beside Debian's thin-provisioning-tools 0.9.0, each reading what the other wrote. */
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { prng } from '../../src/lib/prng.ts';
import { DAMAGES, Image, wholeImage } from '../support/thin-damage.ts';
import { contents, EXAMPLE, kernelDump, kernelImage, poolImage } from '../unit/thin/images.ts';
import { PROGRAM } from './program.ts';

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-thin-'));
});
afterAll(() => rmSync(directory, { recursive: true }));

/** Their programs are where only root's PATH leads. */
const env = { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` };

function run(program: string, ...words: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(program, words, { cwd: directory, env, maxBuffer: 2 ** 28 }, (error, stdout, stderr) => {
      resolve({ status: error ? Number(error.code) : 0, stdout, stderr });
    });
  });
}

async function ok(program: string, ...words: string[]): Promise<string> {
  const { status, stdout, stderr } = await run(program, ...words);
  expect(status, `${program} ${words.join(' ')}\n${stdout}${stderr}`).toBe(0);
  return stdout;
}

const dmkit = (...words: string[]) => ok(PROGRAM, 'thin', ...words);

/** Random devices: runs of any length, alone or beside each other, mapped at any time, to blocks of their own or shared ones. */
function randomXml(seed: number): string {
  const random = prng(seed);
  let text =
    '<superblock uuid="" time="9" transaction="77" flags="0" version="2" data_block_size="256" nr_data_blocks="40000">\n';
  for (let id = random.below(10), i = 0; i < 5; id += 1 + random.below(20), i++) {
    let maps = '';
    let mapped = 0;
    let virtual = 0;
    for (let n = random.pick([0, 1, 5, 300, 700]); n > 0; n--) {
      virtual += random.pick([0, 0, 1, 3, 1000]);
      const length = random.pick([1, 1, 1, 2, 9, 300]);
      const data = random.below(2) === 0 ? random.below(39000) : Math.min(virtual, 39000);
      maps +=
        length === 1
          ? `    <single_mapping origin_block="${virtual}" data_block="${data}" time="${random.below(10)}"/>\n`
          : `    <range_mapping origin_begin="${virtual}" data_begin="${data}" length="${length}" time="${random.below(10)}"/>\n`;
      virtual += length;
      mapped += length;
    }
    text += `  <device dev_id="${id}" mapped_blocks="${mapped}" transaction="${i}" creation_time="1" snap_time="3">\n${maps}  </device>\n`;
  }
  return `${text}</superblock>\n`;
}

const COLUMNS =
  'DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS,MAPPED_SECTORS,EXCLUSIVE_SECTORS,SHARED_SECTORS,MAPPED_BYTES,EXCLUSIVE_BYTES,SHARED_BYTES,MAPPED,EXCLUSIVE,SHARED,TRANSACTION,CREATE_TIME,SNAP_TIME';

/** Everything that both can print of an image is the same. */
async function expectSame(image: string, ...options: string[]): Promise<void> {
  expect(await dmkit('dump', ...options, image)).toBe(await ok('thin_dump', ...options, image));
  const human = ['-f', 'human_readable', ...options, image];
  expect(await dmkit('dump', ...human)).toBe(await ok('thin_dump', ...human));
  expect(await dmkit('ls', ...options, image)).toBe(await ok('thin_ls', ...options, image));
  const columns = ['-o', COLUMNS, ...options, image];
  expect(await dmkit('ls', ...columns)).toBe(await ok('thin_ls', ...columns));
  expect(await dmkit('ls', '--no-headers', ...columns)).toBe(await ok('thin_ls', '--no-headers', ...columns));
  const { devices } = JSON.parse(await dmkit('ls', '--json', ...options, image)) as { devices: { id: number }[] };
  for (const [i, { id }] of devices.slice(1).entries())
    for (const verbose of [[], ['--verbose']]) {
      const words = ['--snap1', `${devices[i].id}`, '--snap2', `${id}`, ...verbose, ...options];
      expect(await dmkit('delta', ...words, image)).toBe(await ok('thin_delta', ...words, image));
    }
}

/** A file as large as the metadata is to be. */
function blank(name: string): string {
  writeFileSync(join(directory, name), Buffer.alloc(8 * 2 ** 20));
  return name;
}

describe('the same is printed', () => {
  test.each(['meta', 'meta2'])('of what a kernel wrote: %s', async (name) => {
    writeFileSync(join(directory, 'kernel'), contents(kernelImage(`${name}.img.gz`)));
    await expectSame('kernel');
    await dmkit('check', 'kernel');
  });

  test('of a pool with a metadata snapshot, and of that', async () => {
    writeFileSync(join(directory, 'held'), contents(await poolImage({ held: true })));
    await expectSame('held');
    await expectSame('held', '-m');
    await dmkit('check', 'held');
  });

  test.each([[['--skip-mappings']], [['--dev-id', '3']], [['--dev-id', '1', '--dev-id', '2']]])(
    'of parts: %j',
    async (options) => {
      writeFileSync(join(directory, 'held'), contents(await poolImage({ held: true })));
      expect(await dmkit('dump', ...options, 'held')).toBe(await ok('thin_dump', ...options, 'held'));
      await dmkit('dump', ...options, '-o', 'ours.xml', 'held');
      await ok('thin_dump', ...options, '-o', 'theirs.xml', 'held');
      expect(readFileSync(join(directory, 'ours.xml'), 'utf8')).toBe(
        readFileSync(join(directory, 'theirs.xml'), 'utf8'),
      );
    },
  );
});

describe('either restores what the other dumps', () => {
  test.each([
    ['the worked example', EXAMPLE],
    ['what a kernel wrote', kernelDump()],
    ...[1, 2].map((seed) => [`random devices, seed ${seed}`, randomXml(seed)]),
  ])('%s', async (_, xml) => {
    writeFileSync(join(directory, 'in.xml'), xml);
    await dmkit('restore', '-i', 'in.xml', '-o', blank('ours'));
    await ok('thin_restore', '-i', 'in.xml', '-o', blank('theirs'));
    for (const image of ['ours', 'theirs']) {
      await ok('thin_check', image);
      await dmkit('check', image);
      await expectSame(image);
    }
    const dump = await dmkit('dump', 'theirs');
    expect(await dmkit('dump', 'ours')).toBe(dump);
    // And crosswise once more.
    writeFileSync(join(directory, 'again.xml'), dump);
    await ok('thin_restore', '-i', 'again.xml', '-o', blank('again'));
    expect(await ok('thin_dump', 'again')).toBe(await ok('thin_dump', 'ours'));
  });
});

/** Also where nothing is damaged, or nothing can be read. */
async function images(): Promise<[name: string, image: Uint8Array][]> {
  const leaking = await wholeImage();
  new Image(leaking).setDataCount(900, 1);
  const found: [string, Uint8Array][] = [
    ['whole', contents(await wholeImage())],
    ['a leak of data', contents(leaking)],
    ['no pool', Buffer.alloc(2 ** 20, 'no pool')],
  ];
  for (const { name, apply } of DAMAGES) {
    const device = await wholeImage();
    apply(new Image(device));
    found.push([name, contents(device)]);
  }
  return found;
}

describe('by the links of dmkit links', () => {
  beforeAll(async () => {
    await ok(PROGRAM, 'links', '.');
  });

  test.each(['thin_check', 'thin_dump', 'thin_restore', 'thin_repair', 'thin_delta', 'thin_ls', 'thin_metadata_size'])(
    '%s says which version it is',
    async (tool) => {
      expect(await run(`./${tool}`, '-V')).toEqual(await run(tool, '-V'));
    },
  );

  test('a check as LVM calls it clears the flag where theirs does, and finds what theirs finds', async () => {
    const words = ['-q', '--clear-needs-check-flag'];
    const left = await images();
    const worker = async (number: number) => {
      const [ours, theirs] = [`ours${number}`, `theirs${number}`];
      for (let next = left.pop(); next; next = left.pop()) {
        const [name, image] = next;
        for (const file of [ours, theirs]) writeFileSync(join(directory, file), image);
        const { status: expected } = await run('thin_check', ...words, theirs);
        const { status, ...printed } = await run('./thin_check', ...words, ours);
        expect(printed, name).toEqual({ stdout: '', stderr: '' });
        if (status === 0) expect((await run('thin_check', ours)).status, name).toBe(0);
        if (name.includes('needs_check')) {
          expect([status, expected]).toEqual([0, 0]);
          const [mine, other] = [ours, theirs].map((file) => readFileSync(join(directory, file)));
          expect(mine.equals(other)).toBe(true);
        }
        // Theirs looks at less, and does not give blocks of metadata back.
        if (expected !== 0) expect(status === 1 || name.includes('not used'), name).toBe(true);
      }
    };
    await Promise.all([0, 1, 2, 3].map(worker));
  });

  test('a repair of damaged metadata over an older pool', async () => {
    const device = await wholeImage();
    new Image(device).setMetadataCount(200, 1);
    writeFileSync(join(directory, 'in'), contents(device));
    writeFileSync(join(directory, 'out'), contents(await poolImage()));
    await ok('./thin_repair', '-i', 'in', '-o', 'out');
    await ok('thin_check', 'out');
    expect(await ok('./thin_dump', 'out')).toBe(await ok('thin_dump', 'in'));
  });
});

describe('a check of metadata that is damaged', () => {
  test.each(DAMAGES)('$name: thin_check 0.9.0 ends with $theirs', async ({ apply, found, theirs }) => {
    const device = await wholeImage();
    apply(new Image(device));
    writeFileSync(join(directory, 'damaged'), contents(device));
    expect((await run('thin_check', 'damaged')).status).toBe(theirs);
    const { status, stdout, stderr } = await run(PROGRAM, 'thin', 'check', 'damaged');
    expect(status).toBe(found === 'nothing' || found[0] === 'total' ? 0 : 1);
    if (found !== 'nothing')
      expect(`${stdout}${stderr}`).toMatch(new RegExp(found[1].source.replaceAll(/^\^|\$$/g, '')));
    else expect(stderr).toContain('needs_check');
  });
});
