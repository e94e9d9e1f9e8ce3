import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { DeviceMapper } from '../../api/index.ts';
import { run } from '../run.ts';

const KIB = 1024;
let directory: string;
const path = (name: string) => join(directory, name);

/** Two writes, each flushed, a mark between; then a discard and a write that nobody has flushed. */
beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-replay-'));
  for (const name of ['disk', 'copy']) writeFileSync(path(name), Buffer.alloc(64 * KIB, 'o'));
  writeFileSync(path('log'), Buffer.alloc(64 * KIB));
  const dm = await DeviceMapper.open();
  await dm.create('d');
  await dm.load({ name: 'd' }, [{ start: 0, length: 128, type: 'log-writes', args: `${path('disk')} ${path('log')}` }]);
  await dm.resume({ name: 'd' });
  const disk = await dm.device('d');
  await disk.write(0, Buffer.alloc(4096, 'a'));
  await disk.flush();
  await dm.message({ name: 'd' }, 0, 'mark first');
  await disk.write(8192, Buffer.alloc(512, 'b'));
  await disk.flush();
  await disk.write(4096, Buffer.alloc(1024, 'c'));
  await disk.close();
  await dm.close();
});

afterEach(() => rmSync(directory, { recursive: true }));

/** What the command that is run at a flush leaves behind. */
let executed: string[][];

async function dmkit(...argv: string[]) {
  const result = { status: 0, stdout: '', stderr: '' };
  executed = [];
  const none = async () => {
    throw new Error('no daemon is needed');
  };
  result.status = await run('dmkit', argv, {
    stdout: { write: (text) => void (result.stdout += text) },
    stderr: { write: (text) => void (result.stderr += text) },
    stdin: async () => '',
    env: {},
    cwd: directory,
    control: none,
    existing: none,
    exec: async (words) => {
      executed.push([...words, letters()]);
      return words[2].startsWith('fail') && executed.length === 2 ? 3 : 0;
    },
  });
  result.stdout = result.stdout.replaceAll(directory, 'DIR');
  result.stderr = result.stderr.replaceAll(directory, 'DIR');
  return result;
}

/** The first letter of each 4 KiB of the copy, up to 12 KiB. */
const letters = () =>
  [0, 4, 8].map((kib) => readFileSync(path('copy')).toString('latin1', kib * KIB, kib * KIB + 1)).join('');
const printed = (stdout: string) => ({ status: 0, stdout, stderr: '' });

test('lists the entries', async () => {
  expect(await dmkit('replay-log', 'log')).toEqual(
    printed(`7 entries, blocks of 512 bytes
      0  write    0..4095  4096 bytes
      1  flush
      2  mark     first
      3  write    8192..8703  512 bytes
      4  flush
      5  write    4096..5119  1024 bytes
      6  mark     dm-log-writes-end
`),
  );
  expect((await dmkit('replay-log', 'log', '--start', '2', '--entries', '1')).stdout).toMatch(/\n {6}2 .*first\n$/);
  expect(JSON.parse((await dmkit('replay-log', 'log', '--json')).stdout)).toMatchObject({
    blockSize: 512,
    total: 7,
    entries: [{ entry: 0, kind: 'write', at: 0, length: 4096 }, { kind: 'flush' }, { mark: 'first' }, {}, {}, {}, {}],
  });
});

test('prints the list as JSON while it is read', async () => {
  const { stdout } = await dmkit('replay-log', 'log', '--json', '--start', '1', '--entries', '2');
  expect(stdout.split('\n').slice(0, 6)).toEqual([
    '{',
    '  "blockSize": 512,',
    '  "total": 7,',
    '  "entries": [',
    expect.stringMatching(/^ {4}\{"entry":1,"kind":"flush",.*\},$/),
    expect.stringMatching(/^ {4}\{"entry":2,"kind":"mark",.*"mark":"first"\}$/),
  ]);
  expect(JSON.parse((await dmkit('replay-log', 'log', '--json', '--start', '7')).stdout)).toEqual({
    blockSize: 512,
    total: 7,
    entries: [],
  });
});

test('repeats everything', async () => {
  expect(await dmkit('replay-log', 'log', 'copy')).toEqual(
    printed('replayed entries 0 to 6 of 7 onto copy\n  3 writes, 5.5 KiB; 0 discards\n'),
  );
  expect(readFileSync(path('copy')).equals(readFileSync(path('disk')))).toBe(true);
});

test('repeats up to a mark, then entry by entry, then to the next flush', async () => {
  expect((await dmkit('replay-log', 'log', 'copy', '--to', 'first')).stdout).toBe(
    'replayed entries 0 to 2 of 7 onto copy\n  1 writes, 4.0 KiB; 0 discards\n  the next entry is 3\n',
  );
  expect(letters()).toBe('aoo');
  expect((await dmkit('replay-log', 'log', 'copy', '--start', '3', '--entries=1')).stdout).toContain('next entry is 4');
  expect(letters()).toBe('aob');
  const next = await dmkit('replay-log', 'log', 'copy', '--start', '5', '--next-flush', '--json');
  expect(JSON.parse(next.stdout)).toMatchObject({ first: 5, next: 7, total: 7, writes: 1, atFlush: false });
  expect(letters()).toBe('acb');
  expect(await dmkit('replay-log', 'log', 'copy', '--start', '7')).toEqual(
    printed('nothing to replay: copy stays as it is\n'),
  );
});

test('runs a command at each flush, with the disk as it was then', async () => {
  expect(await dmkit('replay-log', 'log', 'copy', '--at-flush', 'check copy')).toEqual(
    printed('the command succeeded at each of 2 flushes; 7 of 7 entries replayed\n'),
  );
  expect(letters()).toBe('acb');
  expect(executed).toEqual(['aoo', 'aob'].map((state) => ['sh', '-c', 'check copy', state]));
});

test('ends at the first flush whose command fails', async () => {
  expect(await dmkit('replay-log', 'log', 'copy', '--at-flush', 'fail')).toEqual({
    status: 1,
    stdout: '',
    stderr: `dmkit: the command failed with status 3 at entry 4
hint: the same state again, on a fresh copy: dmkit replay-log LOG DEVICE --entries 5
`,
  });
  expect(letters()).toBe('aob');
});

test.each([
  [['replay-log', 'disk'], 1, 'Cannot read DIR/disk: it holds no log of a log-writes target'],
  [['replay-log', 'log', 'copy', '--to', 'second'], 1, 'Cannot replay to the mark "second": it is not there'],
  [['replay-log', 'log', 'log'], 1, 'log'],
  [['replay-log', 'log', 'nosuch'], 1, 'nosuch'],
  [['replay-log', 'log', '--start', '9'], 1, 'Cannot begin with entry 9: the log has 7'],
  [['replay-log', 'log', '--start', 'x'], 2, '--start is "x", not a number'],
  [['replay-log', 'log', '--to', 'first'], 2, '--to needs a DEVICE'],
  [['replay-log', 'log', 'copy', '--to', 'first', '--next-flush'], 2, '--to and --next-flush exclude one another'],
  [['replay-log'], 2, 'LOG is missing'],
])('%j fails with status %d', async (argv, status, message) => {
  const result = await dmkit(...argv);
  expect(result).toMatchObject({ status, stdout: '' });
  expect(result.stderr).toContain(message);
  expect(letters()).toBe('ooo');
});
