import { describe, expect, test } from 'vitest';
import { FakeClock } from '../testing/fake-clock.ts';
import { ThreadPool, ThreadShare } from './thread-share.ts';

const clock = new FakeClock();
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

/** A disk that gives no thread back until it is told to. */
class Disk {
  readonly share: ThreadShare;
  /** The operations that have a thread, by number. */
  readonly on: number[] = [];
  #asked = 0;

  constructor(pool: ThreadPool) {
    this.share = new ThreadShare(pool);
  }

  ask(count = 1, first = false): this {
    for (let i = 0; i < count; i++) {
      const number = this.#asked++;
      const wait = this.share.enter(first);
      if (wait) void wait.then(() => this.on.push(number));
      else this.on.push(number);
    }
    return this;
  }

  /** The oldest one comes back. */
  async back(): Promise<void> {
    this.on.shift();
    this.share.leave();
    await turn();
  }
}

describe('the threads that disks share', () => {
  test('are never all given to disks that hang, however many these are', () => {
    const pool = new ThreadPool(64, clock);
    const hanging = Array.from({ length: 6 }, () => new Disk(pool).ask(1000));
    expect(hanging.map(({ share }) => share.running)).toEqual([16, 16, 12, 6, 3, 2]);
    expect(new Disk(pool).ask().share.running).toBe(1);
  });

  test.each([
    [1, [1, 0]],
    [2, [1, 0]],
    [4, [2, 1, 0]],
    [8, [4, 2, 1, 0]],
    [1000, [16, 16, 12, 6, 3, 2, 1, 0]],
  ])('of a pool of %i are taken in this way by one disk after the other: %j', (size, expected) => {
    const pool = new ThreadPool(size, clock);
    expect(expected.map(() => new Disk(pool).ask(50).share.running)).toEqual(expected);
  });

  test('are given to who waits: in the order of asking, the one that says so before the others', async () => {
    const disk = new Disk(new ThreadPool(4, clock)).ask(4);
    disk.ask(1, true);
    expect(disk.on).toEqual([0, 1]);
    await disk.back();
    expect(disk.on).toEqual([1, 4]);
    await disk.back();
    expect(disk.on).toEqual([4, 2]);
    await disk.back();
    await disk.back();
    expect(disk.on).toEqual([3]);
  });

  test('are given to disks in turn, and none is forgotten', async () => {
    const pool = new ThreadPool(4, clock);
    const [a, b, c, d] = Array.from({ length: 4 }, () => new Disk(pool));
    a.ask(3);
    b.ask(3);
    c.ask(3);
    d.ask(3);
    expect([a, b, c, d].map(({ share }) => share.running)).toEqual([2, 1, 0, 0]);
    await a.back();
    expect([a, b, c, d].map(({ share }) => share.running)).toEqual([1, 1, 1, 0]);
    await a.back();
    expect([a, b, c, d].map(({ share }) => share.running)).toEqual([1, 1, 1, 0]);
    await a.back();
    expect([a, b, c, d].map(({ share }) => share.running)).toEqual([0, 1, 1, 1]);
    for (let left = 0; left < 20; left++)
      for (const disk of [a, b, c, d]) if (disk.share.running > 0) await disk.back();
    expect([a, b, c, d].map(({ share }) => [share.running, share.isFull])).toEqual(Array(4).fill([0, false]));
    expect(a.ask(3).share.running).toBe(2);
  });

  test('may become fewer or more while they are in use', async () => {
    const pool = new ThreadPool(64, clock);
    const disk = new Disk(pool).ask(20);
    pool.resize(8);
    const other = new Disk(pool).ask();
    for (let i = 0; i < 16; i++) await disk.back();
    expect([disk.share.running, other.share.running]).toEqual([3, 1]);
    const third = new Disk(pool).ask(16);
    expect(third.share.running).toBe(2);
    pool.resize(64);
    expect(third.share.running).toBe(16);
  });

  test('are said to be stuck when none has come back for a while', async () => {
    const { share } = new Disk(new ThreadPool(8, clock));
    share.enter();
    clock.pass(100);
    share.enter();
    expect(share.isStuck).toBe(false);
    clock.pass(1);
    expect(share.isStuck).toBe(true);
    share.leave();
    expect(share.isStuck).toBe(false);
    clock.pass(101);
    expect(share.isStuck).toBe(true);
    share.leave();
    clock.pass(1000);
    share.enter();
    expect(share.isStuck).toBe(false);
  });
});
