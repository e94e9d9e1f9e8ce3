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

test('makes the device live in one call, and is told of when it is', async () => {
  const seen: unknown[] = [];
  mapper = new Mapper({
    opener: disks,
    onChange: (kind, { storedName, liveTable }) => void seen.push([kind, storedName, liveTable !== undefined]),
  });
  const load = { readOnly: true };
  expect(await mapper.create('a', { uuid: 'U', table: [spec('zero')], load })).toMatchObject({
    live: true,
    readOnly: true,
    size: 4096,
  });
  expect(seen).toEqual([
    ['create', 'a', true],
    ['table', 'a', true],
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
  await expect(mapper.create('a')).resolves.toMatchObject({ minor: 0 });
});

test('shows the half of it to nobody', async () => {
  let letGo = () => {};
  const held = new Promise<void>((done) => (letGo = done));
  const slow: TargetType = {
    ...zero,
    create: async (line) => {
      await held;
      return zero.create(line);
    },
  };
  mapper = new Mapper({ opener: disks, types: [slow] });
  const making = mapper.create('a', { uuid: 'U', table: [spec('zero')] });
  await expect(mapper.create('a')).rejects.toMatchObject({ code: 'NAME_IN_USE' });
  for (const ref of [{ name: 'a' }, { uuid: 'U' }, { major: 254, minor: 0 }])
    await expect(mapper.remove(ref)).rejects.toMatchObject({ code: 'NO_DEVICE' });
  await mapper.removeAll();
  expect(await mapper.list()).toEqual([]);
  letGo();
  await making;
  expect(mapper.names()).toEqual(['a']);
});

test('leaves a device that another table holds by then', async () => {
  const seen: unknown[] = [];
  const refusesLater: TargetType = {
    ...refusing,
    create: async (line) => ({
      ...(await refusing.create(line)),
      async preresume() {
        await mapper.load({ name: 'above' }, [spec('linear', 'a 0')]);
        throw new DmError('TOLD', 'EINVAL', 'told to fail');
      },
    }),
  };
  mapper = new Mapper({
    opener: disks,
    types: [linear, refusesLater],
    onChange: (kind, { storedName }) => void seen.push([kind, storedName]),
  });
  await mapper.create('above');
  await expect(mapper.create('a', { table: [spec('refusing')] })).rejects.toMatchObject({ step: { call: 'resume' } });
  expect(mapper.names()).toEqual(['a', 'above']);
  expect(seen).toContainEqual(['create', 'a']);
});
