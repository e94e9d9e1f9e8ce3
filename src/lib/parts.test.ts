import { expect, test } from 'vitest';
import { every, Parts } from './parts.ts';

const later = (error?: string) =>
  new Promise<void>((resolve, reject) => setImmediate(() => (error ? reject(error) : resolve())));

test('every waits for all, and fails with the last that failed', async () => {
  let ended = false;
  const slow = later().then(() => void (ended = true));
  await expect(every([Promise.reject('first'), later('second'), slow])).rejects.toBe('second');
  expect(ended).toBe(true);
  await every([later(), Promise.resolve()]);
});

test('parts that all answered at once leave nothing to wait for', () => {
  const parts = new Parts();
  parts.add(undefined);
  expect(parts.done()).toBe(undefined);
});

test('a part that failed at once fails the whole, when the others have ended', async () => {
  const alone = new Parts();
  alone.fail('alone');
  expect(() => alone.done()).toThrow('alone');

  let ended = false;
  const parts = new Parts();
  parts.try(() => {
    throw 'at once';
  });
  parts.try(() => later().then(() => void (ended = true)));
  await expect(parts.done()).rejects.toBe('at once');
  expect(ended).toBe(true);
});

test('a part that failed later has the last word', async () => {
  const parts = new Parts();
  parts.add(later('later'));
  parts.fail('at once');
  await expect(parts.done()).rejects.toBe('later');
});
