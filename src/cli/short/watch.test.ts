import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type DaemonControl, DeviceMapper, DmError } from '../../api/index.ts';
import { run } from '../run.ts';
import type { ShortIo } from './command.ts';

const MIB = 1024 * 1024;
let directory: string;
let dm: DeviceMapper;
let interrupt: AbortController;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-watch-'));
  writeFileSync(join(directory, 'disk.img'), Buffer.alloc(MIB, 'origin. '));
  dm = await DeviceMapper.open();
  interrupt = new AbortController();
});

afterEach(async () => {
  interrupt.abort();
  await dm.close();
  rmSync(directory, { recursive: true });
});

/** `dmkit watch` on a mapper in this process, in the place of a daemon. */
function watch(argv: readonly string[], control: Partial<DaemonControl> = {}) {
  const lines: string[] = [];
  let printed = () => {};
  let stderr = '';
  const io: ShortIo = {
    stdout: {
      write(text) {
        lines.push(text.replaceAll(directory, 'DIR'));
        printed();
      },
    },
    stderr: { write: (text) => void (stderr += text) },
    stdin: async () => '',
    env: {},
    cwd: directory,
    control: async () => ({ ...dm, ...control }) as unknown as DaemonControl,
    existing: async () => undefined,
    signal: interrupt.signal,
  };
  return {
    ended: run('dmkit', ['watch', ...argv], io),
    stderr: () => stderr,
    /** Resolves with the text of all lines, without their times, when the last has come that contains `text`. */
    async until(text: string): Promise<string[]> {
      while (!lines.some((line) => line.includes(text))) await new Promise<void>((go) => (printed = go));
      return lines.splice(0).map((line) => {
        expect(line).toMatch(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d {2}.*\n$|^\{"[^\n]*\}\n$/);
        return line.startsWith('{') ? line : line.slice(21, -1);
      });
    },
  };
}

const write = async (name: string, at: number, length: number) => {
  const disk = await dm.device(name);
  try {
    await disk.write(at, Buffer.alloc(length, 'new'));
  } finally {
    await disk.close();
  }
};

const forked = () =>
  dm.fork('disk.img', 'dev', {
    directory,
    chunkSize: 4096,
    cowSize: 40 * 4096,
    autoextend: { threshold: 100, percent: 50 },
  });

test('prints what happens, a line each, until it is interrupted', async () => {
  const watching = watch([]);
  expect(await watching.until('watching')).toEqual(['watching']);
  await forked();
  // A first fork makes its origin device too.
  expect(await watching.until('disk: resumed')).toEqual([
    'dev: created',
    'disk: created',
    'disk: has a new table',
    'disk: suspended',
    'dev: has a new table',
    'disk: resumed',
  ]);
  await write('dev', 0, 41 * 4096);
  expect(await watching.until('grew')).toEqual(['dev: dev.cow grew from 160.0 KiB to 240.0 KiB']);
  await dm.rename({ name: 'dev' }, 'new');
  expect(await watching.until('event 1')).toEqual(['new: renamed, it was dev', 'new: event 1']);
  interrupt.abort();
  expect(await watching.ended).toBe(0);
  expect(watching.stderr()).toBe('');
});

test('--json prints the same as objects', async () => {
  const watching = watch(['--json']);
  expect(JSON.parse((await watching.until('begin'))[0])).toEqual({
    event: 'begin',
    time: expect.stringMatching(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
  });
  await dm.create('dev', { uuid: 'U' });
  await dm.remove({ name: 'dev' });
  const events = (await watching.until('remove')).map((line) => JSON.parse(line));
  expect(events).toMatchObject([
    { sequence: expect.any(Number), device: 'dev', uuid: 'U', event: 'create' },
    { sequence: events[0].sequence + 1, device: 'dev', uuid: 'U', event: 'remove' },
  ]);
});

test('with names prints only what happens to those devices, through renames', async () => {
  const watching = watch(['dev', 'other']);
  await watching.until('watching');
  expect(watching.stderr()).toBe(
    'dmkit watch: there is no device "dev" yet\ndmkit watch: there is no device "other" yet\n',
  );
  await dm.create('noise');
  await dm.create('dev');
  await dm.rename({ name: 'noise' }, 'noisier');
  await dm.rename({ name: 'dev' }, 'new');
  await dm.remove({ name: 'noisier' });
  await dm.remove({ name: 'new' });
  expect(await watching.until('removed')).toEqual(['dev: created', 'new: renamed, it was dev', 'new: removed']);
});

test('goes on when the daemon has ended and is back', async () => {
  const gone = (code: string) => new DmError(code, 'EIO', 'gone');
  const answers: ((after?: number, signal?: AbortSignal) => Promise<never>)[] = [
    async () => Promise.reject(gone('DAEMON_LOST')),
    async () => Promise.reject(gone('DAEMON_DOWN')),
  ];
  const watching = watch([], {
    events: (after, signal) => (answers.length > 0 ? answers.shift()!() : dm.events(after, signal)),
  });
  expect(await watching.until('watching')).toEqual(['the daemon has ended; waiting for the next one', 'watching']);
  await dm.create('dev');
  expect(await watching.until('dev')).toEqual(['dev: created']);
});

test('ends with an error that is none of a daemon that went away', async () => {
  const watching = watch([], { events: async () => Promise.reject(new DmError('DAEMON_DENIED', 'EACCES', 'no')) });
  expect(await watching.ended).toBe(1);
  expect(watching.stderr()).toBe('dmkit: no\n');
});

test('says when events were lost', async () => {
  const watching = watch([]);
  await watching.until('watching');
  // More in one turn than are kept: nobody reads in between.
  await Promise.all(Array.from({ length: 5000 }, (_, i) => dm.create(`dev${i}`)));
  expect((await watching.until('dev4999: created'))[0]).toBe(
    'events were lost: they came faster than they could be printed',
  );
});

test.each([
  ['as it shows', 6],
  ['which an overflow hides', 7],
])('prints the end of a merge, %s', async (_how, chunks) => {
  await dm.fork('disk.img', 'dev', { directory, chunkSize: 4096, cowSize: 8 * 4096 });
  const written = write('dev', 0, chunks * 4096);
  await (chunks > 6 ? expect(written).rejects.toMatchObject({ code: 'SNAPSHOT_OVERFLOW' }) : written);
  const watching = watch(['disk']);
  await watching.until('watching');
  await dm.merge('dev');
  const lines = await watching.until('merged');
  expect(lines.filter((line) => line.includes('merged'))).toEqual(['disk: dev.cow is merged']);
});
