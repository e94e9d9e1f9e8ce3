import { beforeEach, describe, expect, test } from 'vitest';
import { linear } from '../targets/linear.ts';
import type { TargetType } from '../targets/target.ts';
import { zero } from '../targets/zero.ts';
import { FailingDevice } from '../testing/failing-device.ts';
import { FakeDisks } from '../testing/fake-disks.ts';
import { bytes } from '../units.ts';
import type { TargetSpec } from './control.ts';
import { Mapper } from './mapper.ts';

let disks: FakeDisks;
let mapper: Mapper;

beforeEach(() => {
  disks = new FakeDisks();
  disks.ram(0);
  disks.ram(1);
  mapper = new Mapper({ opener: disks });
});

const spec = (type: string, args = '', start = 0, length = 8): TargetSpec => ({ start, length, type, args });

async function activate(name: string, table: TargetSpec[]): Promise<void> {
  await mapper.create(name);
  await mapper.load({ name }, table);
  await mapper.resume({ name });
}

describe('a restart', () => {
  const restart = async () => {
    const saved = JSON.parse(JSON.stringify((await mapper.list()).map(({ name }) => mapper.save({ name }))));
    await mapper.close();
    expect(disks.opened.size).toBe(0);
    mapper = new Mapper({ opener: disks });
    await mapper.restore(saved);
  };

  test('brings back names, numbers, tables and states, lower devices first', async () => {
    await mapper.create('top', { uuid: 'U', minor: 7, readAhead: 8 });
    await activate('low', [spec('linear', '1:0 0'), spec('zero', '', 8)]);
    await mapper.load({ name: 'top' }, [spec('linear', 'low 0', 0, 16)], { readOnly: true });
    await mapper.resume({ name: 'top' });
    await mapper.rename({ name: 'top' }, 'above');
    await mapper.setGeometry({ name: 'above' }, [1, 1, 1, 0]);
    await mapper.suspend({ name: 'above' });
    await mapper.load({ name: 'low' }, [spec('zero')]);
    await mapper.create('empty');
    const before = await mapper.list();
    await restart();
    expect(await mapper.list()).toEqual(before.map((info) => ({ ...info, inactive: false })));
    expect(mapper.device({ name: 'above' }).geometry).toEqual([1, 1, 1, 0]);
    expect(await mapper.table({ name: 'above' })).toEqual([{ start: 0, length: 16, type: 'linear', text: '254:0 0' }]);
  });

  test('brings back what reads from a suspended device when it is loaded', async () => {
    const reader: TargetType = {
      ...linear,
      name: 'reader',
      async create(line) {
        const target = await linear.create(line);
        await target.read(bytes(0), new Uint8Array(512), 0, 512);
        return target;
      },
    };
    mapper = new Mapper({ opener: disks, types: [linear, reader] });
    await activate('low', [spec('linear', '1:0 0')]);
    await activate('top', [spec('reader', 'low 0')]);
    await mapper.suspend({ name: 'low' });
    const saved = ['low', 'top'].map((name) => mapper.save({ name }));
    await mapper.close();
    mapper = new Mapper({ opener: disks, types: [linear, reader] });
    await mapper.restore(saved);
    expect(await mapper.list()).toMatchObject([
      { live: true, suspended: true },
      { live: true, suspended: false, note: undefined },
    ]);
  });

  test('keeps a device whose table cannot be loaded, says why, and tries again at the next', async () => {
    await activate('low', [spec('linear', '1:0 0')]);
    await activate('top', [spec('linear', 'low 0')]);
    const disk = disks.disks.get('1:0')!;
    disks.disks.delete('1:0');
    await restart();
    expect(await mapper.info({ name: 'low' })).toMatchObject({
      live: false,
      note: 'table not loaded after a restart: linear: Device lookup failed: Cannot open 1:0: no such disk',
    });
    expect(await mapper.info({ name: 'top' })).toMatchObject({ live: false, note: expect.stringContaining('low') });
    disks.disks.set('1:0', disk);
    await restart();
    expect(await mapper.info({ name: 'top' })).toMatchObject({ live: true, note: undefined });
    await mapper.removeAll();
  });

  test('finds active what is suspended only while it is reverted or gets another table', async () => {
    const kept: boolean[] = [];
    const look = async () => {
      expect((await mapper.info({ name: 'a' })).suspended).toBe(true);
      kept.push(mapper.save({ name: 'a' }).suspended);
    };
    const looking: TargetType = {
      ...zero,
      create: async (line) => ({ ...(await zero.create(line)), preresume: look, revert: look }),
    };
    mapper = new Mapper({ opener: disks, types: [looking] });
    const a = { name: 'a' };
    await activate('a', [spec('zero')]);
    await mapper.revert(a);
    expect(kept).toEqual([false, false, false]);
    await mapper.suspend(a);
    await mapper.revert(a);
    await mapper.resume(a);
    expect(kept).toEqual([false, false, false, true, true]);
    expect(mapper.save(a).suspended).toBe(false);
  });

  test('does not bring back a table that ended with the process', async () => {
    const fleeting: TargetType = {
      ...zero,
      name: 'fleeting',
      volatile: (args) => (args[0] === 'N' ? 'it is gone' : undefined),
    };
    const kept: TargetType = { ...fleeting, create: (line) => zero.create({ ...line, args: [] }) };
    mapper = new Mapper({ opener: disks, types: [kept] });
    await activate('gone', [spec('fleeting', 'N')]);
    const saved = { ...mapper.save({ name: 'gone' }), table: [spec('fleeting', 'N')] };
    mapper = new Mapper({ opener: disks, types: [kept] });
    await mapper.restore([saved]);
    expect(await mapper.info({ name: 'gone' })).toMatchObject({ live: false, note: 'it is gone' });
    expect(mapper.save({ name: 'gone' })).toMatchObject({ table: undefined, note: 'it is gone' });
  });

  test('completes a deferred removal that nobody holds back any more', async () => {
    await activate('a', [spec('zero')]);
    mapper.open({ name: 'a' });
    await mapper.remove({ name: 'a' }, { deferred: true });
    await restart();
    expect(await mapper.list()).toEqual([]);
  });

  test('a stop fails the requests that are held, and closes every disk', async () => {
    await activate('low', [spec('linear', '1:0 0')]);
    await activate('top', [spec('linear', 'low 0')]);
    await mapper.suspend({ name: 'low' });
    const held = mapper.device({ name: 'top' }).write(bytes(0), new Uint8Array(512), 0, 512);
    const closing = mapper.close();
    await expect(held).rejects.toMatchObject({ errno: 'ESHUTDOWN' });
    await closing;
    expect(disks.opened.size).toBe(0);
  });

  test('a stop flushes, and tells a flush that failed', async () => {
    const failing = new FailingDevice(disks.disks.get('1:0')!);
    disks.add(failing);
    await activate('low', [spec('linear', '1:0 0')]);
    failing.fail(['flush']);
    await expect(mapper.close()).rejects.toMatchObject({ errno: 'EIO' });
    expect(disks.opened.size).toBe(0);
  });
});

describe('a device may go on in another mapper', () => {
  test('with all that shares a disk with it', async () => {
    await activate('low', [spec('linear', '1:0 0')]);
    await activate('top', [spec('linear', 'low 0')]);
    await activate('beside', [spec('linear', '1:0 8')]);
    await activate('other', [spec('linear', '1:1 0')]);
    expect(await mapper.bound(['other'])).toBeUndefined();
    expect(await mapper.bound(['low', 'beside'])).toBe('top has a disk in common with them');
    expect(await mapper.bound(['top'])).toBe('low has a disk in common with them');
    expect(await mapper.bound(['low', 'top'])).toBe('beside has a disk in common with them');
    expect(await mapper.bound(['low', 'top', 'beside'])).toBeUndefined();
  });

  test('unless its disk has gone from where it was found', async () => {
    await activate('d', [spec('linear', '1:0 0')]);
    const disk = disks.disks.get('1:0')!;
    disks.disks.delete('1:0');
    expect(await mapper.bound(['d'])).toContain('1:0 could not be opened again');
    disks.disks.set('1:0', disk);
    expect(await mapper.bound(['d'])).toBeUndefined();
  });
});
