import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { allocateBlock } from '../../../test/support/allocate-block.ts';
import { Image } from '../../../test/support/thin-damage.ts';
import { contents, EXAMPLE, poolImage } from '../../../test/unit/thin/images.ts';
import { FileDevice } from '../../device/file.ts';
import { PoolMetadata } from '../../stores/thin/pool-metadata.ts';
import { sector } from '../../units.ts';
import { run } from '../run.ts';
import type { ShortIo } from '../short/command.ts';

let directory: string;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-thin-'));
  writeFileSync(join(directory, 'pool.meta'), contents(await poolImage({ held: true })));
  writeFileSync(join(directory, 'example.xml'), EXAMPLE);
  writeFileSync(join(directory, 'new.meta'), '');
  truncateSync(join(directory, 'new.meta'), 2 ** 18);
});

afterEach(() => rmSync(directory, { recursive: true }));

const thin = (...argv: string[]) => called('dmkit', 'thin', ...argv);

async function called(program: string, ...argv: string[]) {
  const result = { status: 0, stdout: '', stderr: '' };
  const nobody = async (): Promise<never> => {
    throw new Error('no daemon is needed');
  };
  const io: ShortIo = {
    // As a stream does, it returns something.
    stdout: { write: (text) => (result.stdout += text) },
    stderr: { write: (text) => void (result.stderr += text) },
    stdin: async () => '',
    env: {},
    cwd: directory,
    control: nobody,
    existing: nobody,
  };
  result.status = await run(program, argv, io);
  result.stderr = result.stderr.replaceAll(directory, 'DIR');
  return result;
}

const printed = (stdout: string) => ({ status: 0, stdout, stderr: '' });

test('metadata is restored, checked, listed, compared and dumped', async () => {
  expect(await thin('restore', '-i', 'example.xml', '-o', 'new.meta')).toEqual(
    printed('restored 3 thin devices with 8 blocks; 12 of 64 blocks of metadata are used\n'),
  );
  expect(await thin('check', 'new.meta')).toEqual(printed('TRANSACTION_ID=7\nMETADATA_FREE_BLOCKS=52\n'));
  expect(await thin('check', '-q', 'new.meta')).toEqual(printed(''));
  expect(JSON.parse((await thin('check', '--json', 'new.meta')).stdout)).toEqual({
    ok: true,
    findings: [],
    truncated: false,
    needsCheck: false,
    transactionId: 7,
    devices: [
      { id: 1, mappedBlocks: 4 },
      { id: 2, mappedBlocks: 3 },
      { id: 3, mappedBlocks: 1 },
    ],
    metadataBlocks: 64,
    freeMetadataBlocks: 52,
    dataBlocks: 64,
    freeDataBlocks: 60,
  });
  expect(await thin('ls', 'new.meta')).toEqual(
    printed(`DEV MAPPED CREATE_TIME SNAP_TIME 
  1 256KiB           0         2 
  2 192KiB           1         2 
  3  64KiB           2         2 
`),
  );
  expect((await thin('ls', '--no-headers', '-o', 'DEV,EXCLUSIVE_BLOCKS,SHARED', 'new.meta')).stdout).toBe(
    '1 1 192KiB \n2 0 192KiB \n3 0  64KiB \n',
  );
  expect(JSON.parse((await thin('ls', '--json', 'new.meta')).stdout)).toMatchObject({
    dataBlockSize: 128,
    devices: [{ id: 1, mappedBlocks: 4, exclusiveBlocks: 1, transactionId: 3 }, { id: 2 }, { id: 3 }],
  });
  expect(
    (await thin('delta', '--snap1', '2', '--snap2', '1', 'new.meta')).stdout,
  ).toContain(`  <diff left="2" right="1">
    <same begin="0" length="3"/>
    <right_only begin="9" length="1"/>
  </diff>
`);
  expect(JSON.parse((await thin('delta', '--json', '--snap1', '2', '--snap2', '1', 'new.meta')).stdout)).toEqual({
    left: 2,
    right: 1,
    dataBlockSize: 128,
    ranges: [{ kind: 'right_only', begin: 9, length: 1, right: 20 }],
  });
  expect(JSON.parse((await thin('delta', '--json', '--snap1', '2', '--snap2', '2', 'new.meta')).stdout).ranges).toEqual(
    [],
  );
  expect(await thin('dump', 'new.meta')).toEqual(printed(EXAMPLE));
  expect((await thin('dump', '-f', 'human_readable', 'new.meta')).stdout).toMatch(
    /^begin superblock: "", 2, 7, 0, 2, 128/,
  );
});

test('damaged metadata ends a check with status 1, and is told', async () => {
  const image = new Image(await poolImage());
  image.flip(image.leaf, 100);
  writeFileSync(join(directory, 'pool.meta'), contents(image.device));
  const { status, stderr } = await thin('check', 'pool.meta');
  expect(status).toBe(1);
  expect(stderr).toMatch(
    /^error: Block \d+ of the metadata on DIR\/pool\.meta is no B-tree node: its checksum is wrong$/m,
  );
  expect(await thin('check', '-q', 'pool.meta')).toEqual({ status: 1, stdout: '', stderr: '' });
  expect(JSON.parse((await thin('check', '--json', 'pool.meta')).stdout)).toMatchObject({ ok: false });
});

/** Marked as to be checked, with a leak. */
async function marked(): Promise<Image> {
  const device = await poolImage({ held: true });
  const pool = await PoolMetadata.open(device, { dataBlockSize: sector(128), flushData() {} });
  await allocateBlock(pool);
  await pool.commit();
  const image = new Image(device);
  image.setSuperblock(() => ({ flags: 1 }));
  return image;
}

test.each(['--clear-needs-check-flag', '--auto-repair'])(
  '%s puts right what harms nobody, if nothing is damaged',
  async (option) => {
    const image = await marked();
    writeFileSync(join(directory, 'pool.meta'), contents(image.device));
    expect(await thin('check', 'pool.meta')).toMatchObject({
      status: 1,
      stderr:
        'leak: data block 650 is referred to 0 times, and 1 are counted\nnote: the needs_check flag is set: a pool that has it starts read-only\n',
    });
    expect((await thin('check', '-q', '--ignore-non-fatal-errors', 'pool.meta')).status).toBe(0);
    expect(await thin('check', option, 'pool.meta')).toMatchObject({
      status: 0,
      stderr: 'note: 1 leaked blocks were given back\nnote: the needs_check flag was cleared\n',
    });
    expect(await thin('check', 'pool.meta')).toMatchObject({ status: 0, stderr: '' });
    image.flip(image.leaf, 100);
    writeFileSync(join(directory, 'pool.meta'), contents(image.device));
    expect((await thin('check', option, 'pool.meta')).stderr).toMatch(
      /^error: .*\n(.*\n)*note: the needs_check flag is set/,
    );
    expect(readFileSync(join(directory, 'pool.meta')).equals(contents(image.device))).toBe(true);
  },
);

test('a part of the metadata is checked', async () => {
  const image = new Image(await poolImage({ held: true }));
  image.setDataCount(7, 0);
  writeFileSync(join(directory, 'pool.meta'), contents(image.device));
  const status = async (...options: string[]) => (await thin('check', '-q', ...options, 'pool.meta')).status;
  expect(await status()).toBe(1);
  expect(await status('--skip-mappings')).toBe(0);
  expect(await status('--super-block-only')).toBe(0);
  expect(await status('-m')).toBe(0);
  const { devices } = JSON.parse((await thin('check', '--json', '--skip-mappings', 'pool.meta')).stdout);
  expect(devices).toEqual([1, 2, 3].map((id) => ({ id, mappedBlocks: 600 })));
  expect(JSON.parse((await thin('check', '--json', '-m', 'pool.meta')).stdout).devices).toHaveLength(2);
  image.flip(image.superblock.deviceDetailsRoot, 100);
  writeFileSync(join(directory, 'pool.meta'), contents(image.device));
  expect(await status('--skip-mappings')).toBe(1);
  expect(await status('--super-block-only')).toBe(0);
  expect(await status('-m')).toBe(0);
});

test('a part of the metadata is dumped, or what can be read, to a file', async () => {
  const whole = (await thin('dump', 'pool.meta')).stdout.split('\n');
  const one = await thin('dump', '--dev-id', '1', '--dev-id', '3', '--skip-mappings', 'pool.meta');
  const devices = whole.filter((line) => /<\/?(superblock|device)/.test(line));
  expect(one.stdout).toBe(`${[devices[0], ...devices.slice(1, 3), ...devices.slice(5)].join('\n')}\n`);
  expect(await thin('dump', '-o', 'pool.xml', 'pool.meta')).toEqual(printed(''));
  expect(readFileSync(join(directory, 'pool.xml'), 'utf8')).toBe(whole.join('\n'));
  const { status, stderr } = await thin('dump', '-o', '.', 'pool.meta');
  expect({ status, stderr }).toEqual({ status: 1, stderr: expect.stringMatching(/^dmkit: Cannot write DIR: /) });
  const image = new Image(await poolImage());
  image.flip(image.leaf, 100);
  writeFileSync(join(directory, 'pool.meta'), contents(image.device));
  expect((await thin('dump', 'pool.meta')).status).toBe(1);
  const repaired = await thin('dump', '-r', 'pool.meta');
  expect(repaired.status).toBe(0);
  expect(repaired.stderr).toMatch(/^(lost: Block \d+ .* its checksum is wrong\n){3}$/);
  expect(repaired.stdout).toMatch(/<\/superblock>\n$/);
});

describe('called by the names of thin-provisioning-tools', () => {
  test('as LVM calls them', async () => {
    for (const program of ['thin_check', 'thin_dump', 'thin_repair'])
      expect(await called(program, '-V')).toEqual(printed('0.9.0\n'));
    const image = await marked();
    writeFileSync(join(directory, 'pool.meta'), contents(image.device));
    expect(await called('thin_check', '-q', '--clear-needs-check-flag', 'pool.meta')).toEqual(printed(''));
    image.flip(image.leaf, 100);
    writeFileSync(join(directory, 'pool.meta'), contents(image.device));
    expect(await called('thin_check', '-q', '--clear-needs-check-flag', 'pool.meta')).toEqual({
      status: 1,
      stdout: '',
      stderr: '',
    });
    writeFileSync(join(directory, 'spare.meta'), contents(await poolImage()));
    expect(await called('thin_repair', '-i', 'pool.meta', '-o', 'spare.meta')).toMatchObject({ status: 0 });
    expect((await called('thin_check', '-q', 'spare.meta')).status).toBe(0);
  });

  test('with their options', async () => {
    expect((await called('thin_ls', '--no-headers', '-o', 'DEV', 'pool.meta')).stdout).toBe('1 \n2 \n3 \n');
    expect((await called('thin_delta', '--thin1', '1', '--thin2', '2', 'pool.meta')).stdout).toContain(
      '<same begin="0"',
    );
    expect((await called('thin_metadata_size', '-b64k', '-s1g', '-m1', '-n')).stdout).toBe('1064\n');
    const restore = ['-i', 'example.xml', '-o', 'pool.meta', '--transaction-id', '18446744073709551615', '-q'];
    expect(await called('thin_restore', ...restore)).toEqual(printed(''));
    expect((await called('thin_dump', 'pool.meta')).stdout).toContain(' transaction="18446744073709551615" ');
    truncateSync(join(directory, 'new.meta'), 2 ** 18);
    const repair = ['-i', 'pool.meta', '-o', 'new.meta', '--transaction-id', '5', '--nr-data-blocks', '100'];
    expect(await called('thin_repair', ...repair)).toMatchObject({ status: 0 });
    expect((await called('thin_dump', 'new.meta')).stdout).toMatch(/ transaction="5" .* nr_data_blocks="100">/);
  });

  test('each failure is 1', async () => {
    expect((await called('thin_check', '--clear-needs-check-flag', '-m', 'pool.meta')).status).toBe(1);
    expect((await called('thin_dump')).status).toBe(1);
    expect((await called('thin_ls', 'example.xml')).status).toBe(1);
    expect(await called('thin_check', '-q', 'example.xml')).toEqual({ status: 1, stdout: '', stderr: '' });
    expect(await called('thin_check', '-q', 'nosuch')).toEqual({ status: 1, stdout: '', stderr: '' });
  });
});

test('damaged metadata is repaired to another file, and what is lost is told', async () => {
  const image = new Image(await poolImage());
  image.flip(image.leaf, 100);
  writeFileSync(join(directory, 'pool.meta'), contents(image.device));
  truncateSync(join(directory, 'new.meta'), 2 ** 21);
  const { status, stdout, stderr } = await thin('repair', '-i', 'pool.meta', '-o', 'new.meta');
  expect({ status, stdout }).toEqual({
    status: 0,
    stdout: expect.stringMatching(/^3 thin devices with \d+ blocks; what is lost is listed\n$/),
  });
  expect(stderr).toMatch(
    /^(lost: Block \d+ of the metadata on DIR\/pool\.meta is no B-tree node: its checksum is wrong\n){3}$/,
  );
  expect((await thin('check', '-q', 'new.meta')).status).toBe(0);
  const again = await thin('repair', '--json', '--overwrite', '-i', 'pool.meta', '-o', 'new.meta');
  expect(JSON.parse(again.stdout)).toMatchObject({ devices: 3, truncated: false });
  expect(await thin('repair', '-i', 'pool.meta', '-o', 'pool.meta', '--overwrite')).toMatchObject({ status: 1 });
});

test('metadata in use is refused; its metadata snapshot is not', async () => {
  const pool = await FileDevice.open(join(directory, 'pool.meta'), 'rw');
  try {
    for (const command of [['check'], ['dump'], ['ls'], ['delta', '--snap1', '1', '--snap2', '2']]) {
      const { status, stderr } = await thin(...command, 'pool.meta');
      expect(status).toBe(1);
      expect(stderr).toMatch(/has it open\nhint: deactivate its pool first, or have the pool hold a metadata snapshot/);
    }
    expect((await thin('restore', '-i', 'example.xml', '-o', 'pool.meta', '--overwrite')).status).toBe(1);
    expect((await thin('ls', '-m', '--no-headers', '-o', 'DEV', 'pool.meta')).stdout).toBe('1 \n2 \n');
    expect((await thin('dump', '--metadata-snap', 'pool.meta')).stdout).toContain('nr_data_blocks="0"');
    expect((await thin('delta', '-m', '--snap1', '1', '--snap2', '2', 'pool.meta')).stdout).toContain(
      '<same begin="0"',
    );
  } finally {
    await pool.close();
  }
});

test('what is there is overwritten only if asked for', async () => {
  expect(await thin('restore', '-i', 'example.xml', '-o', 'pool.meta')).toEqual({
    status: 1,
    stdout: '',
    stderr:
      'dmkit: DIR/pool.meta does not begin with zeroes: it holds something\nhint: see what it is: dmkit inspect DIR/pool.meta; --overwrite writes over it\n',
  });
  const options = ['--transaction-id', '9', '--data-block-size', '256', '--nr-data-blocks', '99', '--overwrite', '-q'];
  expect(await thin('restore', '-i', 'example.xml', '-o', 'pool.meta', ...options)).toEqual(printed(''));
  expect((await thin('dump', 'pool.meta')).stdout.split('\n')[0]).toBe(
    '<superblock uuid="" time="2" transaction="9" flags="0" version="2" data_block_size="256" nr_data_blocks="99">',
  );
});

test.each<[string, string[], string]>([
  ['in sectors', ['-b', '64k', '-s', '1g', '-m', '1'], '1064 sectors\n'],
  ['for many devices', ['-b64kibibytes', '-s1gibi', '-m1K', '-n'], '9056\n'],
  ['from sectors', ['-b', '128', '-s', '209715200', '-m', '1000', '-n'], '112040\n'],
  [
    'in mebibytes',
    ['--block-size', '512k', '--pool-size', '1t', '--max-thins', '1', '--unit', 'm'],
    '65.03 mebibytes\n',
  ],
])('the size of metadata %s', async (_, words, text) => {
  expect(await thin('metadata-size', ...words)).toEqual(printed(text));
});

describe('a wrong command line ends with status 2', () => {
  test.each<[string[], RegExp]>([
    [['chek', 'x'], /^dmkit: there is no command "thin chek"\ndid you mean: dmkit thin check\n$/],
    [[], /^ {2}thin check +say whether/],
    [
      ['dump', '-f', 'json', 'x'],
      /^dmkit thin dump: --format is "json", not xml or human_readable\nusage: dmkit thin dump/,
    ],
    [['ls', '-o', 'DEV,SIZE', 'x'], /^dmkit thin ls: there is no column "SIZE"/],
    [['delta', '--snap1', '1', 'x'], /^dmkit thin delta: --snap2 is missing/],
    [['delta', '--snap1', '1', '--snap2', 'x', 'x'], /--snap2 is "x", not a number/],
    [['restore', '-i', 'x'], /^dmkit thin restore: --output is missing/],
    [['repair', '-o', 'x'], /^dmkit thin repair: --input is missing/],
    [['repair', '-i', 'x', '-o', 'x', '--transaction-id', '-1'], /--transaction-id/],
    [['restore', '-i', 'x', '-o', 'x', '--transaction-id', '18446744073709551616'], /--transaction-id is "1844/],
    [
      ['check', '--auto-repair', '--skip-mappings', 'x'],
      /^dmkit thin check: what harms nobody is put right only after/,
    ],
    [['check', '-m', '--super-block-only', 'x'], /^dmkit thin check: --metadata-snap is looked at as a whole/],
    [['dump', '--dev-id', 'one', 'x'], /--dev-id is "one", not a number/],
    [['metadata-size', '-b', '100k', '-s', '1g', '-m', '1'], /--block-size is 102400 bytes, no multiple of 64k/],
    [['metadata-size', '-b', '64k', '-s', '1x', '-m', '1'], /--pool-size is "1x", not a size/],
    [['metadata-size', '-b', '64k', '-s', '1g', '-m', '1', '-u', 'x'], /--unit is "x"/],
  ])('%j', async (words, message) => {
    const { status, stdout, stderr } = await thin(...words);
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
    expect(stderr).toMatch(message);
  });
});
