import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Image } from '../../../test/support/thin-damage.ts';
import { contents, EXAMPLE, poolImage } from '../../../test/unit/thin/images.ts';
import { FileDevice } from '../../device/file.ts';
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

async function thin(...argv: string[]) {
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
  result.status = await run('dmkit', ['thin', ...argv], io);
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
    [[], /^dmkit: there is no command "thin"/],
    [
      ['dump', '-f', 'json', 'x'],
      /^dmkit thin dump: --format is "json", not xml or human_readable\nusage: dmkit thin dump/,
    ],
    [['ls', '-o', 'DEV,SIZE', 'x'], /^dmkit thin ls: there is no column "SIZE"/],
    [['delta', '--snap1', '1', 'x'], /^dmkit thin delta: --snap2 is missing/],
    [['delta', '--snap1', '1', '--snap2', 'x', 'x'], /--snap2 is "x", not a number/],
    [['restore', '-i', 'x'], /^dmkit thin restore: --output is missing/],
    [['repair', '-o', 'x'], /^dmkit thin repair: --input is missing/],
    [['metadata-size', '-b', '100k', '-s', '1g', '-m', '1'], /--block-size is 102400 bytes, no multiple of 64k/],
    [['metadata-size', '-b', '64k', '-s', '1x', '-m', '1'], /--pool-size is "1x", not a size/],
    [['metadata-size', '-b', '64k', '-s', '1g', '-m', '1', '-u', 'x'], /--unit is "x"/],
  ])('%j', async (words, message) => {
    const { status, stdout, stderr } = await thin(...words);
    expect({ status, stdout }).toEqual({ status: 2, stdout: '' });
    expect(stderr).toMatch(message);
  });
});
