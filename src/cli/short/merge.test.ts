import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { call } from '../../../test/support/command-line.ts';
import { DeviceMapper, DmError, type MergeProgress } from '../../api/index.ts';
import type { ShortIo } from './command.ts';
import { MergeDisplay, printTime } from './merge-display.ts';

const MIB = 1024 * 1024;
let directory: string;
let dm: DeviceMapper;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-merge-'));
  writeFileSync(join(directory, 'disk.img'), Buffer.alloc(MIB, 'origin. '));
  dm = await DeviceMapper.open();
});

afterEach(async () => {
  await dm.close();
  rmSync(directory, { recursive: true });
});

const dmkit = (argv: string[], over: Partial<ShortIo> = {}, daemon: object = {}) =>
  call(argv, { dm, directory, over, daemon });

async function write(name: string, at: number, text: string, length = 4096) {
  const disk = await dm.device(name);
  await disk.write(at, Buffer.alloc(length, text));
  await disk.flush();
  await disk.close();
}

async function changedFork(...options: string[]) {
  await dmkit(['fork', 'disk.img', 'dev', '--chunk=4k', ...options]);
  await write('dev', 8192, 'mine');
  await write('dev', 65536, 'more', 8192);
}

/** As `dmkit drop --keep` leaves them. */
async function keptFiles() {
  await changedFork();
  await dm.drop('dev', { keepCow: true });
}

const image = () => readFileSync(join(directory, 'disk.img')).toString('latin1');
const isMerged = () =>
  image().startsWith('mine', 8192) && image().startsWith('more', 65536) && image().startsWith('origin.', 12288);
const events = (stdout: string) =>
  stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));

/** A daemon whose merge takes two more answers. */
const answers = (...rest: Partial<MergeProgress>[]) => {
  const progress: MergeProgress = {
    name: 'dev',
    image: 'DIR/disk.img',
    origin: 'disk',
    cow: 'DIR/dev.cow',
    state: 'merging',
    chunkSize: 4096,
    total: 100,
    merged: 0,
    version: 1,
  };
  const later = rest.map((part, index) => ({ ...progress, version: index + 2, ...part }));
  return { merge: async () => progress, mergeProgress: async () => later.shift() };
};

describe('of a fork', () => {
  test('says what became of it', async () => {
    await changedFork();
    expect(await dmkit(['merge', 'dev'])).toEqual({
      status: 0,
      stdout:
        'dev is merged into DIR/disk.img (3 chunks, 12.0 KiB), and DIR/dev.cow is gone\nit was the last fork: the origin device disk is gone too\n',
      stderr: '',
    });
    expect(isMerged()).toBe(true);
    expect((await dmkit(['ls'])).stdout).toBe('No devices found\n');
    expect((await dmkit(['merge', 'dev'])).stdout).toMatch(/^dev is merged into/);
    expect((await dmkit(['merge', 'none'])).stderr).toMatch(/^dmkit: Cannot find the mapped device "none"/);
  });

  test('keeps the COW file with --keep', async () => {
    await changedFork();
    expect((await dmkit(['merge', 'dev', '--keep'])).stdout).toBe(
      'dev is merged into DIR/disk.img (3 chunks, 12.0 KiB)\nkept DIR/dev.cow, an empty store now\nit was the last fork: the origin device disk is gone too\n',
    );
    expect((await dmkit(['inspect', 'dev.cow'])).stdout).toContain('exceptions  0,');
  });

  test('returns at once with --background', async () => {
    expect(await dmkit(['merge', 'dev', '--background'], {}, answers())).toEqual({
      status: 0,
      stdout: 'dev is being merged into DIR/disk.img; to wait for it: dmkit merge dev\n',
      stderr: '',
    });
  });

  test('prints an event a line with --json', async () => {
    const daemon = answers({ merged: 40 }, { merged: 100, state: 'done', deleted: 'DIR/dev.cow' });
    const { status, stdout, stderr } = await dmkit(['merge', 'dev', '--json'], { progress: true }, daemon);
    expect([status, stderr]).toEqual([0, '']);
    expect(events(stdout)).toMatchObject([
      { event: 'start', name: 'dev', image: 'DIR/disk.img', total: 100, merged: 0, chunkSize: 4096 },
      { event: 'progress', merged: 0, total: 100, bytesMerged: 0, bytes: 409600 },
      { event: 'progress', merged: 40, bytesMerged: 163840, bytesPerSecond: expect.any(Number) },
      { event: 'done', merged: 100, deleted: 'DIR/dev.cow' },
    ]);
  });

  test('draws a bar on a terminal, and nothing stays of it', async () => {
    const daemon = answers({ merged: 50 }, { merged: 100, state: 'done' });
    const { stdout, stderr } = await dmkit(['merge', 'dev'], { progress: true }, daemon);
    expect(stdout).toBe('dev is merged into DIR/disk.img (100 chunks, 400.0 KiB)\n');
    const lines = stderr.split('\r');
    expect(lines[1]).toBe('[........................]   0%  0/100 chunks, 0 B\x1b[K');
    expect(lines[2]).toMatch(/^\[#{12}\.{12}\] {2}50% {2}50\/100 chunks, 200\.0 KiB, .*\/s, \d+:\d\d left/);
    expect(lines.at(-1)).toBe('\x1b[K');
  });

  test('says once what holds it up', async () => {
    const error = 'Cannot open DIR/disk.img: no such file or disk';
    const daemon = answers({ merged: 100, error }, { merged: 100, error }, { merged: 100, state: 'done' });
    const { status, stderr } = await dmkit(['merge', 'dev'], {}, daemon);
    expect([status, stderr]).toEqual([0, `dmkit: ${error}; it is tried again until it succeeds\n`]);
  });

  test('left with Ctrl-C goes on in the daemon, and says so', async () => {
    const interrupt = new AbortController();
    const daemon = {
      ...answers(),
      mergeProgress: async () => {
        interrupt.abort();
        throw new DmError('INTERRUPTED', 'EINTR', 'The call was interrupted');
      },
    };
    expect(await dmkit(['merge', 'dev'], { signal: interrupt.signal }, daemon)).toEqual({
      status: 130,
      stdout: '',
      stderr: 'dmkit: dev goes on being merged by the daemon; to follow it: dmkit merge dev\n',
    });
  });

  test('whose daemon stops says that it goes on with the next', async () => {
    const daemon = {
      ...answers(),
      mergeProgress: async () => {
        throw new DmError('DAEMON_LOST', 'EIO', 'The daemon went away');
      },
    };
    expect(await dmkit(['merge', 'dev'], {}, daemon)).toEqual({
      status: 1,
      stdout: '',
      stderr:
        'dmkit: The daemon has stopped in the middle of the merge of dev\nhint: nothing is lost, and the merge goes on when it starts again: dmkit merge dev\n',
    });
    const { stdout } = await dmkit(['merge', 'dev', '--json'], {}, daemon);
    expect(events(stdout).at(-1)).toMatchObject({
      event: 'failed',
      error: /The daemon has stopped/,
      hint: /^nothing is lost/,
    });
  });

  test('that fails ends with status 1 and what to do', async () => {
    const failure = {
      state: 'failed',
      error: 'The merge of dev has stopped: a disk',
      hint: 'dmkit merge dev',
    } as const;
    expect(await dmkit(['merge', 'dev'], {}, answers(failure))).toEqual({
      status: 1,
      stdout: '',
      stderr: 'dmkit: The merge of dev has stopped: a disk\nhint: dmkit merge dev\n',
    });
    const { stdout } = await dmkit(['merge', 'dev', '--json'], {}, answers(failure));
    expect(events(stdout).at(-1)).toMatchObject({ event: 'failed', error: failure.error });
  });
});

describe('of files', () => {
  test('is done without a daemon, and leaves an empty store', async () => {
    await keptFiles();
    const nobody = async () => {
      throw new Error('no daemon is needed');
    };
    expect(await dmkit(['merge', 'disk.img', 'dev.cow'], { control: nobody, existing: nobody })).toEqual({
      status: 0,
      stdout: 'DIR/dev.cow is merged into DIR/disk.img (3 chunks, 12.0 KiB)\nkept DIR/dev.cow, an empty store now\n',
      stderr: '',
    });
    expect(isMerged()).toBe(true);
    expect((await dmkit(['inspect', 'dev.cow'])).stdout).toMatch(/state {7}valid[\s\S]*exceptions {2}0,/);
    expect(existsSync(join(directory, 'run'))).toBe(false);
    expect((await dmkit(['merge', 'disk.img', 'dev.cow'])).stdout).toContain('(0 chunks, 0 B)');
    expect((await dmkit(['fork', 'disk.img', 'dev'])).stdout).toContain('was there already');
  });

  test('prints an event a line with --json', async () => {
    await keptFiles();
    const { stdout } = await dmkit(['merge', 'disk.img', 'dev.cow', '--json']);
    const all = events(stdout);
    expect(all[0]).toMatchObject({ event: 'start', total: 3, chunkSize: 4096, state: 'merging' });
    expect(all.at(-2)).toMatchObject({ event: 'progress', merged: 3, total: 3, bytes: 12288 });
    expect(all.at(-1)).toMatchObject({ event: 'done', merged: 3, state: 'done' });
  });

  test('that is interrupted at once says that the image is not whole, and goes on when repeated', async () => {
    await keptFiles();
    const { status, stderr } = await dmkit(['merge', 'disk.img', 'dev.cow'], { signal: AbortSignal.abort() });
    // The batch under way is ended, and there is but one.
    if (status === 130)
      expect(stderr).toMatch(
        /^dmkit: stopped after \d of 3 chunks; until the command is repeated, DIR\/disk\.img is a mix/,
      );
    else expect(status).toBe(0);
    expect((await dmkit(['merge', 'disk.img', 'dev.cow'])).status).toBe(0);
    expect(isMerged()).toBe(true);
  });

  test.each<[string, () => unknown, string[], RegExp]>([
    [
      'the wrong way round',
      () => {},
      ['dev.cow', 'disk.img'],
      /is no COW store|is the COW store, not .*\nhint: .*dmkit merge DIR\/disk\.img DIR\/dev\.cow/,
    ],
    ['with itself', () => {}, ['disk.img', 'disk.img'], /into itself/],
    [
      'with what is no store',
      () => writeFileSync(join(directory, 'x'), Buffer.alloc(65536)),
      ['disk.img', 'x'],
      /x: it is no COW store\nhint: first the image, then the COW file/,
    ],
    ['with an empty file', () => writeFileSync(join(directory, 'x'), ''), ['disk.img', 'x'], /x: it is no COW store/],
    ['with what is not there', () => {}, ['disk.img', 'x'], /Cannot open DIR\/x: no such file/],
    ['into what is not there', () => {}, ['x', 'dev.cow'], /Cannot open DIR\/x: no such file/],
    [
      'into a store',
      () => copyFileSync(join(directory, 'dev.cow'), join(directory, 'x')),
      ['x', 'dev.cow'],
      /Cannot merge into DIR\/x: it is a snapshot COW store file/,
    ],
    [
      'into qcow2',
      () => writeFileSync(join(directory, 'x'), Buffer.from('QFI\xfb'.padEnd(MIB, '\0'), 'latin1')),
      ['x', 'dev.cow'],
      /it is a qcow2 file\nhint: name the image .*\n.*--raw/,
    ],
    [
      'into a smaller image',
      () => writeFileSync(join(directory, 'x'), Buffer.alloc(32768)),
      ['x', 'dev.cow'],
      /belongs to another image of at least 73728 bytes, and DIR\/x has 32768/,
    ],
    [
      'with an invalid store',
      () => {
        const store = readFileSync(join(directory, 'dev.cow'));
        store.writeUInt32LE(0, 4);
        writeFileSync(join(directory, 'dev.cow'), store);
      },
      ['disk.img', 'dev.cow'],
      /the store is invalid, its changes are lost/,
    ],
    [
      'with a corrupt store',
      () => {
        const store = readFileSync(join(directory, 'dev.cow'));
        store.writeUInt32LE(2, 4096 + 16 + 8);
        writeFileSync(join(directory, 'dev.cow'), store);
      },
      ['disk.img', 'dev.cow'],
      /an entry before it has that new chunk\nhint: look at it: dmkit inspect/,
    ],
  ])('%s is refused, and nothing is written', async (_what, prepare, operands, message) => {
    await keptFiles();
    prepare();
    const before = [image(), readFileSync(join(directory, 'dev.cow')).toString('latin1')];
    const { status, stdout, stderr } = await dmkit(['merge', ...operands]);
    expect(stderr).toMatch(message);
    expect([status, stdout]).toEqual([1, '']);
    expect([image(), readFileSync(join(directory, 'dev.cow')).toString('latin1')]).toEqual(before);
  });

  test('into what looks like another format is done with --raw', async () => {
    const raw = Buffer.alloc(MIB);
    raw.write('QFI\xfb', 'latin1');
    writeFileSync(join(directory, 'disk.img'), raw);
    await changedFork('--raw');
    await dm.drop('dev', { keepCow: true });
    expect((await dmkit(['merge', 'disk.img', 'dev.cow'])).status).toBe(1);
    expect((await dmkit(['merge', 'disk.img', 'dev.cow', '--raw'])).status).toBe(0);
    expect(image().startsWith('mine', 8192)).toBe(true);
  });

  test('with entries behind the end of the list, as a power cut leaves them, does not bring them back', async () => {
    await keptFiles();
    const store = readFileSync(join(directory, 'dev.cow'));
    store.copy(store, 4096 + 5 * 16, 4096, 4096 + 16);
    writeFileSync(join(directory, 'dev.cow'), store);
    expect((await dmkit(['merge', 'disk.img', 'dev.cow'])).stdout).toContain('(3 chunks');
    expect(isMerged()).toBe(true);
    expect((await dmkit(['inspect', 'dev.cow'])).stdout).toContain('exceptions  0,');
  });

  test('that are in use is refused', async () => {
    await changedFork();
    const { status, stderr } = await dmkit(['merge', 'disk.img', 'dev.cow']);
    expect([status, stderr]).toEqual([
      1,
      expect.stringMatching(/^dmkit: Cannot open DIR\/dev\.cow to read: this process has it/),
    ]);
  });

  test('of an image with other forks, of a daemon that does not run, is refused unless it is forced', async () => {
    await keptFiles();
    mkdirSync(join(directory, 'state'));
    const saved = (name: string, cow: string, store = 'P') => ({
      name,
      table: [
        { start: 0, length: 2048, type: 'snapshot', args: `${directory}/disk.img ${directory}/${cow} ${store} 8` },
      ],
    });
    const save = (...devices: object[]) =>
      writeFileSync(join(directory, 'state/state.json'), JSON.stringify({ version: 1, state: { devices } }));
    save(saved('dev', 'dev.cow'), saved('other', 'other.cow'));
    expect(await dmkit(['merge', 'disk.img', 'dev.cow'])).toEqual({
      status: 1,
      stdout: '',
      stderr:
        'dmkit: Cannot merge into disk.img: other, of a daemon that does not run, would show the changes too\nhint: let the daemon do it: dmkit merge dev\n      or merge all the same: --force\n',
    });
    save(saved('dev', 'dev.cow'), saved('gone', 'gone.cow', 'N'));
    expect((await dmkit(['merge', 'disk.img', 'dev.cow'])).status).toBe(0);
    save(saved('other', 'other.cow'));
    expect((await dmkit(['merge', 'disk.img', 'dev.cow', '--force'])).status).toBe(0);
  });

  test.each([
    [['disk.img', 'dev.cow', '--keep'], 'dmkit merge: --keep is for forks: dmkit merge NAME --keep\n'],
    [
      ['disk.img', 'dev.cow', '--background'],
      'dmkit merge: --background is for forks: dmkit merge NAME --background\n',
    ],
    [['dev', '--raw'], 'dmkit merge: --raw is for two files: dmkit merge IMAGE COWFILE --raw\n'],
  ])('%j is a wrong command line', async (operands, stderr) => {
    const result = await dmkit(['merge', ...operands]);
    expect([result.status, result.stderr.slice(0, stderr.length)]).toEqual([2, stderr]);
  });
});

test('the time left is told from the rate of the last seconds', () => {
  let now = 0;
  let drawn = '';
  const io = { progress: true, stderr: { write: (text: string) => (drawn = text) } } as unknown as ShortIo;
  const display = new MergeDisplay(io, false, () => now);
  const at = (seconds: number, merged: number) => {
    now = seconds * 1000;
    display.progress({ image: '', cow: '', chunkSize: MIB, total: 1000, merged });
    return drawn.replace(/^.*chunks, /s, '').replace('\x1b[K', '');
  };
  expect(at(0, 0)).toBe('0 B');
  expect(at(1, 100)).toBe('100.0 MiB, 100.0 MiB/s, 0:09 left');
  expect(at(2, 110)).toBe('110.0 MiB, 55.0 MiB/s, 0:17 left');
  expect(at(12, 120)).toBe('120.0 MiB, 1.8 MiB/s, 8:04 left');
  expect(at(13, 121)).toBe('121.0 MiB, 1.0 MiB/s, 14:39 left');
});

test('a narrow terminal has as much of the bar as fits on a line', () => {
  let drawn = '';
  const io = { progress: true, columns: 40, stderr: { write: (text: string) => (drawn = text) } } as unknown as ShortIo;
  new MergeDisplay(io, false, () => 0).progress({ image: '', cow: '', chunkSize: MIB, total: 1000, merged: 500 });
  expect(drawn).toBe('\r[############............]  50%  500/10\x1b[K');
});

test.each([
  [0, '0:00'],
  [59, '0:59'],
  [60, '1:00'],
  [3599, '59:59'],
  [3600, '1:00:00'],
])('%i seconds are %s', (seconds, text) => {
  expect(printTime(seconds)).toBe(text);
});
