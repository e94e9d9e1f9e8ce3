import fc from 'fast-check';
import { expect, test } from 'vitest';
import { FakeDisks } from '../testing/fake-disks.ts';
import { SlowDevice } from '../testing/slow-device.ts';
import { bytes, SECTOR } from '../units.ts';
import type { TargetSpec } from './control.ts';
import { Mapper } from './mapper.ts';

const SECTORS = 64;
const CLIENTS = 4;
const OWN = SECTORS / CLIENTS;

type Step =
  | { kind: 'suspend'; name: 'top' | 'low'; turns: number; noflush: boolean }
  | { kind: 'cut'; name: 'top' | 'low'; at: number; implied: boolean }
  | { kind: 'stripe' }
  | { kind: 'move'; turns: number }
  | { kind: 'forget' }
  | { kind: 'interrupt' };

const name = fc.constantFrom('top' as const, 'low' as const);
const turns = fc.integer({ min: 0, max: 4 });
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ kind: fc.constant('suspend' as const), name, turns, noflush: fc.boolean() }),
  fc.record({
    kind: fc.constant('cut' as const),
    name,
    at: fc.integer({ min: 1, max: SECTORS - 1 }),
    implied: fc.boolean(),
  }),
  fc.constant({ kind: 'stripe' as const }),
  fc.record({ kind: fc.constant('move' as const), turns }),
  fc.constant({ kind: 'forget' as const }),
  fc.constant({ kind: 'interrupt' as const }),
);

const turn = () => new Promise((resolve) => setImmediate(resolve));

/**
 * Clients write and read their own sectors of `top`, which lies over `low`, which lies on one of two disks, while both
 * are suspended, reloaded and moved.
 */
async function play(steps: readonly Step[]): Promise<void> {
  const disks = new FakeDisks();
  const rams = [disks.ram(0, SECTORS), disks.ram(1, SECTORS)];
  for (const [index, ram] of rams.entries()) disks.add(new SlowDevice(ram), `/dev/ram${index}`);
  const mapper = new Mapper({ opener: disks });
  let disk = 0;
  const below = (upper: string) => (upper === 'top' ? 'low' : `/dev/ram${disk}`);
  const linear = (upper: string, start = 0, length = SECTORS): TargetSpec => ({
    start,
    length,
    type: 'linear',
    args: `${below(upper)} ${start}`,
  });
  for (const each of ['low', 'top']) {
    await mapper.create(each);
    await mapper.load({ name: each }, [linear(each)]);
    await mapper.resume({ name: each });
  }
  const top = mapper.device({ name: 'top' });

  const take: Record<Step['kind'], (step: never) => Promise<unknown>> = {
    async suspend({ name, turns, noflush }: Step & { kind: 'suspend' }) {
      // With `low` suspended, `top` would wait for ever.
      await mapper.suspend({ name }, { noflush });
      for (let count = 0; count < turns; count++) await turn();
      await mapper.resume({ name });
    },
    async cut({ name, at, implied }: Step & { kind: 'cut' }) {
      if (!implied) await mapper.suspend({ name });
      await mapper.load({ name }, [linear(name, 0, at), linear(name, at, SECTORS - at)]);
      await mapper.resume({ name });
    },
    async stripe() {
      await mapper.load({ name: 'top' }, [{ start: 0, length: SECTORS, type: 'striped', args: '1 8 low 0' }]);
      await mapper.resume({ name: 'top' });
    },
    async move({ turns }: Step & { kind: 'move' }) {
      await mapper.suspend({ name: 'low' });
      const content = new Uint8Array(SECTORS * SECTOR);
      rams[disk].read(bytes(0), content, 0, content.length);
      rams[disk].write(bytes(0), new Uint8Array(content.length).fill(0xee), 0, content.length);
      disk = 1 - disk;
      rams[disk].write(bytes(0), content, 0, content.length);
      for (let count = 0; count < turns; count++) await turn();
      await mapper.load({ name: 'low' }, [linear('low')]);
      await mapper.resume({ name: 'low' });
    },
    async forget() {
      await mapper.load({ name: 'top' }, [{ start: 0, length: SECTORS, type: 'error', args: '' }]);
      await mapper.clear({ name: 'top' });
    },
    async interrupt() {
      const interrupt = new AbortController();
      await mapper.suspend({ name: 'low' });
      const suspending = mapper.suspend({ name: 'top' }, { signal: interrupt.signal });
      const outcome = suspending.then(
        ({ suspended }) => suspended,
        ({ errno }) => errno === 'EINTR',
      );
      await turn();
      interrupt.abort();
      expect(await outcome).toBe(true);
      await mapper.resume({ name: 'low' });
      await mapper.resume({ name: 'top' });
    },
  };

  let stop = false;
  const model = Array<number>(SECTORS).fill(0);
  const clients = Array.from({ length: CLIENTS }, async (_, client) => {
    for (let round = 1; !stop || round < 3; round++) {
      const value = (round % 200) + 1;
      const first = client * OWN + (round % OWN);
      const count = 1 + (round % ((client + 1) * OWN - first));
      await top.write(bytes(first * SECTOR), new Uint8Array(count * SECTOR).fill(value), 0, count * SECTOR);
      model.fill(value, first, first + count);
      if (round % 3 === 0) await top.flush();
      const found = new Uint8Array(OWN * SECTOR);
      await top.read(bytes(client * OWN * SECTOR), found, 0, found.length);
      for (let index = 0; index < OWN; index++)
        if (found[index * SECTOR + 7] !== model[client * OWN + index])
          throw new Error(`sector ${client * OWN + index} lost: ${found[index * SECTOR + 7]}`);
      await turn();
    }
  });
  const failed = Promise.all(clients);
  failed.catch(() => {});
  for (const each of steps) {
    await take[each.kind](each as never);
    await turn();
  }
  stop = true;
  await failed;
  await mapper.removeAll();
  expect([...disks.opened]).toEqual([]);
  const content = new Uint8Array(SECTORS * SECTOR);
  rams[disk].read(bytes(0), content, 0, content.length);
  for (let index = 0; index < SECTORS; index++) expect(content[index * SECTOR + 7]).toBe(model[index]);
}

test('nothing fails or is lost while tables are swapped and devices suspended under writers', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 12 }), (steps) => play(steps)),
    { numRuns: 60 },
  );
});
