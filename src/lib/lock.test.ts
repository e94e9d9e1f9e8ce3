import { expect, test } from 'vitest';
import { Lock } from './lock.ts';

test('one works at a time, in the order of asking, whatever others end with', async () => {
  const lock = new Lock();
  const order: number[] = [];
  const work = [1, 2, 3].map((number) =>
    lock.run(async () => {
      await Promise.resolve();
      order.push(number);
      if (number === 2) throw new Error('two');
    }),
  );
  expect((await Promise.allSettled(work)).map(({ status }) => status)).toEqual(['fulfilled', 'rejected', 'fulfilled']);
  expect(order).toEqual([1, 2, 3]);
});

test('who gives up before his turn does not work, and the next does', async () => {
  const lock = new Lock();
  let end = () => {};
  const first = lock.run(() => new Promise<void>((resolve) => (end = resolve)));
  const abort = new AbortController();
  let worked = false;
  const second = lock.run(async () => (worked = true), abort.signal);
  const third = lock.run(async () => 'third');
  abort.abort();
  await expect(second).rejects.toMatchObject({ code: 'INTERRUPTED', errno: 'EINTR' });
  await expect(lock.run(async () => (worked = true), abort.signal)).rejects.toMatchObject({ code: 'INTERRUPTED' });
  end();
  await first;
  expect(await third).toBe('third');
  expect(worked).toBe(false);
});

test('who has begun goes on to his end', async () => {
  const abort = new AbortController();
  const work = async () => {
    abort.abort();
    return 'done';
  };
  expect(await new Lock().run(work, abort.signal)).toBe('done');
});
