import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, describe, expect, test } from 'vitest';
import { DmError } from '../errors.ts';
import { linear } from '../targets/linear.ts';
import type { Target, TargetType } from '../targets/target.ts';
import { zero } from '../targets/zero.ts';
import { FailingDevice } from '../testing/failing-device.ts';
import { FakeDisks } from '../testing/fake-disks.ts';
import { SlowDevice } from '../testing/slow-device.ts';
import { bytes, SECTOR } from '../units.ts';
import type { TargetSpec } from './control.ts';
import { Mapper } from './mapper.ts';
import { splitMessage } from './message.ts';

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

const turn = () => new Promise((resolve) => setImmediate(resolve));

/** A target that tells what is called, and fails what it is told to. */
function recorder(log: string[], failing: Record<string, unknown> = {}): TargetType {
  const call = (name: string, what: string) => {
    log.push(`${name}.${what}`);
    if (failing[`${name}.${what}`]) throw new DmError('TOLD', 'EINVAL', `told to fail ${what}`);
  };
  return {
    ...linear,
    name: 'recorder',
    async create(line) {
      const [name, ...args] = line.args;
      call(name, 'create');
      const below = await linear.create({ ...line, args: args.length > 0 ? args : ['1:0', '0'] });
      const target: Target = {
        ...below,
        canDiscard: true,
        flush: () => void log.push(`${name}.flush`),
        presuspend: () => call(name, 'presuspend'),
        presuspendUndo: () => call(name, 'presuspendUndo'),
        postsuspend: async () => call(name, 'postsuspend'),
        preresume: async () => call(name, 'preresume'),
        resume: () => call(name, 'resume'),
        revert: async () => call(name, 'revert'),
        message: async (words) => words.join('|'),
        close: async () => call(name, 'close'),
      };
      return target;
    },
  };
}

describe('the order in which targets are called', () => {
  let log: string[];
  let failing: Record<string, unknown>;
  const two = (a: string, b: string) => [spec('recorder', a), spec('recorder', b, 8)];
  const since = async (work: Promise<unknown>) => {
    log.length = 0;
    await work;
    return log.join(' ');
  };

  beforeEach(() => {
    log = [];
    failing = {};
    mapper = new Mapper({ opener: disks, types: [recorder(log, failing), zero] });
  });

  test('create, suspend, resume, remove', async () => {
    await activate('d', two('a', 'b'));
    expect(log.join(' ')).toBe('a.create b.create a.preresume b.preresume a.resume b.resume');
    expect(await since(mapper.suspend({ name: 'd' }))).toBe(
      'a.presuspend b.presuspend a.flush b.flush a.postsuspend b.postsuspend',
    );
    expect(await since(mapper.resume({ name: 'd' }))).toBe('a.preresume b.preresume a.resume b.resume');
    expect(await since(mapper.suspend({ name: 'd' }, { nolockfs: true }))).not.toContain('flush');
    await mapper.resume({ name: 'd' });
    expect(await since(mapper.suspend({ name: 'd' }, { noflush: true }))).not.toContain('flush');
    await mapper.resume({ name: 'd' });
    await mapper.load({ name: 'd' }, [spec('recorder', 'i')]);
    expect(await since(mapper.remove({ name: 'd' }))).toBe(
      'i.close a.presuspend b.presuspend a.postsuspend b.postsuspend a.close b.close',
    );
  });

  test('a swap: the new targets resume before the old ones are closed', async () => {
    await activate('d', [spec('recorder', 'a')]);
    await mapper.load({ name: 'd' }, [spec('recorder', 'b')]);
    expect(await since(mapper.load({ name: 'd' }, [spec('recorder', 'c')]))).toBe('c.create b.close');
    expect(await since(mapper.resume({ name: 'd' }))).toBe(
      'a.presuspend a.flush a.postsuspend c.preresume c.resume a.close',
    );
    await mapper.suspend({ name: 'd' });
    expect(await since(mapper.remove({ name: 'd' }))).toBe('c.close');
  });

  test('a refused constructor closes the targets before it', async () => {
    await mapper.create('d');
    failing['b.create'] = true;
    await expect(since(mapper.load({ name: 'd' }, two('a', 'b')))).rejects.toThrow('told to fail create');
    expect(log.join(' ')).toBe('a.create b.create a.close');
    expect(disks.opened.size).toBe(0);
  });

  test('a refused preresume leaves the new table live and the device suspended', async () => {
    await activate('d', [spec('recorder', 'a')]);
    await mapper.load({ name: 'd' }, two('b', 'c'));
    failing['b.preresume'] = true;
    await expect(since(mapper.resume({ name: 'd' }))).rejects.toMatchObject({ errno: 'EINVAL' });
    expect(log.join(' ')).toBe('a.presuspend a.flush a.postsuspend b.preresume a.close');
    expect(await mapper.info({ name: 'd' })).toMatchObject({ suspended: true, inactive: false, targetCount: 2 });
    failing['b.preresume'] = false;
    expect(await since(mapper.resume({ name: 'd' }))).toBe('b.preresume c.preresume b.resume c.resume');
  });

  test('an interrupted suspend is undone', async () => {
    const slow = new SlowDevice(disks.disks.get('1:1')!);
    disks.add(slow);
    await activate('d', [spec('recorder', 'a 1:1 0')]);
    slow.stop();
    const reading = mapper.device({ name: 'd' }).read(bytes(0), new Uint8Array(512), 0, 512);
    const interrupt = new AbortController();
    log.length = 0;
    const suspending = mapper.suspend({ name: 'd' }, { signal: interrupt.signal });
    const info = mapper.info({ name: 'd' });
    expect(await info).toMatchObject({ suspended: false });
    interrupt.abort();
    await expect(suspending).rejects.toMatchObject({ errno: 'EINTR' });
    expect(log.join(' ')).toBe('a.presuspend a.presuspendUndo');
    slow.go();
    await reading;
  });

  test('a table whose implied suspend is interrupted goes back into the slot', async () => {
    const slow = new SlowDevice(disks.disks.get('1:1')!);
    disks.add(slow);
    await activate('d', [spec('recorder', 'a 1:1 0')]);
    await mapper.load({ name: 'd' }, [spec('recorder', 'b')]);
    slow.stop();
    const reading = mapper.device({ name: 'd' }).read(bytes(0), new Uint8Array(512), 0, 512);
    const interrupt = new AbortController();
    const resuming = mapper.resume({ name: 'd' }, { signal: interrupt.signal });
    interrupt.abort();
    await expect(resuming).rejects.toMatchObject({ errno: 'EINTR' });
    expect(await mapper.info({ name: 'd' })).toMatchObject({ suspended: false, inactive: true });
    slow.go();
    await reading;
    expect((await mapper.resume({ name: 'd' })).inactive).toBe(false);
  });

  test('revert suspends an active device around it, and leaves a suspended one so', async () => {
    await activate('d', [spec('recorder', 'a')]);
    expect(await since(mapper.revert({ name: 'd' }))).toBe('a.presuspend a.postsuspend a.revert a.preresume a.resume');
    await mapper.suspend({ name: 'd' });
    expect(await since(mapper.revert({ name: 'd' }))).toBe('a.revert');
    await mapper.resume({ name: 'd' });
    failing['a.postsuspend'] = true;
    expect(await since(mapper.revert({ name: 'd' }))).toContain('a.revert');
    failing['a.postsuspend'] = false;
    failing['a.revert'] = true;
    await expect(mapper.revert({ name: 'd' })).rejects.toThrow('told to fail revert');
    expect((await mapper.info({ name: 'd' })).suspended).toBe(false);
    await activate('z', [spec('zero')]);
    await expect(mapper.revert({ name: 'z' })).rejects.toMatchObject({ errno: 'EINVAL', code: 'NO_SNAPSHOT' });
  });

  test('a message reaches the target of its sector, also while the device is suspended', async () => {
    await activate('d', [spec('zero'), spec('recorder', 'a', 8)]);
    await mapper.suspend({ name: 'd' });
    expect(await mapper.message({ name: 'd' }, 15, 'one two\\ three')).toBe('one|two three');
    await expect(mapper.message({ name: 'd' }, 7, 'one')).rejects.toMatchObject({ errno: 'EINVAL' });
    await expect(mapper.message({ name: 'd' }, 16, 'one')).rejects.toMatchObject({ errno: 'EINVAL' });
  });
});

test('words of a message are split at white space, a backslash takes the next character', () => {
  expect(splitMessage(' a\tb\\ c  d\\\\e \\"')).toEqual(['a', 'b c', 'd\\e', '"']);
});

test('a suspend whose flush fails reports it and leaves the device active', async () => {
  const failing = new FailingDevice(disks.disks.get('1:0')!);
  disks.add(failing);
  await activate('d', [spec('linear', '1:0 0')]);
  failing.fail(['flush'], { errno: 'ENOSPC' });
  await expect(mapper.suspend({ name: 'd' })).rejects.toMatchObject({ errno: 'ENOSPC' });
  expect((await mapper.info({ name: 'd' })).suspended).toBe(false);
  expect(mapper.device({ name: 'd' }).read(bytes(0), new Uint8Array(512), 0, 512)).toBe(undefined);
  expect((await mapper.suspend({ name: 'd' }, { nolockfs: true })).suspended).toBe(true);
});

test('what was asked for while a device suspends is answered at once', async () => {
  const slow = new SlowDevice(disks.disks.get('1:0')!);
  disks.add(slow);
  await activate('d', [spec('linear', '1:0 0')]);
  await activate('other', [spec('linear', '1:1 0')]);
  slow.stop();
  const reading = mapper.device({ name: 'd' }).read(bytes(0), new Uint8Array(512), 0, 512);
  const suspending = mapper.suspend({ name: 'd' });
  await mapper.list();
  await mapper.table({ name: 'd' });
  await mapper.status({ name: 'd' });
  await mapper.load({ name: 'd' }, [spec('zero')]);
  await mapper.clear({ name: 'd' });
  await mapper.rename({ name: 'd' }, 'e');
  await mapper.suspend({ name: 'other' });
  await mapper.resume({ name: 'other' });
  slow.go();
  await Promise.all([reading, suspending]);
  expect((await mapper.info({ name: 'e' })).suspended).toBe(true);
});

test('loads of one device are serialised, the last one is in the slot', async () => {
  await mapper.create('d');
  await Promise.all([
    mapper.load({ name: 'd' }, [spec('linear', '1:0 0')]),
    mapper.load({ name: 'd' }, [spec('linear', '1:1 0')]),
  ]);
  expect((await mapper.table({ name: 'd' }, { inactive: true }))[0].text).toBe('1:1 0');
  expect([...disks.opened.keys()]).toEqual(['1:1']);
});

test('a device removed while a table is built for it takes the table with it', async () => {
  await mapper.create('d');
  const loading = mapper.load({ name: 'd' }, [spec('linear', '1:0 0')]);
  const removing = mapper.remove({ name: 'd' });
  const again = mapper.create('d');
  await expect(loading).rejects.toMatchObject({ errno: 'ENXIO' });
  await removing;
  await again;
  expect((await mapper.list()).map(({ name }) => name)).toEqual(['d']);
  expect(disks.opened.size).toBe(0);
});

test('two devices that are put over each other at the same time cannot both be', async () => {
  await activate('a', [spec('zero')]);
  await activate('b', [spec('zero')]);
  const loads = await Promise.allSettled([
    mapper.load({ name: 'a' }, [spec('linear', 'b 0')]),
    mapper.load({ name: 'b' }, [spec('linear', 'a 0')]),
  ]);
  expect(loads.map(({ status }) => status).sort()).toEqual(['fulfilled', 'rejected']);
});

test('one disk is one object for all tables, whatever it is called', async () => {
  await activate('a', [spec('linear', '/dev/ram0 0'), spec('linear', '1:0 64', 8)]);
  await activate('b', [spec('linear', '1:0 0')]);
  const [first] = mapper.device({ name: 'a' }).liveTable!.devices;
  expect(mapper.device({ name: 'a' }).liveTable!.devices).toHaveLength(1);
  expect(mapper.device({ name: 'b' }).liveTable!.devices[0].device).toBe(first.device);
});

test('a disk that was opened for reading becomes writable when a table wants to write', async () => {
  await mapper.create('r');
  await mapper.load({ name: 'r' }, [spec('linear', '1:0 0')], { readOnly: true });
  await mapper.resume({ name: 'r' });
  expect(disks.opened.get('1:0')).toBe('r');
  const device = mapper.device({ name: 'r' }).liveTable!.devices[0].device;
  await activate('w', [spec('linear', '1:0 0')]);
  expect(disks.opened.get('1:0')).toBe('rw');
  expect(mapper.device({ name: 'w' }).liveTable!.devices[0].device).toBe(device);
});

test('a disk that is opened again while it closes is opened after that', async () => {
  const events: string[] = [];
  let begun = () => {};
  const closing = new Promise<void>((resolve) => (begun = resolve));
  const open = disks.open.bind(disks);
  disks.open = async (name, mode) => {
    events.push('open');
    const device = await open(name, mode);
    const close = device.close.bind(device);
    device.close = async () => {
      begun();
      await turn();
      events.push('closed');
      await close();
    };
    return device;
  };
  await activate('a', [spec('linear', '1:0 0')]);
  const removing = mapper.remove({ name: 'a' });
  await closing;
  await Promise.all([removing, activate('b', [spec('linear', '1:0 0')])]);
  await activate('c', [spec('linear', '1:0 0')]);
  expect(events).toEqual(['open', 'closed', 'open']);
  expect(disks.opened.size).toBe(1);
});

test('a table that opens a disk to read and again to write holds it once, to write', async () => {
  const both: TargetType = {
    ...linear,
    name: 'both',
    async create(line) {
      await line.open(line.args[0], 'r');
      return linear.create(line);
    },
  };
  mapper = new Mapper({ opener: disks, types: [both, linear] });
  await activate('disk', [spec('both', '1:0 0')]);
  expect(disks.opened.get('1:0')).toBe('rw');
  await activate('upper', [spec('both', 'disk 0')]);
  expect((await mapper.info({ name: 'disk' })).openCount).toBe(1);
  await mapper.remove({ name: 'upper' });
  expect((await mapper.info({ name: 'disk' })).openCount).toBe(0);
});

test('a table that is replaced is closed only when its messages have been answered', async () => {
  const log: string[] = [];
  let answer = (_reply: string) => {};
  const slow: TargetType = {
    ...zero,
    name: 'slow',
    create: async (line) => ({
      ...(await zero.create(line)),
      message: () => new Promise((resolve) => (answer = resolve)),
      close: async () => void log.push('closed'),
    }),
  };
  mapper = new Mapper({ opener: disks, types: [slow, zero] });
  await activate('d', [spec('slow')]);
  const reply = mapper.message({ name: 'd' }, 0, 'hello');
  await mapper.load({ name: 'd' }, [spec('zero')]);
  const resuming = mapper.resume({ name: 'd' });
  for (let count = 0; count < 5; count++) await turn();
  expect(log).toEqual([]);
  answer('answered');
  expect(await reply).toBe('answered');
  await resuming;
  expect(log).toEqual(['closed']);
});

test('limits of 4096-byte blocks are stacked and checked', async () => {
  const disk = disks.ram(2, 1024);
  Object.assign(disk, { blockSize: 4096 });
  await activate('d', [spec('linear', '1:2 0'), spec('linear', '1:0 0', 8)]);
  expect(mapper.device({ name: 'd' }).blockSize).toBe(4096);
  await mapper.create('x');
  const load = (table: TargetSpec[]) => mapper.load({ name: 'x' }, table);
  await expect(load([spec('linear', '1:2 4')])).rejects.toThrow('start=4 not aligned');
  await expect(load([spec('linear', '1:2 0', 0, 4)])).rejects.toThrow('len=4 not aligned');
  await expect(load([spec('linear', '1:2 0'), spec('zero', '', 8, 4)])).rejects.toThrow('not aligned');
  await expect(load([spec('zero', '', 0, 4), spec('linear', '1:2 0', 4, 8), spec('zero', '', 12, 4)])).rejects.toThrow(
    'not aligned',
  );
  await load([spec('linear', '1:2 0'), spec('zero', '', 8, 4), spec('zero', '', 12, 4)]);
});

test('a table without devices keeps the limits, a changed size wipes the geometry', async () => {
  Object.assign(disks.ram(2, 1024), { blockSize: 4096 });
  await activate('d', [spec('linear', '1:2 0')]);
  await mapper.setGeometry({ name: 'd' }, [1, 2, 4, 0]);
  await mapper.load({ name: 'd' }, [spec('zero')]);
  await mapper.resume({ name: 'd' });
  const device = mapper.device({ name: 'd' });
  expect([device.blockSize, device.geometry]).toEqual([4096, [1, 2, 4, 0]]);
  await mapper.load({ name: 'd' }, [spec('zero', '', 0, 16)]);
  await mapper.resume({ name: 'd' });
  expect(device.geometry).toBe(undefined);
  for (const bad of [
    [65536, 1, 1, 0],
    [1, 256, 1, 0],
    [1, 1, 256, 0],
    [2, 3, 4, 25],
    [-1, 1, 1, 0],
  ] as const)
    await expect(mapper.setGeometry({ name: 'd' }, [...bad])).rejects.toMatchObject({ errno: 'EINVAL' });
});

test('read ahead: automatic, asked for, or a minimum', async () => {
  const readAhead = async (options: object) => {
    await mapper.create('d', options);
    await mapper.load({ name: 'd' }, [spec('striped', '2 128 1:0 0 1:1 0', 0, 256)]);
    const { readAhead } = await mapper.resume({ name: 'd' });
    await mapper.remove({ name: 'd' });
    return readAhead;
  };
  expect(await readAhead({})).toBe(512);
  expect(await readAhead({ readAhead: -1 })).toBe(512);
  expect(await readAhead({ readAhead: 0 })).toBe(0);
  expect(await readAhead({ readAhead: 8 })).toBe(8);
  expect(await readAhead({ readAhead: 8, readAheadMinimum: true })).toBe(512);
  expect(await readAhead({ readAhead: 1024, readAheadMinimum: true })).toBe(1024);
});

test('an answer at once costs no promise', async () => {
  await activate('d', [spec('linear', '1:0 0'), spec('striped', '2 8 1:0 8 1:1 8', 8, 48), spec('zero', '', 56)]);
  await activate('top', [spec('linear', 'd 0', 0, 64)]);
  const device = mapper.device({ name: 'top' });
  const buffer = new Uint8Array(64 * SECTOR);
  expect(device.write(bytes(0), buffer, 0, buffer.length)).toBe(undefined);
  expect(device.read(bytes(0), buffer, 0, buffer.length)).toBe(undefined);
  expect(device.writeZeroes(bytes(0), buffer.length, true)).toBe(undefined);
  expect(device.flush()).toBe(undefined);
});

test('requests beyond the device fail', async () => {
  await activate('d', [spec('linear', '1:0 0')]);
  const device = mapper.device({ name: 'd' });
  const beyond = expect.objectContaining({ errno: 'EIO', code: 'OUT_OF_RANGE' });
  const buffer = new Uint8Array(1024);
  for (const at of [-512, 7 * SECTOR, 8 * SECTOR, 2 ** 60]) {
    expect(() => device.read(bytes(at), buffer, 0, 1024)).toThrow(beyond);
    expect(() => device.write(bytes(at), buffer, 0, 1024)).toThrow(beyond);
    expect(() => device.discard(bytes(at), 1024)).toThrow(beyond);
    expect(() => device.writeZeroes(bytes(at), 1024, false)).toThrow(beyond);
    expect(() => device.extents(bytes(at), 1024)).toThrow(beyond);
    expect(() => device.changed(bytes(at), 1024)).toThrow(beyond);
  }
});

test('a target without an origin is unchanged', async () => {
  await activate('d', [spec('linear', '1:0 0'), spec('zero', '', 8)]);
  const device = mapper.device({ name: 'd' });
  expect(device.hasOrigin).toBe(false);
  expect(await device.changed(bytes(0), 16 * SECTOR)).toEqual([{ length: 16 * SECTOR, changed: false }]);
});

test('changes are told after they happened, and waited for', async () => {
  const told: string[] = [];
  mapper = new Mapper({
    opener: disks,
    async onChange(kind, device) {
      await turn();
      told.push(
        `${kind} ${device.storedName}${device.liveTable ? ' live' : ''}${device.suspended ? ' suspended' : ''}`,
      );
    },
  });
  await activate('a', [spec('zero')]);
  await mapper.suspend({ name: 'a' });
  await mapper.resume({ name: 'a' });
  await mapper.setUuid({ name: 'a' }, 'U');
  await mapper.remove({ name: 'a' });
  expect(told).toEqual([
    'create a',
    'table a live',
    'suspend a live suspended',
    'resume a live',
    'event a live',
    'change a live',
    'remove a',
  ]);
});

test('a table names files, and its text loads again even where a path has blanks', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'dmkit-mapper-'));
  try {
    const path = join(directory, 'a disk.img');
    await writeFile(path, new Uint8Array(16 * SECTOR).fill(3));
    mapper = new Mapper();
    await mapper.create('f');
    await mapper.load({ name: 'f' }, [spec('linear', 'a\\ disk.img 0', 0, 16)], { directory });
    await mapper.resume({ name: 'f' });
    const [{ text }] = await mapper.table({ name: 'f' });
    expect(text).toBe(`${path.replaceAll(' ', '\\ ')} 0`);
    expect((await mapper.info({ name: 'f' })).deps).toEqual([{ major: 0, minor: 0, name: path }]);
    await mapper.load({ name: 'f' }, [spec('linear', text, 0, 16)]);
    await mapper.resume({ name: 'f' });
    const sector = new Uint8Array(512);
    await mapper.device({ name: 'f' }).read(bytes(0), sector, 0, 512);
    expect(sector[0]).toBe(3);
    await mapper.remove({ name: 'f' });
  } finally {
    await rm(directory, { recursive: true });
  }
});
