import { describe, expect, test } from 'vitest';
import { type EventControl, watchEvents } from './event.ts';
import { EventLog } from './event-log.ts';

const DEV = { storedName: 'dev', uuid: '' };
const START = 1_700_000_000_000;

const logOf = (keptMax?: number, now = () => START) => new EventLog({ now, keptMax });
const create = { event: 'create' } as const;

describe('the log of events', () => {
  test('begins with what comes from now on, and tells each event once, in order', async () => {
    const log = logOf();
    log.emit(DEV, create);
    const first = await log.events();
    expect(first).toEqual({ events: [], next: START * 1000, lost: false });
    log.emit(DEV, { event: 'rename', from: 'old' });
    log.emit({ storedName: 'other', uuid: 'u' }, create);
    const second = await log.events(first.next);
    expect(second).toEqual({
      events: [
        { sequence: START * 1000 + 1, time: '2023-11-14T22:13:20.000Z', device: 'dev', event: 'rename', from: 'old' },
        { sequence: START * 1000 + 2, time: '2023-11-14T22:13:20.000Z', device: 'other', uuid: 'u', event: 'create' },
      ],
      next: START * 1000 + 2,
      lost: false,
    });
    log.emit(DEV, create);
    expect((await log.events(second.next)).events).toHaveLength(1);
  });

  test('lets a reader wait for the next event, any number of them', async () => {
    const log = logOf();
    const { next } = await log.events();
    const readers = [log.events(next), log.events(next)];
    expect(log.waiting).toBe(2);
    log.emit(DEV, create);
    for (const { events } of await Promise.all(readers)) expect(events).toHaveLength(1);
    expect(log.waiting).toBe(0);
  });

  test('forgets a reader who goes away', async () => {
    const log = logOf();
    const { next } = await log.events();
    const abort = new AbortController();
    const reader = log.events(next, abort.signal);
    abort.abort();
    await expect(reader).rejects.toMatchObject({ code: 'INTERRUPTED', errno: 'EINTR' });
    expect(log.waiting).toBe(0);
    await expect(log.events(next, abort.signal)).rejects.toMatchObject({ errno: 'EINTR' });
    expect(log.waiting).toBe(0);
  });

  test('keeps the newest ones, and tells a slow reader that some are lost', async () => {
    const log = logOf(4);
    const { next } = await log.events();
    for (let number = 1; number <= 4; number++) log.emit(DEV, { event: 'table-event', number });
    expect((await log.events(next)).lost).toBe(false);
    log.emit(DEV, { event: 'table-event', number: 5 });
    const batch = await log.events(next);
    expect(batch.lost).toBe(true);
    expect(batch.events.map((event) => 'number' in event && event.number)).toEqual([2, 3, 4, 5]);
    expect((await log.events(batch.next - 1)).lost).toBe(false);
  });

  test('answers in parts of at most 512', async () => {
    const log = logOf();
    const { next } = await log.events();
    for (let number = 1; number <= 600; number++) log.emit(DEV, { event: 'table-event', number });
    const first = await log.events(next);
    expect(first).toMatchObject({ lost: false, next: next + 512 });
    const second = await log.events(first.next);
    expect([first.events.length, second.events.length]).toEqual([512, 88]);
  });

  test.each([
    ['later, as it should', START + 5000],
    ['earlier, as the clock was set back', START - 5000],
  ])('tells who has read the log of a daemon before this one that some are lost: begun %s', async (_when, start) => {
    const before = logOf();
    before.emit(DEV, create);
    const { next } = await before.events();
    const log = logOf(undefined, () => start);
    log.emit(DEV, create);
    const batch = await log.events(next);
    expect(batch).toMatchObject({ lost: true, next: start * 1000 });
    expect(batch.events).toHaveLength(1);
  });
});

describe('the stream of events', () => {
  test('goes on until its signal fires, and says where events are lost', async () => {
    const log = logOf(4);
    const abort = new AbortController();
    const stream = watchEvents(log, { signal: abort.signal });
    expect((await stream.next()).value).toMatchObject({ event: 'begin' });
    const first = stream.next();
    log.emit(DEV, create);
    expect((await first).value).toMatchObject({ event: 'create' });
    for (let number = 1; number <= 6; number++) log.emit(DEV, { event: 'table-event', number });
    expect((await stream.next()).value).toMatchObject({ event: 'lost', time: expect.stringMatching(/Z$/) });
    expect((await stream.next()).value).toMatchObject({ number: 3 });
    for (let i = 0; i < 3; i++) await stream.next();
    const waiting = stream.next();
    abort.abort();
    expect(await waiting).toEqual({ done: true, value: undefined });
  });

  test('rejects with what a call rejects with', async () => {
    const control: EventControl = { events: async () => Promise.reject(new Error('gone')) };
    await expect(watchEvents(control).next()).rejects.toThrow('gone');
  });
});
