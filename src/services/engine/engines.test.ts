/** A daemon with engines; their threads are this one, joined by message ports. */
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MessageChannel } from 'node:worker_threads';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openDisk } from '../../device/open.ts';
import { bytes } from '../../units.ts';
import { controlClient } from '../daemon/control-client.ts';
import { Daemon } from '../daemon/daemon.ts';
import type { DaemonControl } from '../daemon/daemon-control.ts';
import { controlSocket, nbdUri } from '../daemon/directories.ts';
import { runEngine } from './engine-thread.ts';

const SIZE = 1 << 20;
const SECTORS = SIZE / 512;

let directory: string;
let daemon: Daemon | undefined;
let client: DaemonControl;
/** Calls that each engine beside the first was sent, with the name of the device. */
let sent: string[][];
/** Names that were missing in the saved state at some message. */
let missing: Set<string>;
let expected: string[];
/** The system has none. */
let noThreads: boolean;
/** They end before they answer. */
let failing: boolean;
/** Told of every call to an engine beside the first, which is sent when this has ended, with a way to call the daemon in its place. */
let onCall: (call: string, callBack: (call: string, args: unknown[]) => Promise<unknown>) => unknown;
let log: string[];

const path = (...names: string[]) => join(directory, ...names);

function image(name: string, fill: number): string {
  writeFileSync(path(name), Buffer.alloc(SIZE, fill));
  return path(name);
}

const saved = (): string[] =>
  JSON.parse(readFileSync(path('state', 'state.json'), 'utf8')).state.devices.map(({ name }: { name: string }) => name);

async function start(engines = 2): Promise<void> {
  sent = [];
  daemon = await Daemon.start({
    run: path('run'),
    state: path('state'),
    version: '0',
    log: (text) => log.push(text),
    engines,
    thread(begin) {
      if (noThreads) throw new Error('no threads');
      const { port1, port2 } = new MessageChannel();
      if (failing)
        return { port: port1, failed: Promise.reject(new Error('no module')), end: async () => port1.close() };
      runEngine(port2, begin);
      const callBack = (call: string, args: unknown[]) =>
        new Promise((resolve) => {
          port2.on('message', ({ id }) => id === 1e9 && resolve(id));
          port2.postMessage({ kind: 'call', id: 1e9, call, args });
        });
      const calls: string[] = [];
      sent.push(calls);
      const post = port1.postMessage.bind(port1);
      port1.postMessage = (message: { call?: string; args?: { name?: string }[] }) => {
        if (message.call) calls.push(`${message.call} ${message.args?.[0]?.name ?? message.args?.[0] ?? ''}`);
        const waiting = message.call && onCall(message.call, callBack);
        if (expected.length > 0) for (const name of expected) if (!saved().includes(name)) missing.add(name);
        if (waiting instanceof Promise) void waiting.then(() => post(message));
        else post(message);
      };
      return { port: port1, failed: new Promise(() => {}), end: async () => port1.close() };
    },
  });
  client = controlClient(controlSocket(path('run')));
}

async function stop(): Promise<void> {
  await daemon?.end();
  await daemon?.closeControl();
  daemon = undefined;
}

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'dmkit-engines-'));
  missing = new Set();
  expected = [];
  noThreads = false;
  failing = false;
  onCall = () => {};
  log = [];
  await start();
});

afterEach(async () => {
  await stop();
  rmSync(directory, { recursive: true });
});

const line = (args: string, from = 0, length = SECTORS) => ({ start: from, length, type: 'linear', args });
const calls = (engine: number, call: string) => sent[engine].filter((text) => text.startsWith(`${call} `));

const open = (name: string) => openDisk(nbdUri(path('run', 'nbd.sock'), name), 'rw');

async function read(name: string, at = 0): Promise<number> {
  const disk = await open(name);
  const buffer = new Uint8Array(512);
  await disk.read(bytes(at), buffer, 0, 512);
  await disk.close();
  return buffer[0];
}

async function write(name: string, value: number, at = 0): Promise<void> {
  const disk = await open(name);
  await disk.write(bytes(at), new Uint8Array(512).fill(value), 0, 512);
  await disk.flush();
  await disk.close();
}

describe('forks', () => {
  test('of one image stay on the first thread, those of the next get one of their own', async () => {
    await client.fork(image('a.img', 1), 'fa');
    expect(sent).toHaveLength(0);
    await client.fork(image('b.img', 2), 'fb');
    await client.fork(path('b.img'), 'fb2');
    expect(sent).toHaveLength(1);
    expect(sent[0].filter((text) => text.startsWith('fork '))).toEqual([
      `fork ${path('b.img')}`,
      `fork ${path('b.img')}`,
    ]);
    await client.fork(image('c.img', 3), 'fc');
    expect(calls(1, 'fork')).toEqual([`fork ${path('c.img')}`]);
  });

  test('of an image by another of its names are with the others', async () => {
    await client.fork(image('a.img', 1), 'fa');
    await client.fork(image('b.img', 2), 'fb');
    await client.fork('./b.img', 'fb2', { directory });
    expect(calls(0, 'fork')).toHaveLength(2);
  });

  test('of an image that a table of the first thread uses are there', async () => {
    await client.create('x', { table: [line(`${image('b.img', 2)} 0`)] });
    await client.fork(image('a.img', 1), 'fa');
    await client.fork(path('b.img'), 'fb');
    // fa went to a thread of its own, as there was a device on the first.
    expect(calls(0, 'fork')).toEqual([`fork ${path('a.img')}`]);
    expect((await client.info({ name: 'fb' })).name).toBe('fb');
  });

  test('at once, of as many images, are each where the others of their image are', async () => {
    const images = ['a', 'b', 'c', 'd'].map((name, index) => image(`${name}.img`, index));
    await Promise.all(images.flatMap((file, index) => [0, 1, 2].map((n) => client.fork(file, `f${index}-${n}`))));
    const volumes = await client.volumes();
    expect(volumes.filter(({ type }) => type === 'snapshot')).toHaveLength(12);
    expect(volumes.filter(({ type }) => type === 'snapshot-origin')).toHaveLength(4);
    expect(new Set((await client.list()).map(({ minor }) => minor)).size).toBe(16);
  });

  test('are listed in order, read and written, compared, reverted, merged and dropped wherever they are', async () => {
    await client.fork(image('b.img', 1), 'fb');
    await client.fork(image('a.img', 2), 'fa');
    expect((await client.list()).map(({ name }) => name)).toEqual(['a', 'b', 'fa', 'fb']);
    expect((await client.volumes()).map(({ name }) => name)).toEqual(['a', 'b', 'fa', 'fb']);
    for (const [name, old] of [
      ['fb', 1],
      ['fa', 2],
    ] as const) {
      expect(await read(name, 4096)).toBe(old);
      await write(name, 9, 4096);
      expect(await read(name, 4096)).toBe(9);
      expect((await client.diff(name)).ranges).toEqual([{ start: 4096, length: 512 }]);
      await client.revert({ name });
      expect(await read(name, 4096)).toBe(old);
      await write(name, 7, 8192);
      await client.merge(name);
      let progress = await client.mergeProgress(name);
      while (progress.state === 'merging') progress = await client.mergeProgress(name, { since: progress.version });
      expect(progress).toMatchObject({ state: 'done', originRemoved: name.slice(1) });
      expect(readFileSync(path(`${name.slice(1)}.img`))[8192]).toBe(7);
      await client.fork(path(`${name.slice(1)}.img`), `${name}2`);
      expect(await client.drop(`${name}2`)).toMatchObject({ deleted: path(`${name}2.cow`) });
    }
    expect(await client.list()).toEqual([]);
  });
});

test('without threads to be had everything is on the first', async () => {
  noThreads = true;
  await client.fork(image('a.img', 1), 'fa');
  await client.fork(image('b.img', 2), 'fb');
  await client.create('x', { table: [line('fb 0'), line('fa 0', SECTORS)] });
  await stop();
  await start();
  expect([await read('x'), await read('fa')]).toEqual([2, 1]);
});

test('when a thread cannot begin, what should have been there is on the first', async () => {
  await client.fork(image('a.img', 1), 'fa');
  failing = true;
  await client.fork(image('b.img', 2), 'fb');
  expect(await read('fb')).toBe(2);
  expect(log).toContainEqual(expect.stringContaining('no module'));
  await stop();
  await start();
  expect(await client.daemon()).toMatchObject({ threads: 1 });
  expect([await read('fa'), await read('fb')]).toEqual([1, 2]);
});

test('what is told while the devices are being closed is not saved', async () => {
  await client.fork(image('a.img', 1), 'fa');
  await client.fork(image('b.img', 2), 'fb');
  onCall = (call, callBack) => call === 'close' && callBack('save', [{ devices: [], forks: [] }]);
  await stop();
  expect(saved().sort()).toEqual(['a', 'b', 'fa', 'fb']);
});

test('who follows a merge hears of its end, though a fork of another image has the name by then', async () => {
  await client.fork(image('a.img', 1), 'fa');
  await client.fork(image('b.img', 2), 'fb');
  let progress = await client.merge('fb');
  while (progress.state === 'merging') progress = await client.mergeProgress('fb', { since: progress.version });
  await client.fork(path('a.img'), 'fb');
  expect(await client.mergeProgress('fb')).toMatchObject({ state: 'done', image: path('b.img') });
  await expect(client.mergeProgress('fa')).rejects.toMatchObject({ code: 'NOT_MERGING' });
});

describe('names and numbers', () => {
  test('are unique over all threads', async () => {
    await client.fork(image('a.img', 1), 'fa');
    await client.fork(image('b.img', 2), 'fb');
    await expect(client.fork(path('b.img'), 'fa')).rejects.toMatchObject({ code: 'NAME_IN_USE' });
    await expect(client.create('fb')).rejects.toMatchObject({ code: 'NAME_IN_USE' });
    await expect(client.rename({ name: 'fa' }, 'fb')).rejects.toMatchObject({ code: 'NAME_IN_USE' });
    await client.create('x', { uuid: 'one' });
    await expect(client.create('y', { uuid: 'one' })).rejects.toMatchObject({ code: 'UUID_IN_USE' });
    await expect(client.create('y', { minor: 3 })).rejects.toMatchObject({ code: 'MINOR_IN_USE' });
    expect((await client.list()).map(({ minor }) => minor).sort()).toEqual([0, 1, 2, 3, 4]);
    await client.rename({ name: 'fb' }, 'renamed');
    expect(await client.info({ minor: 2, major: (await client.info({ name: 'fa' })).major })).toMatchObject({
      name: 'renamed',
    });
    await client.create('fb');
  });

  test('that are in use move nothing', async () => {
    await client.fork(image('a.img', 1), 'fa');
    await client.fork(image('b.img', 2), 'fb');
    await expect(client.fork(path('b.img'), 'fa')).rejects.toMatchObject({
      code: 'NAME_IN_USE',
      hint: expect.stringContaining('dmkit drop fa'),
    });
    await expect(client.create('fa', { table: [line('fb 0')] })).rejects.toMatchObject({ code: 'NAME_IN_USE' });
    expect([...calls(0, 'leave'), ...calls(0, 'join')]).toEqual([]);
  });

  test('that no fork can have are refused as such', async () => {
    await expect(client.fork(image('a.img', 1), '../fa')).rejects.toMatchObject({
      message: expect.stringContaining('Cannot name a device'),
    });
  });

  test('of a device that is gone are free', async () => {
    await client.fork(image('a.img', 1), 'fa');
    await client.fork(image('b.img', 2), 'fb');
    await client.drop('fb');
    expect(await client.create('fb', { minor: 2 })).toMatchObject({ name: 'fb', minor: 2 });
  });

  test('an origin gets another name where its own is taken on another thread', async () => {
    mkdirSync(path('other'));
    await client.fork(image('a.img', 1), 'fa');
    expect(await client.fork(image('other/a.img', 2), 'fb')).toMatchObject({ origin: 'a-origin' });
  });
});

describe('a table', () => {
  beforeEach(async () => {
    await client.fork(image('a.img', 1), 'fa');
    await client.fork(image('b.img', 2), 'fb');
  });

  test('over a fork is on the thread of the fork', async () => {
    await client.create('x', { table: [line('fb 0')] });
    await client.create('y', { table: [line('/dev/mapper/fb 0')] });
    expect(calls(0, 'create')).toEqual(['create x', 'create y']);
    expect(await read('x')).toBe(2);
    expect((await client.info({ name: 'fb' })).usedBy).toEqual(['x', 'y']);
  });

  test('for a device that has none takes it to the thread of the fork', async () => {
    const { minor, major } = await client.create('x', { uuid: 'u' });
    await client.load({ minor, major }, [line('fb 0')]);
    await client.resume({ name: 'x' });
    expect(calls(0, 'join')).toHaveLength(1);
    expect(await client.info({ uuid: 'u' })).toMatchObject({ name: 'x', minor, deps: [{ mapped: 'fb' }] });
    expect(await read('x')).toBe(2);
  });

  test('over forks of two threads brings them together, and at no moment is one of them not saved', async () => {
    await write('fa', 5);
    await write('fb', 6);
    expected = ['a', 'b', 'fa', 'fb'];
    await client.create('x', { table: [line('fb 0'), line('fa 0', SECTORS)] });
    expect(missing).toEqual(new Set());
    expect(saved().sort()).toEqual(['a', 'b', 'fa', 'fb', 'x']);
    expect([await read('x'), await read('x', SIZE), await read('fb'), await read('b')]).toEqual([6, 5, 6, 2]);
    // With its records: the file goes with the fork.
    await client.remove({ name: 'x' });
    expect(await client.drop('fb')).toMatchObject({ deleted: path('fb.cow'), originRemoved: 'b' });
  });

  test('over forks of two threads takes their records along', async () => {
    await client.create('x', { table: [line('fb 0'), line('fa 0', SECTORS)] });
    await client.fork(path('b.img'), 'fb2');
    await client.fork(path('a.img'), 'fa2');
    expect(calls(0, 'fork')).toHaveLength(1);
    const { forks } = JSON.parse(readFileSync(path('state', 'state.json'), 'utf8')).state;
    expect(new Set(forks.map(({ uuid }: { uuid: string }) => uuid)).size).toBe(forks.length);
    expect(await client.drop('fb2')).toMatchObject({ deleted: path('fb2.cow') });
  });

  test('takes to its own thread what is not open, when it is open itself', async () => {
    await client.create('x', { table: [line(`${image('c.img', 3)} 0`)] });
    const disk = await open('x');
    await client.load({ name: 'x' }, [line('fb 0')]);
    await client.resume({ name: 'x' });
    const buffer = new Uint8Array(512);
    await disk.read(bytes(0), buffer, 0, 512);
    expect(buffer[0]).toBe(2);
    await disk.close();
    expect(calls(0, 'leave')).toHaveLength(1);
  });

  test('over forks of two threads waits for calls about them that are under way', async () => {
    for (let round = 0; round < 2; round++) {
      const table = [line('fb 0'), line('fa 0', SECTORS)];
      const outcomes = await Promise.allSettled([
        client.fork(path('a.img'), 'fa2'),
        client.fork(path('b.img'), 'fb2'),
        client.suspend({ name: 'b' }).then(() => client.resume({ name: 'b' })),
        client.create('x', { table }),
        client.rename({ name: 'fb2' }, 'renamed').catch(() => {}),
        client.volumes(),
        client.fork(image('c.img', 3), 'fc'),
      ]);
      expect(outcomes.filter(({ status }) => status === 'rejected')).toEqual([]);
      const volumes = await client.volumes();
      expect(volumes.filter(({ type, note }) => type === '' || note)).toEqual([]);
      expect([await read('x'), await read('x', SIZE), await read('fa2'), await read('fc')]).toEqual([2, 1, 1, 3]);
      await stop();
      await start();
      expect((await client.volumes()).map(({ name }) => name)).toEqual(volumes.map(({ name }) => name));
      await client.remove({ name: 'x' });
      for (const { name, type } of volumes)
        if (type === 'snapshot' && name !== 'fa' && name !== 'fb') await client.drop(name);
      // Apart again.
      await stop();
      await start();
    }
  });

  test('is refused when one of them is open, and both go on', async () => {
    const disks = [await open('fa'), await open('fb')];
    const table = [line('fb 0'), line('fa 0', SECTORS)];
    await expect(client.create('x', { table })).rejects.toMatchObject({
      code: 'ENGINES_SHARED',
      errno: 'EBUSY',
      message: expect.stringContaining('is in use'),
    });
    for (const disk of disks) {
      await disk.write(bytes(0), new Uint8Array(512), 0, 512);
      await disk.close();
    }
    await client.create('x', { table });
  });

  test('is refused when what it would have to take along is in memory only', async () => {
    await client.fork(path('b.img'), 'transient', { transient: true });
    await write('transient', 8);
    const disk = await open('fa');
    await expect(client.create('x', { table: [line('fb 0'), line('fa 0', SECTORS)] })).rejects.toMatchObject({
      code: 'ENGINES_SHARED',
    });
    await disk.close();
    // The other can go there.
    await client.create('x', { table: [line('fb 0'), line('fa 0', SECTORS)] });
    expect(await read('transient')).toBe(8);
  });

  test('does not move what could not be opened again', async () => {
    await write('fb', 6);
    rmSync(path('fb.cow'));
    await client.create('x', { table: [line('fb 0'), line('fa 0', SECTORS)] });
    // The other has moved.
    expect([await read('x'), await read('x', SIZE)]).toEqual([6, 1]);
    expect(calls(0, 'join')).toHaveLength(1);
  });

  test('over what cannot be opened again after a move is refused, and tells why; a restart brings it back', async () => {
    await write('fb', 6);
    const { next } = await client.events();
    onCall = (call) => {
      if (call === 'leave') renameSync(path('fb.cow'), path('away'));
    };
    const creating = client.create('x', { table: [line('fb 0'), line('fa 0', SECTORS)] });
    await expect(creating).rejects.toMatchObject({
      code: 'ENGINES_LOST',
      errno: 'EIO',
      message: expect.stringContaining(`fb: table not loaded after it moved to another thread`),
    });
    const { events } = await client.events(next);
    expect(events.map(({ device, event }) => [device, event])).toEqual([['fb', 'change']]);
    expect(log).toContainEqual(expect.stringContaining('fb: table not loaded after it moved'));
    const lost = (await client.volumes()).filter(({ note }) => note !== undefined);
    expect(lost.map(({ name }) => name)).toEqual(['fb']);
    expect(await read('b')).toBe(2);
    await client.suspend({ name: 'fa' });
    renameSync(path('away'), path('fb.cow'));
    await stop();
    await start();
    expect(await read('fb')).toBe(6);
    expect(await client.drop('fb')).toMatchObject({ deleted: path('fb.cow') });
  });

  test('of a device that has one may lead to another thread', async () => {
    await client.create('x', { table: [line(`${image('c.img', 3)} 0`)] });
    await client.load({ name: 'x' }, [line('fb 0')]);
    await client.resume({ name: 'x' });
    expect(await read('x')).toBe(2);
  });
});

test('events of all threads come in one order, from the moment on when somebody watches', async () => {
  await client.fork(image('a.img', 1), 'fa');
  await client.fork(image('b.img', 2), 'fb', { cowSize: 1 << 18 });
  const { next } = await client.events();
  const waiting = client.events(next);
  await client.suspend({ name: 'fb' });
  await client.resume({ name: 'fa' });
  await waiting;
  const { events } = await client.events(next);
  expect(events.map(({ device, event }) => `${device} ${event}`)).toEqual(['fb suspend', 'fa resume']);
});

test('a wait on another thread ends with who waits', async () => {
  await client.fork(image('a.img', 1), 'fa');
  await client.fork(image('b.img', 2), 'fb');
  const abort = new AbortController();
  const { eventNumber } = await client.info({ name: 'fb' });
  const waiting = client.wait({ name: 'fb' }, eventNumber, abort.signal);
  abort.abort();
  await expect(waiting).rejects.toMatchObject({ code: 'INTERRUPTED' });
  await client.drop('fb');
});

test('who has a device on another thread open is told', async () => {
  await client.fork(image('a.img', 1), 'fa');
  await client.fork(image('b.img', 2), 'fb');
  const disk = await open('fb');
  await expect(client.drop('fb')).rejects.toMatchObject({ hint: expect.stringContaining('it has 1 NBD connection') });
  await expect(client.merge('fb')).rejects.toMatchObject({ hint: expect.stringContaining('1 NBD connection') });
  await disk.close();
});

test('a restart divides what there was, and everything is there', async () => {
  await client.fork(image('a.img', 1), 'fa');
  await client.fork(image('b.img', 2), 'fb');
  await client.create('over', { table: [line('fb 0')] });
  await client.create('plain', { table: [line(`${image('c.img', 3)} 0`)] });
  await write('over', 6);
  const before = await client.list();
  await stop();
  await start();
  expect(sent).toHaveLength(2);
  expect(await client.list()).toEqual(
    before.map((info) =>
      expect.objectContaining({ name: info.name, minor: info.minor, uuid: info.uuid, size: info.size }),
    ),
  );
  expect([await read('fb'), await read('over'), await read('fa'), await read('plain')]).toEqual([6, 6, 1, 3]);
  await client.remove({ name: 'over' });
  expect(await client.drop('fb')).toMatchObject({ deleted: path('fb.cow'), originRemoved: 'b' });
  await stop();
  // As one that has a single thread.
  await start(0);
  expect(sent).toHaveLength(0);
  expect(await read('fa')).toBe(1);
});
