import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { MemoryDevice } from '../../device/memory.ts';
import { Mapper } from '../../mapper/mapper.ts';
import type { Target, TargetType } from '../../targets/target.ts';
import { FakeClock } from '../../testing/fake-clock.ts';
import { FakeDisks } from '../../testing/fake-disks.ts';
import { bytes, SECTOR, sector } from '../../units.ts';
import { EventLog } from './event-log.ts';
import { type Fill, fillOf, percentOf } from './fill.ts';
import { Monitor } from './monitor.ts';

let disks: FakeDisks;
let mapper: Mapper;
let log: EventLog;
let clock: FakeClock;
let monitor: Monitor;
let needed: boolean;
let filled: [name: string, cow: string, fill: Fill][];
/** What targets of the type `snapshot-merge` say here. */
let merging: string;

beforeEach(async () => {
  disks = new FakeDisks();
  disks.ram(0, 4096);
  disks.ram(1, 100);
  clock = new FakeClock();
  log = new EventLog();
  needed = false;
  filled = [];
  merging = '';
  await restart();
});

afterEach(async () => {
  monitor.close();
  await mapper.close();
});

async function restart() {
  mapper = new Mapper({
    opener: disks,
    onChange: (kind, device) => monitor.changed(kind, device),
    enlarge(device) {
      monitor.full(device);
      return false;
    },
    types: [...(await realTypes()), saying],
  });
  monitor = new Monitor({
    mapper,
    log,
    clock,
    needed: () => needed,
    filled: (device, cow, fill) => filled.push([device.storedName, cow.name, fill]),
  });
}

async function realTypes(): Promise<TargetType[]> {
  const { targetTypes } = await import('../../mapper/registry.ts');
  return targetTypes.filter(({ name }) => name !== 'snapshot-merge');
}

/** A merge whose progress the test decides on. */
const saying: TargetType = {
  name: 'snapshot-merge',
  version: [1, 5, 0],
  async create(line): Promise<Target> {
    const device = await line.open(line.args[0], 'r');
    const cow = await line.open(line.args[1], 'r');
    const nothing = () => {};
    return {
      ranges: [
        { device, start: sector(0), length: line.length },
        { device: cow, start: sector(0), length: sector(cow.size / SECTOR) },
      ],
      canDiscard: false,
      read: nothing,
      write: nothing,
      flush: nothing,
      discard: nothing,
      writeZeroes: nothing,
      extents: () => [],
      status: () => merging,
      close: async () => {},
    };
  },
};

async function create(name: string, args: string) {
  await mapper.create(name);
  await load(name, args);
}

async function load(name: string, args: string) {
  const [type, ...words] = args.split(' ');
  await mapper.load({ name }, [{ start: 0, length: 4096, type, args: words.join(' ') }]);
  await mapper.resume({ name });
}

/** Writes sectors of the snapshot, of which each takes a chunk. */
async function write(name: string, from: number, count: number) {
  const data = new Uint8Array(count * SECTOR);
  await mapper.device({ name }).write(bytes(from * SECTOR), data, 0, data.length);
}

/** What came since the call before, in short; `after` undefined: from now on. */
let after: number | undefined;
async function told(): Promise<string[]> {
  const { next } = await monitor.events();
  if (after === undefined || next === after) {
    after = next;
    return [];
  }
  const batch = await monitor.events(after);
  after = batch.next;
  return batch.events.map(({ sequence, time, device, uuid, event, ...rest }) =>
    [event, device, ...Object.entries(rest).map(([name, value]) => `${name}=${value}`)].join(' '),
  );
}

beforeEach(() => {
  after = undefined;
});

describe('what happens to a device', () => {
  test('is told at once, with the kernel’s events beside it', async () => {
    await told();
    await create('dev', 'linear /dev/ram0 0');
    expect(await told()).toEqual(['create dev', 'table dev']);
    await mapper.suspend({ name: 'dev' });
    await mapper.resume({ name: 'dev' });
    expect(await told()).toEqual(['suspend dev', 'resume dev']);
    await mapper.rename({ name: 'dev' }, 'new');
    expect(await told()).toEqual(['rename new from=dev', 'table-event new number=1']);
    await mapper.setUuid({ name: 'new' }, 'U');
    expect(await told()).toEqual(['table-event new number=2', 'change new']);
    await mapper.setGeometry({ name: 'new' }, [1, 1, 1, 0]);
    expect(await told()).toEqual(['change new']);
    await load('new', 'zero');
    expect(await told()).toEqual(['table new']);
    await mapper.remove({ name: 'new' });
    expect(await told()).toEqual(['table-event new number=3', 'remove new']);
  });

  test('is told without an event where the kernel raises none: a device without a table', async () => {
    await told();
    await mapper.create('dev');
    await mapper.rename({ name: 'dev' }, 'new');
    await mapper.rename({ name: 'new' }, 'newer');
    await mapper.remove({ name: 'newer' });
    expect(await told()).toEqual(['create dev', 'rename new from=dev', 'rename newer from=new', 'remove newer']);
  });

  test('is told of those that were there before', async () => {
    await create('dev', 'linear /dev/ram0 0');
    const saved = mapper.save({ name: 'dev' });
    await mapper.close();
    await restart();
    await mapper.restore([{ ...saved, eventNumber: 7 }]);
    monitor.begin();
    await told();
    await mapper.rename({ name: 'dev' }, 'new');
    expect(await told()).toEqual(['rename new from=dev', 'table-event new number=8']);
  });
});

describe('a snapshot', () => {
  /** 100 chunks of a sector: a percent each; three of them are metadata at first, five at most. */
  const make = (store = 'P') => create('snap', `snapshot /dev/ram0 /dev/ram1 ${store} 1`);
  const look = async () => {
    clock.pass(1000);
    return told();
  };

  test('tells every 5 percent that it fills, once, and what it skipped in one', async () => {
    await told();
    await make();
    await told();
    expect(await look()).toEqual([]);
    await write('snap', 0, 7);
    expect(await look()).toEqual(['fill snap cow=1:1 percent=5 used=4608 size=51200']);
    expect(await look()).toEqual([]);
    await write('snap', 7, 1);
    expect(await look()).toEqual(['fill snap cow=1:1 percent=10 used=5120 size=51200']);
    await write('snap', 8, 4);
    expect(await look()).toEqual([]);
    await write('snap', 12, 30);
    expect(await look()).toEqual(['fill snap cow=1:1 percent=45 used=23040 size=51200']);
  });

  test('whose COW device was made larger tells the same percents again', async () => {
    await told();
    await make();
    await write('snap', 0, 8);
    await told();
    expect(await look()).toEqual(['fill snap cow=1:1 percent=10 used=5120 size=51200']);
    (disks.disks.get('1:1') as MemoryDevice).size = bytes(120 * SECTOR);
    expect(await look()).toEqual([]);
    await write('snap', 8, 3);
    expect(await look()).toEqual(['fill snap cow=1:1 percent=10 used=6656 size=61440']);
  });

  test('that overflows tells so at once, and has no event of the kernel’s', async () => {
    await told();
    // Not at the end of an area, where the kernel's snapshot becomes invalid instead.
    (disks.disks.get('1:1') as MemoryDevice).size = bytes(98 * SECTOR);
    await make('PO');
    await told();
    await expect((async () => write('snap', 0, 120))()).rejects.toMatchObject({ errno: 'EIO' });
    expect(await told()).toEqual(['overflow snap cow=1:1']);
    expect(await look()).toEqual([]);
    expect((await mapper.info({ name: 'snap' })).eventNumber).toBe(0);
  });

  test('that becomes invalid tells so at once, with the kernel’s event', async () => {
    await told();
    await make();
    await told();
    await expect((async () => write('snap', 0, 120))()).rejects.toMatchObject({ errno: 'EIO' });
    expect(await told()).toEqual(['table-event snap number=1', 'invalid snap cow=1:1']);
    expect(await look()).toEqual([]);
  });

  test('that is loaded invalid tells nothing of it', async () => {
    await make();
    await (async () => write('snap', 0, 120))().catch(() => {});
    await mapper.remove({ name: 'snap' });
    await told();
    await make();
    expect(await told()).toEqual(['create snap', 'table snap']);
    expect((await mapper.status({ name: 'snap' }))[0].text).toBe('Invalid');
    expect(await look()).toEqual([]);
  });

  test('that was half full when somebody began to watch tells only what comes then', async () => {
    await make();
    await write('snap', 0, 50);
    await told();
    expect(await look()).toEqual([]);
    await write('snap', 50, 5);
    expect(await look()).toEqual(['fill snap cow=1:1 percent=55 used=29696 size=51200']);
  });

  test('is looked at while somebody watches, or it is needed', async () => {
    await make();
    clock.pass(60_000);
    expect([clock.timers, filled.length]).toEqual([0, 0]);
    await told();
    expect(clock.timers).toBe(1);
    clock.pass(9000);
    expect([clock.timers, filled.length]).toEqual([1, 10]);
    clock.pass(2000);
    expect(clock.timers).toBe(0);
    needed = true;
    await load('snap', 'snapshot /dev/ram0 /dev/ram1 P 1');
    clock.pass(60_000);
    expect(clock.timers).toBe(1);
    expect(filled.at(-1)).toEqual(['snap', '1:1', { allocated: 1024, metadata: 1024, total: 51200 }]);
    needed = false;
    clock.pass(1000);
    expect(clock.timers).toBe(0);
  });

  test('is looked at as long as a reader waits, and no longer when the monitor is closed', async () => {
    await make();
    const { next } = await monitor.events();
    const reader = monitor.events(next);
    clock.pass(60_000);
    expect(clock.timers).toBe(1);
    await write('snap', 0, 8);
    clock.pass(1000);
    expect((await reader).events).toMatchObject([{ event: 'fill', percent: 10 }]);
    monitor.close();
    expect(clock.timers).toBe(0);
    await monitor.events();
    expect(clock.timers).toBe(0);
  });
});

describe('a merge', () => {
  const look = async (text: string) => {
    merging = text;
    clock.pass(1000);
    return told();
  };
  const make = async (text: string) => {
    merging = text;
    await create('disk', 'snapshot-merge /dev/ram0 /dev/ram1 P 1');
  };

  test('tells every 5 percent of what there was to merge, and its end', async () => {
    await told();
    await make('102/1000 2');
    expect(await told()).toEqual(['create disk', 'table disk']);
    expect(await look('98/1000 2')).toEqual([]);
    expect(await look('97/1000 2')).toEqual(['merge disk cow=1:1 percent=5 left=48640']);
    expect(await look('97/1000 2')).toEqual([]);
    expect(await look('3/1000 2')).toEqual(['merge disk cow=1:1 percent=95 left=512']);
    expect(await look('2/1000 2')).toEqual(['merge-done disk cow=1:1']);
    expect(await look('2/1000 2')).toEqual([]);
  });

  test('that is over before anybody looks tells its end all the same', async () => {
    await told();
    await make('2/1000 2');
    expect(await told()).toEqual(['create disk', 'table disk', 'merge-done disk cow=1:1']);
  });

  test('that ends just before another table takes its place tells its end', async () => {
    await told();
    await make('102/1000 2');
    await told();
    merging = '2/1000 2';
    await mapper.suspend({ name: 'disk' });
    await load('disk', 'snapshot-origin /dev/ram0');
    expect(await told()).toEqual(['suspend disk', 'merge-done disk cow=1:1', 'table disk']);
  });

  test('that was over when somebody began to watch tells nothing', async () => {
    await make('2/1000 2');
    await told();
    expect(await look('2/1000 2')).toEqual([]);
  });

  test('that fails tells so, and has no event of the kernel’s', async () => {
    await told();
    await make('102/1000 2');
    await told();
    expect(await look('Merge failed')).toEqual(['merge-failed disk cow=1:1']);
    expect(await look('Merge failed')).toEqual([]);
  });
});

test.each([
  ['2/100 2', 0],
  ['100/100 4', 100],
  ['50/100 4', 50],
  ['12/8 2', 100],
])('%s is %i percent', (text, percent) => {
  expect(percentOf(fillOf(text)!)).toBe(percent);
});

test.each(['Invalid', 'Overflow', 'Merge failed', '', '1/2', 'x/y z'])('%j has no numbers', (text) => {
  expect(fillOf(text)).toBeUndefined();
});
