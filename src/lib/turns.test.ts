import { expect, test } from 'vitest';
import { Turns } from './turns.ts';

test('what need not wait has ended when it returns', () => {
  const turns = new Turns();
  expect(turns.run(() => 7)).toBe(7);
  expect(() =>
    turns.run(() => {
      throw new Error('no');
    }),
  ).toThrow('no');
  expect(turns.run(() => 8)).toBe(8);
});

test('behind something that waits, all come one after the other, whatever fails', async () => {
  const turns = new Turns();
  const log: string[] = [];
  let go!: () => void;
  const first = turns.run(async () => {
    await new Promise<void>((resolve) => (go = resolve));
    log.push('first');
    throw new Error('no');
  });
  const others = ['second', 'third'].map((name) => turns.run(() => void log.push(name)));
  expect(log).toEqual([]);
  go();
  await expect(first).rejects.toThrow('no');
  await Promise.all(others);
  expect(log).toEqual(['first', 'second', 'third']);
  expect(turns.run(() => 'at once')).toBe('at once');
});
