import { beforeEach, expect, test } from 'vitest';
import { FakeDisks } from '../testing/fake-disks.ts';
import { bytes } from '../units.ts';
import { Mapper } from './mapper.ts';

let disks: FakeDisks;
let mapper: Mapper;

beforeEach(() => {
  disks = new FakeDisks();
  mapper = new Mapper({ opener: disks });
});

test('a created, loaded and resumed device maps onto the disk below', async () => {
  const ram = disks.ram(0);
  await mapper.create('lin');
  await mapper.load({ name: 'lin' }, [{ start: 0, length: 2048, type: 'linear', args: '/dev/ram0 8' }]);
  expect(await mapper.table({ name: 'lin' })).toEqual([]);
  expect(await mapper.resume({ name: 'lin' })).toMatchObject({
    size: 2048 * 512,
    live: true,
    inactive: false,
    minor: 0,
  });
  expect(await mapper.table({ name: 'lin' })).toEqual([{ start: 0, length: 2048, type: 'linear', text: '1:0 8' }]);
  expect(await mapper.status({ name: 'lin' })).toEqual([{ start: 0, length: 2048, type: 'linear', text: '' }]);
  const sector = new Uint8Array(512).fill(7);
  expect(mapper.device({ name: 'lin' }).write(bytes(512), sector, 0, 512)).toBe(undefined);
  const found = new Uint8Array(512);
  ram.read(bytes(9 * 512), found, 0, 512);
  expect(found).toEqual(sector);
  await mapper.remove({ major: 254, minor: 0 });
  expect(await mapper.list()).toEqual([]);
  expect(disks.opened.size).toBe(0);
});
