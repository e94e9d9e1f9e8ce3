/** Requests, tables and failures that meet: what must hold whoever comes first. */
import { afterEach, describe, expect, test, vi } from 'vitest';
import {
  areaOf,
  closeAfterwards,
  headerOf,
  old,
  originData,
  Rig,
  rigWith,
  snapshotData,
  turns,
  watch,
} from '../../support/rig.ts';

const EIO = { errno: 'EIO' };
const dataWrites = (operation: string, sector: number) => operation === 'write' && sector >= 16;

describe('writes that meet on one chunk', () => {
  test('two of parts through the snapshot: both are there, in one exception', async () => {
    const { rig, origin, cow } = await rigWith({ C: 8 });
    origin.hold = (operation) => operation === 'read';
    const writes = [rig.write('snap', 80, snapshotData(80, 2)), rig.write('snap', 85, snapshotData(85, 2))];
    await origin.held(1);
    origin.go();
    await Promise.all(writes);
    await rig.flush('snap');
    const expected = Buffer.concat([snapshotData(80, 2), old(82, 3), snapshotData(85, 2), old(87, 1)]);
    expect(await rig.read('snap', 80, 8)).toEqual(expected);
    expect(areaOf(rig, cow, 8)).toEqual([[10, 2]]);
  });

  test('the snapshot first, the origin second: the origin waits, and copies nothing more', async () => {
    const { rig, origin, cow } = await rigWith({ C: 8 });
    cow.hold = dataWrites;
    const first = rig.write('snap', 81, snapshotData(81, 1));
    await cow.held(1);
    const second = rig.write('origin', 80, originData(80, 8));
    await turns();
    expect(origin.takeLog('R')).toEqual([]);
    cow.go();
    await Promise.all([first, second]);
    expect(await rig.read('snap', 80, 8)).toEqual(Buffer.concat([old(80, 1), snapshotData(81, 1), old(82, 6)]));
    expect(await rig.read('origin', 80, 8)).toEqual(originData(80, 8));
    expect(areaOf(rig, cow, 8)).toEqual([[10, 2]]);
  });

  test('the origin first, the snapshot second: the snapshot write lies over the copy', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    cow.hold = dataWrites;
    const first = rig.write('origin', 80, originData(80, 8));
    await cow.held(1);
    const second = rig.write('snap', 80, snapshotData(80, 4));
    cow.go();
    await Promise.all([first, second]);
    expect(await rig.read('snap', 80, 8)).toEqual(Buffer.concat([snapshotData(80, 4), old(84, 4)]));
    expect(await rig.read('origin', 80, 8)).toEqual(originData(80, 8));
    expect(areaOf(rig, cow, 8)).toEqual([[10, 2]]);
  });

  test('a large one finds some of its chunks mapped, some pending, some free, over three snapshots', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    for (const n of [2, 3]) {
      rig.disk(n, 1024).later = true;
      await rig.create(`s${n}`, `0 4096 snapshot /dev/ram0 /dev/ram${n} P ${n * 8 - 8 * (n % 2)}`);
    }
    await rig.write('snap', 88, snapshotData(88, 8));
    cow.hold = (operation, sector) => operation === 'write' && sector >= 24;
    const pending = rig.write('snap', 104, snapshotData(104, 8));
    await cow.held(1);
    const written = rig.write('origin', 77, originData(77, 64));
    cow.go();
    await Promise.all([pending, written]);
    const own = Buffer.concat([old(72, 16), snapshotData(88, 8), old(96, 8), snapshotData(104, 8), old(112, 32)]);
    expect(await rig.read('snap', 72, 72)).toEqual(own);
    for (const n of [2, 3]) expect(await rig.read(`s${n}`, 64, 96)).toEqual(old(64, 96));
    expect(await rig.read('origin', 77, 64)).toEqual(originData(77, 64));
  });

  test('a snapshot write that fails for lack of space leaves the chunk to the one that waits for it', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    cow.hold = dataWrites;
    cow.fault = (operation) => (operation === 'write' ? 'ENOSPC' : undefined);
    const first = rig.write('snap', 80, snapshotData(80, 8));
    first.catch(() => {});
    await cow.held(1);
    const second = rig.write('snap', 82, snapshotData(82, 1));
    cow.go();
    await expect(first).rejects.toMatchObject({ errno: 'ENOSPC' });
    cow.fault = undefined;
    await second.catch((error) => expect(error).toMatchObject({ errno: 'ENOSPC' }));
    await rig.write('snap', 82, snapshotData(82, 1));
    expect(await rig.read('snap', 80, 8)).toEqual(Buffer.concat([old(80, 2), snapshotData(82, 1), old(83, 5)]));
    expect(await rig.status('snap')).toBe('24/1024 16');
  });
});

test('a flush is answered although a write beside it fails for lack of space', async () => {
  const { rig, cow } = await rigWith({ C: 8 });
  await rig.write('snap', 0, snapshotData(0, 8));
  cow.hold = (operation, sector) => operation === 'write' && sector >= 24;
  cow.fault = (operation, sector) => (operation === 'write' && sector >= 24 ? 'ENOSPC' : undefined);
  const failing = rig.write('snap', 80, snapshotData(80, 8));
  failing.catch(() => {});
  await cow.held(1);
  const flushed = rig.flush('snap');
  await turns();
  cow.go();
  await flushed;
  await expect(failing).rejects.toMatchObject({ errno: 'ENOSPC' });
  expect(areaOf(rig, cow, 8)).toEqual([[0, 2]]);
});

describe('the event of an invalid snapshot', () => {
  test.each([true, false])('is raised once, however many writes find it out (later: %s)', async (later) => {
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 0, snapshotData(0, 8));
    cow.later = later;
    cow.fault = (operation) => (operation === 'write' || operation === 'flush' ? 'EIO' : undefined);
    const answers = await Promise.allSettled([
      rig.flush('snap'),
      rig.write('snap', 80, snapshotData(80, 8)),
      rig.write('snap', 161, snapshotData(161, 1)),
      rig.write('origin', 240, originData(240, 1)),
      rig.write('origin', 320, originData(320, 64)),
      rig.write('origin', 0, originData(0, 8)),
    ]);
    expect(answers.map(({ status }) => status)).toEqual([...Array(3).fill('rejected'), ...Array(3).fill('fulfilled')]);
    expect(await rig.event('snap')).toBe(1);
    expect(await rig.status('snap')).toBe('Invalid');
  });
});

describe('a request cut into parts of which one throws and another is under way', () => {
  test('a read ends when all have ended, with the error', async () => {
    const { rig, origin, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 88, snapshotData(88, 8));
    origin.hold = (operation) => operation === 'read';
    cow.fault = (operation) => (operation === 'read' ? 'EIO' : undefined);
    const reading = rig.read('snap', 80, 24);
    const state = watch(reading);
    await origin.held(1);
    await turns();
    expect(state.done).toBe(false);
    origin.go();
    await expect(reading).rejects.toMatchObject(EIO);
  });

  test('a write too', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 80, snapshotData(80, 8));
    cow.hold = (operation, sector) => operation === 'write' && sector === 16;
    cow.fault = (operation, sector) => (operation === 'write' && sector > 16 ? 'EIO' : undefined);
    const writing = rig.write('snap', 80, snapshotData(80, 16));
    const state = watch(writing);
    await cow.held(1);
    await turns();
    expect(state.done).toBe(false);
    cow.go();
    await expect(writing).rejects.toMatchObject(EIO);
    expect(await rig.status('snap')).toBe('Invalid');
  });
});

describe('a snapshot that comes while the origin is written', () => {
  test('waits for the writes that nobody copied, so that it never changes afterwards', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    rig.disk(2, 1024);
    origin.hold = (operation) => operation === 'write';
    const writing = rig.write('origin', 80, originData(80, 8));
    await origin.held(1);
    const creating = rig.create('late', '0 4096 snapshot /dev/ram0 /dev/ram2 P 8');
    const state = watch(creating);
    await turns();
    expect(state.done).toBe(false);
    origin.go();
    await Promise.all([writing, creating]);
    expect(await rig.read('late', 80, 8)).toEqual(originData(80, 8));
    expect(await rig.status('late')).toBe('16/1024 16');
  });

  test('comes to be although origin writes overlap without a pause', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    rig.disk(2, 1024);
    await rig.touch([10], 8);
    origin.hold = (operation) => operation === 'write';
    let going = true;
    // Two writers of which one is always on its way: the next begins before the last one ends.
    const writes = [rig.write('origin', 80, originData(80, 1))];
    await origin.held(1);
    const stream = (async () => {
      for (let i = 0; going && i < 200; i++) {
        writes.push(rig.write('origin', 80, originData(80, 1)));
        await origin.held(2);
        origin.go(0);
        await turns(2);
      }
      return going;
    })();
    await rig.create('late', '0 4096 snapshot /dev/ram0 /dev/ram2 P 8');
    going = false;
    origin.go();
    expect(await stream).toBe(false);
    await Promise.all(writes);
  });

  test('two at once both wait', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    origin.hold = (operation) => operation === 'write';
    const writing = rig.write('origin', 80, originData(80, 8));
    await origin.held(1);
    const states = [2, 3].map((n) => {
      rig.disk(n, 1024);
      const created = rig.create(`s${n}`, `0 4096 snapshot /dev/ram0 /dev/ram${n} P 8`);
      return { created, state: watch(created) };
    });
    await turns();
    expect(states.map(({ state }) => state.done)).toEqual([false, false]);
    origin.go();
    await Promise.all([writing, ...states.map(({ created }) => created)]);
  });
});

describe('a revert', () => {
  test('while a copy for an origin write is under way: the write waits, and is copied out anew', async () => {
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 0, snapshotData(0, 8));
    cow.hold = dataWrites;
    const writing = rig.write('origin', 80, originData(80, 8));
    await cow.held(1);
    const reverting = rig.mapper.revert({ name: 'snap' });
    await turns();
    cow.go();
    await Promise.all([writing, reverting]);
    expect(await rig.read('snap', 0, 8)).toEqual(old(0, 8));
    const image = await rig.read('snap', 80, 8);
    expect([old(80, 8), originData(80, 8)].some((content) => content.equals(image))).toBe(true);
    await rig.write('origin', 80, snapshotData(80, 8));
    expect(await rig.read('snap', 80, 8)).toEqual(image);
  });

  test('while an origin write is on its way to the disk: it ends after it, and stays as it is then', async () => {
    const { rig, origin } = await rigWith({ C: 8 });
    await rig.write('snap', 80, snapshotData(80, 8));
    await rig.flush('snap');
    origin.hold = (operation) => operation === 'write';
    const writing = rig.write('origin', 80, originData(80, 8));
    await origin.held(1);
    const reverting = rig.mapper.revert({ name: 'snap' });
    const state = watch(reverting);
    await turns();
    expect(state.done).toBe(false);
    origin.go();
    await Promise.all([writing, reverting]);
    expect(await rig.read('snap', 80, 8)).toEqual(originData(80, 8));
    expect(await rig.status('snap')).toBe('16/1024 16');
  });

  test.each([true, false])(
    'that fails costs the snapshot, not an origin write beside it (later: %s)',
    async (later) => {
      const { rig, cow } = await rigWith({ C: 8 });
      await rig.write('snap', 80, snapshotData(80, 8));
      await rig.flush('snap');
      cow.later = later;
      cow.hold = (operation, sector) => operation === 'write' && sector === 0;
      cow.fault = (operation, sector) => (operation === 'write' && sector === 8 ? 'EIO' : undefined);
      const reverting = rig.mapper.revert({ name: 'snap' });
      reverting.catch(() => {});
      await cow.held(1);
      const writing = rig.write('origin', 160, originData(160, 8));
      cow.go();
      await expect(reverting).rejects.toMatchObject(EIO);
      await writing;
      expect(await rig.read('origin', 160, 8)).toEqual(originData(160, 8));
      expect(await rig.status('snap')).toBe('Invalid');
      expect(headerOf(rig, cow)[1]).toBe(0);
      expect(await rig.event('snap')).toBe(1);
      expect((await rig.mapper.info({ name: 'snap' })).suspended).toBe(false);
      // And another attempt makes it good.
      cow.fault = undefined;
      await rig.mapper.revert({ name: 'snap' });
      expect(await rig.status('snap')).toBe('16/1024 16');
    },
  );

  test('while the snapshot becomes invalid: what it was before does not come back', async () => {
    const { rig, cow, line } = await rigWith({ C: 8, W: 24 });
    await rig.write('snap', 0, snapshotData(0, 8));
    cow.hold = (operation, sector) => operation === 'write' && sector === 0;
    await expect(rig.write('snap', 8, snapshotData(8, 8))).rejects.toMatchObject(EIO);
    await cow.held(1);
    cow.hold = undefined;
    const reverting = rig.mapper.revert({ name: 'snap' });
    await turns();
    cow.go();
    await reverting;
    expect(await rig.status('snap')).toBe('16/24 16');
    await rig.recreate('snap', line);
    expect(await rig.status('snap')).toBe('16/24 16');
  });
});

describe('a removal', () => {
  test('with copies under way ends them; the origin writes go on', async () => {
    const { rig, cow, line } = await rigWith({ C: 8 });
    cow.hold = dataWrites;
    const writes = [10, 20, 30].map((chunk) => rig.write('origin', chunk * 8, originData(chunk * 8, 1)));
    await cow.held(3);
    const removing = rig.remove('snap');
    const state = watch(removing);
    await turns();
    expect(state.done).toBe(false);
    cow.go();
    await Promise.all([removing, ...writes]);
    cow.takeLog();
    await rig.touch([40], 8);
    expect(cow.takeLog()).toEqual([]);
    await rig.create('snap', line);
    for (const chunk of [10, 20, 30]) expect(await rig.read('origin', chunk * 8, 1)).toEqual(originData(chunk * 8, 1));
  });

  test('keeps the COW device to itself until its last commit is on the disk', async () => {
    const { rig, cow, line } = await rigWith({ C: 8 });
    await rig.write('snap', 80, snapshotData(80, 8));
    cow.hold = (operation, sector) => operation === 'write' && sector === 8;
    const removing = rig.remove('snap');
    await cow.held(1);
    await rig.mapper.create('next');
    cow.takeLog();
    // To take over from a table that goes: it reads nothing, gets nothing, and harms nothing.
    await rig.load('next', line);
    expect(cow.takeLog()).toEqual([]);
    cow.go();
    await removing;
    await rig.resume('next');
    expect(await rig.status('next')).toBe('Invalid');
    await rig.recreate('next', line);
    expect(await rig.read('next', 80, 8)).toEqual(snapshotData(80, 8));
  });
});

describe('with a clock that stands', () => {
  afterEach(() => void vi.useRealTimers());
  const stopClock = () => vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });

  test('a write is durable a second later, without a flush', async () => {
    stopClock();
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 80, snapshotData(80, 8));
    await rig.write('snap', 160, snapshotData(160, 8));
    await vi.advanceTimersByTimeAsync(999);
    expect(areaOf(rig, cow, 8)).toEqual([]);
    await vi.advanceTimersByTimeAsync(1);
    await turns();
    expect(areaOf(rig, cow, 8)).toEqual([
      [10, 2],
      [20, 3],
    ]);
    expect(vi.getTimerCount()).toBe(0);
  });

  test('a commit that finds no space is tried again a second later', async () => {
    stopClock();
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 80, snapshotData(80, 8));
    cow.fault = (operation) => (operation === 'write' ? 'ENOSPC' : undefined);
    await vi.advanceTimersByTimeAsync(1000);
    await turns();
    expect(await rig.status('snap')).toBe('24/1024 16');
    cow.fault = undefined;
    await vi.advanceTimersByTimeAsync(1000);
    await turns();
    expect(areaOf(rig, cow, 8)).toEqual([[10, 2]]);
  });

  test('a commit that fails then costs the snapshot, with one event', async () => {
    stopClock();
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 80, snapshotData(80, 8));
    cow.fault = (operation) => (operation === 'write' ? 'EIO' : undefined);
    await vi.advanceTimersByTimeAsync(5000);
    await turns();
    expect(await rig.status('snap')).toBe('Invalid');
    expect(await rig.event('snap')).toBe(1);
    expect(vi.getTimerCount()).toBe(0);
  });

  test.each(['suspend', 'remove'] as const)('%s leaves no timer behind, and nothing to commit', async (how) => {
    stopClock();
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 80, snapshotData(80, 8));
    expect(vi.getTimerCount()).toBe(1);
    await rig[how]('snap');
    expect(vi.getTimerCount()).toBe(0);
    expect(areaOf(rig, cow, 8)).toEqual([[10, 2]]);
  });

  test('a removal that finds no space leaves none either', async () => {
    stopClock();
    const { rig, cow } = await rigWith({ C: 8 });
    await rig.write('snap', 80, snapshotData(80, 8));
    cow.fault = (operation) => (operation === 'write' ? 'ENOSPC' : undefined);
    await rig.remove('snap').catch((error) => expect(error).toMatchObject({ errno: 'ENOSPC' }));
    expect(vi.getTimerCount()).toBe(0);
    cow.takeLog();
    await vi.advanceTimersByTimeAsync(5000);
    expect(cow.takeLog()).toEqual([]);
  });

  test('a stream of writes without a flush is committed on the way', async () => {
    stopClock();
    const rig = new Rig();
    rig.disk(0, 40_000);
    const cow = rig.disk(1, 45_000);
    closeAfterwards(rig);
    await rig.create('snap', '0 40000 snapshot /dev/ram0 /dev/ram1 P 1');
    const sector = snapshotData(0, 1);
    for (let chunk = 0; chunk < 40_000; chunk++) await rig.write('snap', chunk, sector);
    await turns();
    // Area 600 would hold the exceptions from 19200 on.
    expect(areaOf(rig, cow, 1, 600).length).toBe(32);
  });
});

describe('block and chunk sizes at the ends of their range', () => {
  test('disks of 4096-byte blocks', async () => {
    const rig = new Rig();
    const origin = rig.disk(0, 4096, { blockSize: 4096, content: old(0, 4096) });
    rig.disk(1, 1024, { blockSize: 4096 });
    closeAfterwards(rig);
    await rig.create('origin', '0 4096 snapshot-origin /dev/ram0');
    await rig.create('snap', '0 4096 snapshot /dev/ram0 /dev/ram1 P 16');
    await rig.write('origin', 80, originData(80, 8));
    await rig.write('snap', 104, snapshotData(104, 8));
    await rig.flush('snap');
    expect(origin.takeLog('F').every((entry) => / \d*[02468]\+(8|16)$/.test(entry))).toBe(true);
    const expected = Buffer.concat([old(80, 24), snapshotData(104, 8), old(112, 16)]);
    expect(await rig.read('snap', 80, 48)).toEqual(expected);
    expect(rig.mapper.device({ name: 'snap' }).blockSize).toBe(4096);
  });

  test('chunks of 8 MiB, of which an origin write copies one', async () => {
    const C = 16384;
    const rig = new Rig();
    rig.disk(0, 2 * C + 5, { content: old(0, 2 * C + 5) });
    rig.disk(1, 6 * C);
    closeAfterwards(rig);
    const line = `0 ${2 * C + 5} snapshot /dev/ram0 /dev/ram1 P ${C}`;
    await rig.create('origin', `0 ${2 * C + 5} snapshot-origin /dev/ram0`);
    await rig.create('snap', line);
    await rig.write('origin', C + 7, originData(C + 7, 2));
    await rig.write('snap', 2 * C + 3, snapshotData(0, 2));
    await rig.recreate('snap', line);
    expect(await rig.status('snap')).toBe(`${4 * C}/${6 * C} ${2 * C}`);
    expect(await rig.read('snap', C, C)).toEqual(old(C, C));
    expect(await rig.read('snap', 2 * C, 5)).toEqual(Buffer.concat([old(2 * C, 3), snapshotData(0, 2)]));
  });
});
