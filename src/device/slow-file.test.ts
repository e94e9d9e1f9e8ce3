/**
 * What a file on a slow or hanging disk does to the others: the calls that would wait are looked at, not the time they
 * take.
 */
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { system } from '../lib/system.ts';
import { bytes } from '../units.ts';
import { FileDevice } from './file.ts';
import { Stalls } from './stalls.ts';
import { ThreadShare, threads } from './thread-share.ts';

const FUSE_MAGIC = 0x65735546;
const PAGE = system()!.pageSize;
const PAGES = 256;

let directory: string;
let slow: FileDevice;
let fast: FileDevice;
/** Calls on threads that the slow disk has not answered. */
let hanging: (() => void)[];

/** The calls of this kind hang when they are for the slow file. */
function hang(name: 'read' | 'write' | 'fdatasync' | 'fstat' | 'close'): void {
  const real = fs[name] as (...args: unknown[]) => void;
  vi.spyOn(fs, name).mockImplementation(((...args: unknown[]) => {
    if (args[0] === fdOf(slow)) hanging.push(() => real(...args));
    else real(...args);
  }) as never);
}

const fdOf = (device: FileDevice) => (device as unknown as { fd: number }).fd;

const turns = async () => {
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
};

/** One question for the size hangs; those of the opening may have been on their way still. */
async function asked(): Promise<void> {
  while (hanging.length === 0) {
    void slow.size;
    await turns();
  }
}

/** The slow disk works again. */
async function answerAll(reads: readonly unknown[]): Promise<void> {
  vi.mocked(fs.read).mockRestore();
  for (const answer of hanging.splice(0)) answer();
  await Promise.all(reads);
}

async function open(name: string): Promise<FileDevice> {
  const path = join(directory, name);
  fs.writeFileSync(path, Buffer.alloc(PAGES * PAGE, name));
  return FileDevice.open(path, 'rw');
}

function read(device: FileDevice, page: number, length = PAGE): void | Promise<void> {
  return device.read(bytes(page * PAGE), Buffer.alloc(length), 0, length);
}

/** The page cache has nothing. */
function cold() {
  vi.spyOn(system()!, 'isCached').mockReturnValue(false);
  return vi.spyOn(system()!, 'readCached').mockReturnValue(-1);
}

beforeEach(async () => {
  directory = fs.mkdtempSync(join(tmpdir(), 'dmkit-slow-'));
  hanging = [];
  threads.resize(64);
  slow = await open('slow');
  fast = await open('fast');
});

afterEach(async () => {
  vi.restoreAllMocks();
  while (hanging.length > 0) {
    for (const answer of hanging.splice(0)) answer();
    await turns();
  }
  await slow.close();
  await fast.close();
  fs.rmSync(directory, { recursive: true });
});

describe('beside a disk that hangs', () => {
  test('cold reads of another get their threads, and those of the hanging one stand in its own line', async () => {
    cold();
    hang('read');
    const reads = Array.from({ length: 200 }, (_, page) => read(slow, page));
    expect(hanging).toHaveLength(16);
    for (let page = 0; page < 100; page++) await read(fast, page);
    await Promise.all(Array.from({ length: 100 }, (_, page) => read(fast, page)));
    // Each answer lets one more go on.
    hanging.shift()!();
    await reads[0];
    await turns();
    expect(hanging).toHaveLength(16);
    await answerAll(reads);
  });

  test('writes, flushes, zeroes, discards and copies of another go on', async () => {
    cold();
    hang('read');
    const reads = Array.from({ length: 200 }, (_, page) => read(slow, page));
    const data = Buffer.alloc(2 * 2 ** 20);
    await fast.write(bytes(0), data, 0, PAGE);
    await fast.write(bytes(0), data, 0, PAGES * PAGE);
    await fast.flush();
    await fast.writeZeroes(bytes(0), PAGE, true);
    await fast.discard(bytes(0), PAGE);
    const third = await open('third');
    expect(await third.copyFrom(fast, bytes(0), bytes(0), PAGES * PAGE)).toBe(true);
    await third.close();
    await answerAll(reads);
  });

  test('a flush of its own comes before the reads that wait', async () => {
    cold();
    hang('read');
    const order: string[] = [];
    const reads = Array.from({ length: 17 }, (_, page) =>
      (read(slow, page) as Promise<void>).then(() => order.push('r')),
    );
    const flush = (slow.flush() as Promise<void>).then(() => order.push('flush'));
    hanging.shift()!();
    await flush;
    expect(order).toEqual(['r', 'flush']);
    await answerAll(reads);
  });
});

describe('a read', () => {
  test('that misses the page cache is not tried there, as that would make its request here', async () => {
    const tried = cold();
    for (let page = 0; page < 10; page++) await read(slow, page);
    expect(tried).not.toHaveBeenCalled();
  });

  test('that misses is tried all the same while there are few threads, and few requests with the disk', async () => {
    threads.resize(4);
    const tried = cold();
    hang('read');
    const reads = Array.from({ length: 100 }, (_, page) => read(slow, page));
    expect(tried).toHaveBeenCalledTimes(32);
    expect(hanging).toHaveLength(2);
    await answerAll(reads);
  });

  test('is tried without asking when none has missed for long', async () => {
    const asked = vi.spyOn(system()!, 'isCached');
    const direct = (count: number) => {
      asked.mockClear();
      for (let i = 0; i < count; i++) expect(read(slow, i % PAGES)).toBeUndefined();
      return asked.mock.calls.length;
    };
    expect(direct(100)).toBe(64);
    expect(direct(100)).toBe(0);
    const tried = vi.spyOn(system()!, 'readCached').mockReturnValueOnce(-1);
    await read(slow, 0);
    expect(tried).toHaveBeenCalledTimes(1);
    expect(direct(100)).toBe(64);
  });

  test('is asked about as long as others of its disk have not come back', async () => {
    const asked = vi.spyOn(system()!, 'isCached').mockReturnValueOnce(false);
    hang('read');
    const waits = read(slow, 0);
    for (let i = 0; i < 1000; i++) expect(read(slow, i % PAGES)).toBeUndefined();
    expect(asked).toHaveBeenCalledTimes(1001);
    hanging.pop()!();
    await waits;
  });

  test('where the cache cannot be asked is tried until one has to wait for its thread', async () => {
    vi.spyOn(system()!, 'isCached').mockReturnValue(undefined);
    const tried = vi.spyOn(system()!, 'readCached').mockReturnValue(-1);
    hang('read');
    const reads = Array.from({ length: 100 }, (_, page) => read(slow, page));
    expect(tried).toHaveBeenCalledTimes(17);
    await answerAll(reads);
  });

  test('does not believe a cache that has nothing of what was just read, as overlay shows it', async () => {
    const asked = vi.spyOn(system()!, 'isCached').mockReturnValue(false);
    const other = await open('other');
    asked.mockClear();
    expect(read(other, 0)).toBeUndefined();
    expect(asked).not.toHaveBeenCalled();
    await other.close();
  });
});

describe('a write goes through a thread', () => {
  const data = Buffer.alloc(PAGE, 'new');
  const write = (at = 0, length = PAGE) => slow.write(bytes(at), data, 0, length);

  test('when it leaves a part of a page that would have to be read first', async () => {
    vi.spyOn(system()!, 'isCached').mockImplementation((_fd, at) => at >= PAGE);
    expect(write()).toBeUndefined();
    expect(write(PAGE + 512, 512)).toBeUndefined();
    await expectThread(() => write(512, PAGE - 512));
    await expectThread(() => write(PAGE - 512, 1024));
    vi.mocked(system()!.isCached).mockImplementation((_fd, at) => at < PAGE);
    await expectThread(() => write(PAGE - 512, 1024));
  });

  test('when the last ones were made to wait', async () => {
    expect(write()).toBeUndefined();
    const expected = vi.spyOn(Stalls.prototype, 'expected', 'get').mockReturnValue(true);
    await expectThread(write);
    expected.mockReturnValue(false);
    expect(write()).toBeUndefined();
  });

  test('when nothing comes back from the disk', async () => {
    vi.spyOn(ThreadShare.prototype, 'isStuck', 'get').mockReturnValue(true);
    await expectThread(write);
  });

  async function expectThread(work: () => void | Promise<void>): Promise<void> {
    const sync = vi.spyOn(fs, 'writeSync');
    const wait = work();
    expect(wait).toBeInstanceOf(Promise);
    await wait;
    expect(sync).not.toHaveBeenCalled();
    sync.mockRestore();
  }
});

describe('a file that another program or machine keeps', () => {
  beforeEach(async () => {
    await slow.close();
    vi.spyOn(fs.promises, 'statfs').mockResolvedValue({ type: FUSE_MAGIC } as never);
    slow = await open('slow');
    vi.mocked(fs.promises.statfs).mockRestore();
  });

  test('is never asked anything on this thread', async () => {
    const calls = ['writeSync', 'readSync', 'fstatSync', 'closeSync', 'statfsSync', 'openSync'] as const;
    const made = calls.map((name) => vi.spyOn(fs, name));
    const seek = vi.spyOn(system()!, 'seek');
    const data = Buffer.alloc(PAGE, 'x');
    await slow.write(bytes(0), data, 0, 512);
    await slow.write(bytes(0), data, 0, PAGE);
    const into = Buffer.alloc(PAGE);
    await slow.read(bytes(0), into, 0, PAGE);
    expect(into.equals(data)).toBe(true);
    await slow.flush();
    await slow.discard(bytes(PAGE), PAGE);
    expect(await slow.extents(bytes(0), 3 * PAGE)).toEqual([
      { length: PAGE, hole: false, zero: false },
      { length: PAGE, hole: true, zero: true },
      { length: PAGE, hole: false, zero: false },
    ]);
    expect(slow.size).toBe(PAGES * PAGE);
    await slow.close();
    expect(made.map((call) => call.mock.calls.length)).toEqual(calls.map(() => 0));
    expect(seek).not.toHaveBeenCalled();
    slow = await open('slow');
  });

  test('has the size that it had when last asked', async () => {
    const before = PAGES * PAGE;
    hang('fstat');
    await asked();
    fs.truncateSync(join(directory, 'slow'), 2 * before);
    expect([slow.size, slow.size, slow.size]).toEqual([before, before, before]);
    expect(hanging).toHaveLength(1);
    hanging.pop()!();
    while (slow.size === before) await turns();
    expect(slow.size).toBe(2 * before);
  });

  test('has the size that it was given, whatever an earlier question is answered with', async () => {
    hang('fstat');
    const real = vi.mocked(fs.fstat).getMockImplementation()!;
    vi.mocked(fs.fstat).mockImplementation(((fd: number, then: (error: null, stat: object) => void) =>
      fd === fdOf(slow)
        ? hanging.push(() => then(null, { size: PAGES * PAGE }))
        : (real as (...args: unknown[]) => void)(fd, then)) as never);
    await asked();
    slow.extend(bytes(2 * PAGES * PAGE));
    hanging.pop()!();
    await turns();
    expect(slow.size).toBe(2 * PAGES * PAGE);
  });
});
