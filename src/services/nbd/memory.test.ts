import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Hold } from './hold.ts';
import { Memory, OWN_BYTES, type Share } from './memory.ts';

const STALL = 1000;

class Client {
  readonly share: Share;
  wakes = 0;
  done: number | undefined;
  isCutOff = false;

  constructor(memory: Memory, weight = 1, device?: object) {
    this.share = memory.join(
      {
        wake: () => void this.wakes++,
        progress: () => this.done,
        cutOff: () => (this.isCutOff = true),
      },
      weight,
      device,
    );
  }

  /** Takes it if it may. */
  ask(bytes: number): boolean {
    if (!this.share.admits(bytes)) return false;
    this.share.take(bytes);
    return true;
  }
}

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

describe('the memory of a server', () => {
  it('gives every connection its own, whatever the others hold', () => {
    const memory = new Memory(1000, STALL);
    const hog = new Client(memory);
    expect(hog.ask(OWN_BYTES + 1000)).toBe(true);
    const other = new Client(memory);
    expect(other.ask(1)).toBe(true);
    expect(other.ask(OWN_BYTES - 1)).toBe(true);
    expect(other.ask(1)).toBe(false);
    expect(memory.held).toBe(2 * OWN_BYTES + 1000);
  });

  it('serves who waits for a device in the order of their coming, one request each', async () => {
    const memory = new Memory(2000, STALL);
    const [hog, first, second] = [1, 2, 3].map(() => new Client(memory));
    hog.ask(OWN_BYTES + 1000);
    expect(first.ask(OWN_BYTES + 600)).toBe(false);
    expect(second.ask(OWN_BYTES + 100)).toBe(false);
    hog.share.give(500);
    await turn();
    expect([first.wakes, second.wakes]).toEqual([1, 0]);
    // There would be room for the second, and it does not overtake.
    expect(second.ask(OWN_BYTES + 100)).toBe(false);
    expect(first.ask(OWN_BYTES + 600)).toBe(false);
    hog.share.give(400);
    await turn();
    expect(first.ask(OWN_BYTES + 600)).toBe(true);
    await turn();
    expect(second.wakes).toBe(1);
    // The first asks again, and stands behind.
    expect(first.ask(100)).toBe(false);
    expect(second.ask(OWN_BYTES + 100)).toBe(true);
    await turn();
    expect(first.ask(100)).toBe(true);
  });

  it('serves a request that is larger than all of it alone', async () => {
    const memory = new Memory(1000, STALL);
    const [one, other] = [new Client(memory), new Client(memory)];
    expect(one.ask(OWN_BYTES + 5000)).toBe(true);
    expect(other.ask(OWN_BYTES + 5000)).toBe(false);
    one.share.give(5000);
    await turn();
    expect(other.ask(OWN_BYTES + 5000)).toBe(true);
  });

  it('lets the next one go on when the first of the line goes away', async () => {
    const memory = new Memory(2000, STALL);
    const [hog, first, second] = [1, 2, 3].map(() => new Client(memory));
    hog.ask(OWN_BYTES + 900);
    first.ask(OWN_BYTES + 200);
    second.ask(OWN_BYTES + 100);
    first.share.leaveLine();
    await turn();
    expect(second.wakes).toBe(1);
    expect(second.ask(OWN_BYTES + 100)).toBe(true);
  });

  it('gives the connections to a device as much as they leave to others', () => {
    const memory = new Memory(1024, STALL);
    const taken = Array.from({ length: 6 }, () => {
      const device = {};
      const clients = Array.from({ length: 3 }, () => new Client(memory, 1, device));
      for (const client of clients) client.share.take(OWN_BYTES);
      let bytes = 0;
      while (clients[bytes % 3].ask(1)) bytes++;
      return bytes;
    });
    expect(taken).toEqual([512, 256, 128, 64, 32, 16]);
  });

  it('lets nobody stand behind those who wait for another device', async () => {
    const memory = new Memory(1000, STALL);
    const slow = {};
    const [one, other] = [new Client(memory, 1, slow), new Client(memory, 1, slow)];
    one.ask(OWN_BYTES + 500);
    expect(other.ask(OWN_BYTES + 1)).toBe(false);
    const fast = {};
    const [quick, late] = [new Client(memory, 1, fast), new Client(memory, 1, fast)];
    expect(quick.ask(OWN_BYTES + 250)).toBe(true);
    expect(late.ask(OWN_BYTES + 1)).toBe(false);
    quick.share.give(250);
    await turn();
    expect(late.wakes).toBe(1);
    expect(late.ask(OWN_BYTES + 1)).toBe(true);
    expect(other.ask(OWN_BYTES + 1)).toBe(false);
  });

  it('counts twice what is there twice', () => {
    const memory = new Memory(1000, STALL);
    const client = new Client(memory, 2);
    expect(client.ask(OWN_BYTES / 2 + 500)).toBe(true);
    expect(memory.held).toBe(OWN_BYTES + 1000);
    client.share.give(OWN_BYTES / 2 + 500);
    expect(memory.held).toBe(0);
  });

  it('counts what several requests keep until the last has completed', () => {
    const memory = new Memory(1000, STALL);
    const { share } = new Client(memory);
    const hold = new Hold(share, 300);
    hold.retain();
    hold.release();
    expect([share.held, hold.users]).toEqual([300, 1]);
    hold.release();
    expect([share.held, hold.users]).toEqual([0, 0]);
  });

  it('counts what a connection that is gone still holds', () => {
    const memory = new Memory(1000, STALL);
    const gone = new Client(memory);
    gone.ask(OWN_BYTES + 1000);
    gone.share.leave();
    expect(memory.held).toBe(OWN_BYTES + 1000);
    expect(new Client(memory).ask(OWN_BYTES + 1)).toBe(false);
    gone.share.give(OWN_BYTES + 1000);
    expect(memory.held).toBe(0);
  });

  it('comes out even, and wakes whoever can go on, in any order of asking and giving', async () => {
    const step = fc.record({ who: fc.nat(4), bytes: fc.integer({ min: 1, max: 3 * OWN_BYTES }), gives: fc.boolean() });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
        const limit = 2 * OWN_BYTES;
        const memory = new Memory(limit, STALL);
        const clients = Array.from({ length: 5 }, () => ({
          client: new Client(memory),
          held: [] as number[],
          wants: 0,
        }));
        const attempt = (each: (typeof clients)[0]) => {
          if (each.wants === 0 || !each.client.ask(each.wants)) return;
          each.held.push(each.wants);
          each.wants = 0;
          const beyond = clients.map(({ client }) => Math.max(0, client.share.held - OWN_BYTES));
          const alone = beyond.filter((bytes) => bytes > 0).length === 1 && each.held.length === 1;
          if (!alone) expect(beyond.reduce((sum, bytes) => sum + bytes)).toBeLessThanOrEqual(3 * OWN_BYTES);
        };
        const wakeAll = async () => {
          for (let woken = true; woken; ) {
            await turn();
            woken = false;
            for (const each of clients) {
              if (each.client.wakes === 0) continue;
              each.client.wakes = 0;
              woken = true;
              attempt(each);
            }
          }
        };
        for (const { who, bytes, gives } of steps) {
          const each = clients[who];
          if (gives) each.client.share.give(each.held.pop() ?? 0);
          else {
            each.wants ||= bytes;
            attempt(each);
          }
          await wakeAll();
        }
        // Everything in flight completes: then nobody may be left waiting.
        while (clients.some(({ held, wants }) => held.length > 0 || wants > 0)) {
          const holder = clients.find(({ held }) => held.length > 0);
          expect(holder).toBeDefined();
          holder!.client.share.give(holder!.held.pop()!);
          await wakeAll();
        }
        expect(memory.held).toBe(0);
      }),
      { numRuns: 200 },
    );
  });
});

describe('the time limit', () => {
  beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
  afterEach(() => void vi.useRealTimers());

  const full = () => {
    const memory = new Memory(1000, STALL);
    const hog = new Client(memory);
    hog.ask(OWN_BYTES + 1000);
    return { memory, hog, waiting: new Client(memory) };
  };

  it('cuts off who completes nothing while another waits', () => {
    const { hog, waiting } = full();
    hog.done = 7;
    expect(waiting.ask(OWN_BYTES + 1)).toBe(false);
    vi.advanceTimersByTime(STALL - 1);
    expect(hog.isCutOff).toBe(false);
    vi.advanceTimersByTime(1);
    expect([hog.isCutOff, waiting.isCutOff]).toEqual([true, false]);
  });

  it('spares who completes something, whose requests are with the device, and who holds no more than its own', () => {
    const { memory, hog, waiting } = full();
    const small = new Client(memory);
    small.ask(OWN_BYTES);
    small.done = 1;
    waiting.ask(OWN_BYTES + 1);
    for (let i = 0; i < 5; i++) {
      hog.done = i === 4 ? undefined : i;
      vi.advanceTimersByTime(STALL - 1);
    }
    vi.advanceTimersByTime(3 * STALL);
    expect([hog.isCutOff, small.isCutOff]).toEqual([false, false]);
  });

  it('does not run while nobody waits', () => {
    const { hog, waiting } = full();
    hog.done = 1;
    vi.advanceTimersByTime(10 * STALL);
    waiting.ask(OWN_BYTES + 1);
    vi.advanceTimersByTime(STALL / 2);
    waiting.share.leaveLine();
    vi.advanceTimersByTime(10 * STALL);
    expect(hog.isCutOff).toBe(false);
    expect(vi.getTimerCount()).toBe(0);
  });

  it('finds who stalls later', () => {
    const { hog, waiting } = full();
    waiting.ask(OWN_BYTES + 1);
    vi.advanceTimersByTime(STALL / 2);
    hog.done = 1;
    vi.advanceTimersByTime(STALL);
    expect(hog.isCutOff).toBe(false);
    vi.advanceTimersByTime(STALL / 2);
    expect(hog.isCutOff).toBe(true);
  });
});
