import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import type { TargetType } from '../targets/target.ts';
import { zero } from '../targets/zero.ts';
import { FakeDisks } from '../testing/fake-disks.ts';
import { Mapper } from './mapper.ts';

beforeEach(() => void vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] }));
afterEach(() => void vi.useRealTimers());

/** A device whose target counts what is written, and first waits for `settled`. */
async function counting(settled: Promise<void>): Promise<Mapper> {
  let text = 'so far';
  const type: TargetType = {
    ...zero,
    name: 'counting',
    async create(line) {
      const target = await zero.create(line);
      return {
        ...target,
        prestatus: async () => {
          await settled;
          text = 'all';
        },
        status: () => text,
      };
    },
  };
  const mapper = new Mapper({ opener: new FakeDisks(), types: [type] });
  await mapper.create('d', { table: [{ start: 0, length: 8, type: 'counting', args: '' }] });
  return mapper;
}

const turns = () => new Promise((resolve) => setImmediate(resolve));

test('waits for what a target has to count first', async () => {
  let settle = () => {};
  const mapper = await counting(new Promise((resolve) => (settle = resolve)));
  const status = mapper.status({ name: 'd' });
  await turns();
  settle();
  expect((await status)[0].text).toBe('all');
  expect(vi.getTimerCount()).toBe(0);
});

test('tells what there is when a disk below hangs', async () => {
  const mapper = await counting(new Promise(() => {}));
  const status = mapper.status({ name: 'd' });
  vi.advanceTimersByTime(500);
  expect((await status)[0].text).toBe('so far');
});
