/** `create` with a table: three steps of the kernel's in one call. */
import { beforeEach, expect, test } from 'vitest';
import { DmError } from '../errors.ts';
import { linear } from '../targets/linear.ts';
import type { TargetType } from '../targets/target.ts';
import { zero } from '../targets/zero.ts';
import { FakeDisks } from '../testing/fake-disks.ts';
import type { TargetSpec } from './control.ts';
import { Mapper } from './mapper.ts';

let disks: FakeDisks;
let mapper: Mapper;

beforeEach(() => {
  disks = new FakeDisks();
  mapper = new Mapper({ opener: disks });
});

const spec = (type: string, args = ''): TargetSpec => ({ start: 0, length: 8, type, args });

/** Loads, and does not resume. */
const refusing: TargetType = {
  ...zero,
  name: 'refusing',
  create: async (line) => ({
    ...(await zero.create(line)),
    preresume: async () => {
      throw new DmError('TOLD', 'EINVAL', 'told to fail');
    },
  }),
};

test('makes the device live in one call, and tells no restart of the half of it', async () => {
  const seen: unknown[] = [];
  mapper = new Mapper({
    opener: disks,
    onChange: (kind, { storedName, liveTable, unfinished }) =>
      void seen.push([kind, storedName, liveTable !== undefined, unfinished]),
  });
  const load = { readOnly: true };
  expect(await mapper.create('a', { uuid: 'U', table: [spec('zero')], load })).toMatchObject({
    live: true,
    readOnly: true,
    size: 4096,
  });
  expect(seen).toEqual([
    ['create', 'a', false, true],
    ['table', 'a', true, false],
  ]);
});

test.each([
  ['load', 'nosuch'],
  ['resume', 'refusing'],
] as const)('leaves nothing when its %s fails, and says that it was that', async (call, type) => {
  mapper = new Mapper({ opener: disks, types: [refusing] });
  const step = { call, major: 254, minor: 0 };
  await expect(mapper.create('a', { table: [spec(type)] })).rejects.toMatchObject({ errno: 'EINVAL', step });
  expect(await mapper.list()).toEqual([]);
});

test('leaves a device that is in use by then, which a restart finds again', async () => {
  mapper = new Mapper({ opener: disks, types: [linear, refusing] });
  await mapper.create('above');
  const making = mapper.create('a', { table: [spec('refusing')] });
  const refused = expect(making).rejects.toMatchObject({ step: { call: 'resume' } });
  // As soon as it is loaded, another table can hold it.
  while (!(await mapper.info({ name: 'a' })).inactive) await Promise.resolve();
  await mapper.load({ name: 'above' }, [spec('linear', 'a 0')]);
  await refused;
  expect(mapper.device({ name: 'a' }).unfinished).toBe(false);
});
