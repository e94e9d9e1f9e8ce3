import { describe, expect, test } from 'vitest';
import { DmError } from '../errors.ts';
import { FlushGroup } from './flush-group.ts';

/** A disk whose syncs end when the test says so. */
function disk() {
  const syncs: { end(error?: DmError): void }[] = [];
  const group = new FlushGroup(
    () => new Promise((resolve, reject) => syncs.push({ end: (error) => (error ? reject(error) : resolve()) })),
  );
  return { syncs, group };
}

/** How many microtasks it takes is not the point; all that can run, runs. */
const settled = () => new Promise((resolve) => setImmediate(resolve));

describe('group commit', () => {
  test('has nothing to wait for when nothing was written', async () => {
    const { group, syncs } = disk();
    expect(group.flush()).toBeUndefined();
    group.wrote();
    const first = group.flush();
    syncs[0].end();
    await first;
    expect(group.flush()).toBeUndefined();
    expect(syncs).toHaveLength(1);
  });

  test('joins the running sync when nothing was written since it began', async () => {
    const { group, syncs } = disk();
    group.wrote();
    const waits = [group.flush(), group.flush()];
    expect(syncs).toHaveLength(1);
    syncs[0].end();
    await Promise.all(waits);
  });

  test('starts one more for all who wrote while it ran, and only after it ended', async () => {
    const { group, syncs } = disk();
    group.wrote();
    const first = group.flush();
    const late: unknown[] = [];
    for (let i = 0; i < 10; i++) {
      group.wrote();
      late.push(group.flush());
    }
    let done = false;
    const all = Promise.all(late).then(() => {
      done = true;
    });
    await settled();
    expect(syncs).toHaveLength(1);
    syncs[0].end();
    await first;
    await settled();
    expect(syncs).toHaveLength(2);
    expect(done).toBe(false);
    syncs[1].end();
    await all;
    expect(group.flush()).toBeUndefined();
    expect(syncs).toHaveLength(2);
  });

  test('never runs two syncs at once, even when one is asked for the moment another ends', async () => {
    let running = 0;
    let most = 0;
    const group: FlushGroup = new FlushGroup(async () => {
      most = Math.max(most, ++running);
      await settled();
      running--;
    });
    const callers = Array.from({ length: 20 }, async () => {
      for (let i = 0; i < 20; i++) {
        group.wrote();
        await group.flush();
      }
    });
    await Promise.all(callers);
    expect(most).toBe(1);
    expect(group.flush()).toBeUndefined();
  });

  test('a failed sync fails all who waited for it and every flush after it', async () => {
    const { group, syncs } = disk();
    group.wrote();
    const first = group.flush();
    group.wrote();
    const next = group.flush();
    const error = new DmError('FLUSH_FAILED', 'EIO', 'lost');
    syncs[0].end(error);
    await expect(first).rejects.toBe(error);
    await expect(next).rejects.toBe(error);
    expect(() => group.flush()).toThrow(error);
    group.wrote();
    expect(() => group.flush()).toThrow(error);
    expect(syncs).toHaveLength(1);
  });
});
