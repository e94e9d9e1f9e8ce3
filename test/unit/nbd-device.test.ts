import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { NbdDevice, type NbdOptions, sectorExtents } from '../../src/device/nbd.ts';
import { Disks } from '../../src/device/open.ts';
import { CHUNK, CMD, CMD_FLAG, FLAG, OPT, REP } from '../../src/formats/nbd/constants.ts';
import { optionReply } from '../../src/formats/nbd/handshake.ts';
import { bytes } from '../../src/units.ts';
import { deviceSuite } from '../support/device-suite.ts';
import { type FakeServer, fakeServer } from './nbd-fake-server.ts';
import { delayed, filled, MiB, serve, start } from './nbd-support.ts';

const over = (name: string, device: MemoryDevice, wrap = (inner: MemoryDevice) => inner as never) =>
  deviceSuite(`an NBD export of ${name}`, async () => {
    const served = await start({ disk: wrap(device) });
    return { device: await NbdDevice.open(served.uri('disk')), cleanup: served.stop };
  });

over('memory', new MemoryDevice(4 * MiB));
let turns = 0;
over('memory that answers later', new MemoryDevice(4 * MiB), (inner) => delayed(inner, () => turns++ % 4) as never);
over('memory with blocks of 4096 bytes', new MemoryDevice(4 * MiB, { blockSize: 4096 }));

const open = async (uri: string, mode: 'r' | 'rw' = 'rw', options: NbdOptions = {}) => {
  const device = await NbdDevice.open(uri, mode, options);
  onTestFinished(() => device.close());
  return device;
};
const read = async (device: NbdDevice, at: number, length: number) => {
  const data = Buffer.alloc(length, 0xee);
  await device.read(bytes(at), data, 0, length);
  return data;
};
const write = (device: NbdDevice, at: number, length: number, fill = 1) =>
  device.write(bytes(at), Buffer.alloc(length, fill), 0, length);

describe('NbdDevice and NbdServer', () => {
  it('keep many requests in flight over one connection', async () => {
    const memory = filled(8 * MiB);
    let now = 0;
    let most = 0;
    const slow = Object.assign(
      delayed(memory, () => 0),
      {
        async read(at: number, into: Uint8Array, from: number, length: number) {
          most = Math.max(most, ++now);
          for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
          memory.read(bytes(at), into, from, length);
          now--;
        },
      },
    );
    const { uri } = await serve({ disk: slow });
    const device = await open(uri('disk'));
    const all = await Promise.all(Array.from({ length: 512 }, (_, i) => read(device, i * 8192, 4096)));
    for (const [i, data] of all.entries()) {
      const expected = Buffer.alloc(4096);
      memory.read(bytes(i * 8192), expected, 0, 4096);
      expect(data.equals(expected)).toBe(true);
    }
    expect(most).toBeGreaterThan(16);
  });

  it('split what is larger than a request may be', async () => {
    const { uri } = await serve({ disk: new MemoryDevice(256 * MiB) }, { payloadBytes: MiB });
    const device = await open(uri('disk'));
    const data = Buffer.alloc(9 * MiB + 512);
    for (let i = 0; i < data.length; i += 512) data.writeUInt32BE(i, i);
    await device.write(bytes(512), data, 0, data.length);
    expect((await read(device, 512, data.length)).equals(data)).toBe(true);
  });

  it('pass the errno and the text of an error', async () => {
    const memory = new MemoryDevice(MiB);
    const { uri } = await serve({ disk: memory });
    const device = await open(uri('disk'));
    memory.size = bytes(512);
    await expect(read(device, 4096, 512)).rejects.toMatchObject({
      code: 'NBD_REMOTE',
      errno: 'EINVAL',
      message: expect.stringMatching(/Cannot read 512 bytes at 4096 of nbd\+unix:.*the device has 512/),
    });
  });

  it('agree on what is read-only', async () => {
    const memory = new MemoryDevice(MiB);
    const { uri } = await serve({ disk: memory });
    const device = await open(uri('disk'), 'r');
    expect(() => write(device, 0, 512)).toThrow(expect.objectContaining({ errno: 'EPERM' }));
    await device.allowWrites();
    await write(device, 0, 512);
    memory.readOnly = true;
    expect((await open(uri('disk'))).readOnly).toBe(true);
  });

  it('name a missing export, a missing server and a wrong URI', async () => {
    const { uri, path } = await serve({ disk: new MemoryDevice(MiB) });
    await expect(NbdDevice.open(uri('nope'))).rejects.toMatchObject({
      code: 'NBD_EXPORT',
      errno: 'ENOENT',
      message: `Cannot open ${uri('nope')}: no such export (the server says: there is no device nope)`,
    });
    await expect(NbdDevice.open(`nbd+unix:///?socket=${path}-gone`)).rejects.toMatchObject({
      code: 'NBD_CONNECT',
      errno: 'ENOENT',
    });
    await expect(NbdDevice.open('nbd+unix:///x')).rejects.toMatchObject({ code: 'NBD_URI' });
  });

  it('are found by URI among the disks', async () => {
    const { uri } = await serve({ disk: filled(MiB) });
    const disks = new Disks();
    const identity = await disks.identify(uri('disk').replace('nbd+unix', 'NBD+UNIX'));
    expect(identity).toBe(uri('disk'));
    const device = await disks.open(identity, 'rw');
    onTestFinished(() => device.close());
    expect(device.name).toBe(uri('disk'));
    expect(device.size).toBe(MiB);
    await expect(disks.identify('nbd+unix:///a?socket=relative')).rejects.toMatchObject({ code: 'NBD_URI' });
  });
});

describe('the client, with other servers', () => {
  it('falls back to EXPORT_NAME', async () => {
    const fake = await fakeServer();
    fake.knowsGo = false;
    const device = await open(fake.uri);
    expect(device.size).toBe(MiB);
    expect(await read(device, 0, 512)).toEqual(Buffer.alloc(512));
    expect(await device.extents(bytes(0), 4096)).toEqual([{ length: 4096, hole: false, zero: false }]);
  });

  it('writes zeroes to a server that cannot, and does not flush one that does not', async () => {
    const fake = await fakeServer();
    fake.flags = FLAG.HAS_FLAGS;
    const device = await open(fake.uri);
    await device.writeZeroes(bytes(512), 4096, true);
    expect(device.flush()).toBeUndefined();
    expect(fake.seen).toMatchObject([{ type: CMD.WRITE, offset: 512, length: 4096, data: Buffer.alloc(4096) }]);
    expect(device.canDiscard).toBe(false);
    expect(() => device.discard(bytes(0), 512)).toThrow(expect.objectContaining({ errno: 'EOPNOTSUPP' }));
  });

  it('says NO_HOLE when space must stay', async () => {
    const fake = await fakeServer();
    const device = await open(fake.uri);
    await device.writeZeroes(bytes(0), 512, true);
    await device.writeZeroes(bytes(0), 512, false);
    expect(fake.seen.map(({ flags }) => flags)).toEqual([0, CMD_FLAG.NO_HOLE]);
  });

  it('reads data, holes and errors in chunks of any order', async () => {
    const fake = await fakeServer((request, connection) => {
      const at = (offset: number, ...rest: number[]) => {
        const data = Buffer.alloc(8 + 4 * rest.length);
        data.writeUInt32BE(offset, 4);
        for (const [i, number] of rest.entries()) data.writeUInt32BE(number, 8 + 4 * i);
        return data;
      };
      if (request.offset === 0) {
        connection.chunk(request, CHUNK.OFFSET_HOLE, at(1024, 1024), 0);
        connection.chunk(request, CHUNK.OFFSET_DATA, Buffer.concat([at(0), Buffer.alloc(1024, 5)]), 0);
        connection.chunk(request, CHUNK.NONE, Buffer.alloc(0));
      } else {
        const error = Buffer.concat([Buffer.from([0, 0, 0, 28, 0, 4]), Buffer.from('full'), Buffer.alloc(8)]);
        connection.chunk(request, CHUNK.ERROR_OFFSET, error, 0);
        connection.chunk(request, CHUNK.NONE, Buffer.alloc(0));
      }
    });
    fake.structured = true;
    const device = await open(fake.uri);
    expect(await read(device, 0, 2048)).toEqual(Buffer.concat([Buffer.alloc(1024, 5), Buffer.alloc(1024)]));
    await expect(read(device, 512, 512)).rejects.toMatchObject({
      errno: 'ENOSPC',
      message: expect.stringMatching(/: full$/),
    });
  });

  it.each<[string, Partial<FakeServer>, RegExp]>([
    ['another protocol', { hello: Buffer.from('HTTP/1.1 400 Bad Request\r\n') }, /is no NBD server/],
    [
      'the oldstyle protocol',
      { hello: Buffer.from('4e42444d4147494300420281861253'.padEnd(304, '0'), 'hex') },
      /oldstyle/,
    ],
    ['a size above 2^53', { size: 2 ** 60 }, /says that the export has/],
    ['a size that is no multiple of 512', { size: 1000 }, /1000 bytes, which is not a multiple of 512/],
    ['blocks of no power of two', { blocks: { minimum: 1000, maximum: MiB } }, /blocks are from 1000/],
    ['huge blocks', { blocks: { minimum: MiB, maximum: MiB } }, /blocks are from 1048576/],
    ['a maximum below the minimum', { blocks: { minimum: 4096, maximum: 512 } }, /blocks are from 4096 to 512/],
    ['a maximum below a sector', { blocks: { minimum: 1, maximum: 100 } }, /no more than 100/],
    ['a demand for TLS', { option: () => optionReply(OPT.GO, REP.ERR_TLS_REQD) }, /answered option 7|TLS/],
    [
      'an endless reply',
      { option: (number) => Buffer.concat([optionReply(number, REP.INFO).subarray(0, 16), Buffer.alloc(4, 0x7f)]) },
      /reply of 2139062143 bytes/,
    ],
    [
      'replies without end',
      { option: (number) => Buffer.concat(Array.from({ length: 1001 }, () => optionReply(number, REP.INFO))) },
      /more than 1000 replies/,
    ],
    ['a reply without magic', { option: () => Buffer.alloc(20) }, /without its magic/],
    [
      'silence about the size',
      { option: (number) => (number === OPT.GO ? optionReply(number, REP.ACK) : undefined) },
      /how large/,
    ],
  ])('refuses a server with %s', async (_what, change, message) => {
    const fake = Object.assign(await fakeServer(), change);
    await expect(NbdDevice.open(fake.uri)).rejects.toThrow(message);
  });

  it.each<[string, FakeServer['request'], RegExp]>([
    ['a reply without magic', (_request, { socket }) => void socket.write(Buffer.alloc(16)), /without its magic/],
    ['a cookie of nobody', (request, connection) => connection.simple({ ...request, cookieLow: 99 }), /not sent/],
    [
      'a simple reply to a structured read',
      (request, connection) => connection.simple(request, 0, Buffer.alloc(512)),
      /simple reply/,
    ],
    [
      'data of elsewhere',
      (request, connection) =>
        connection.chunk(
          request,
          CHUNK.OFFSET_DATA,
          Buffer.concat([Buffer.from([0, 0, 0, 0, 0, 1, 0, 0]), Buffer.alloc(512)]),
        ),
      /not asked for/,
    ],
    [
      'more data than asked for',
      (request, connection) => connection.chunk(request, CHUNK.OFFSET_DATA, Buffer.alloc(8 + 1024)),
      /not asked for/,
    ],
    [
      'the same data twice',
      (request, connection) => {
        connection.chunk(request, CHUNK.OFFSET_DATA, Buffer.alloc(8 + 512), 0);
        connection.chunk(request, CHUNK.OFFSET_DATA, Buffer.alloc(8 + 512), 0);
      },
      /not asked for/,
    ],
    [
      'less data than asked for',
      (request, connection) => connection.chunk(request, CHUNK.OFFSET_DATA, Buffer.alloc(8 + 256)),
      /left out data/,
    ],
    [
      'a hole of elsewhere',
      (request, connection) =>
        connection.chunk(request, CHUNK.OFFSET_HOLE, Buffer.from([0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0])),
      /hole that was not/,
    ],
    [
      'a chunk of an unknown type',
      (request, connection) => connection.chunk(request, 77, Buffer.alloc(0)),
      /chunk of type 77/,
    ],
    [
      'block status for a read',
      (request, connection) => connection.chunk(request, CHUNK.BLOCK_STATUS, Buffer.alloc(12)),
      /chunk of type 5/,
    ],
    [
      'an error longer than its chunk',
      (request, connection) => connection.chunk(request, CHUNK.ERROR, Buffer.from([0, 0, 0, 5, 255, 255])),
      /error longer/,
    ],
    [
      'a chunk shorter than its type',
      (request, connection) => connection.chunk(request, CHUNK.OFFSET_DATA, Buffer.alloc(4)),
      /chunk of type 1 and 4/,
    ],
  ])('drops a connection with %s, and fails when that is all there is', async (_what, request, message) => {
    const fake = await fakeServer(request);
    fake.structured = true;
    const device = await open(fake.uri, 'rw', { giveUpMs: 120 });
    await expect(read(device, 0, 512)).rejects.toMatchObject({
      code: 'NBD_GONE',
      errno: 'EIO',
      message: expect.stringMatching(message),
    });
    expect(fake.connections).toBeGreaterThan(1);
  });
});

describe('a connection that drops', () => {
  it('costs no request in flight', async () => {
    let cuts = 3;
    const fake = await fakeServer((request, connection) => {
      if (request.offset === 4096 && cuts-- > 0) return fake.cut();
      connection.simple(request, 0, request.type === CMD.READ ? Buffer.alloc(request.length, 9) : undefined);
    });
    const device = await open(fake.uri);
    const all = [0, 4096, 8192].map((at) => read(device, at, 4096));
    const writes = [write(device, 512, 512), write(device, 4096, 512)];
    for (const data of await Promise.all(all)) expect(data).toEqual(Buffer.alloc(4096, 9));
    await Promise.all(writes);
    expect(fake.connections).toBeGreaterThan(1);
    expect(cuts).toBeLessThanOrEqual(0);
  });

  it('waits for a server that restarts', async () => {
    const fake = await fakeServer();
    const device = await open(fake.uri);
    await read(device, 0, 512);
    fake.cut();
    await fake.close();
    const waiting = read(device, 0, 512);
    await fake.listen();
    expect(await waiting).toEqual(Buffer.alloc(512));
  });

  it('fails flushes from then on if acknowledged writes were not flushed', async () => {
    const fake = await fakeServer();
    const device = await open(fake.uri);
    await write(device, 0, 512);
    await write(device, 512, 512);
    fake.cut();
    expect(await read(device, 0, 512)).toEqual(Buffer.alloc(512));
    const lost = { code: 'NBD_WRITES_LOST', errno: 'EIO', message: expect.stringContaining('2 acknowledged writes') };
    await expect(device.flush()).rejects.toMatchObject(lost);
    await write(device, 0, 512);
    await expect(device.flush()).rejects.toMatchObject({ code: 'NBD_WRITES_LOST' });
    await (await open(fake.uri)).flush();
  });

  it('fails a flush in flight that would have covered them', async () => {
    const fake = await fakeServer((request, connection) => {
      if (request.type === CMD.FLUSH) return fake.cut();
      connection.simple(request);
    });
    const device = await open(fake.uri);
    await device.writeZeroes(bytes(0), 512, true);
    await expect(device.flush()).rejects.toMatchObject({ code: 'NBD_WRITES_LOST' });
  });

  it('fails no flush if all was flushed, or still in flight, or only discarded', async () => {
    let cuts = 1;
    const fake = await fakeServer((request, connection) => {
      if (request.offset === 4096 && cuts-- > 0) return fake.cut();
      connection.simple(request);
    });
    const device = await open(fake.uri);
    await write(device, 0, 512);
    await device.flush();
    await device.discard(bytes(0), 512);
    await write(device, 4096, 512);
    await device.flush();
    expect(fake.connections).toBe(2);
    expect(fake.seen.map(({ type }) => type)).toEqual([
      CMD.WRITE,
      CMD.FLUSH,
      CMD.TRIM,
      CMD.WRITE,
      CMD.WRITE,
      CMD.FLUSH,
    ]);
  });

  it('does not take a write for flushed that came after the flush was sent', async () => {
    let hold: (() => void) | undefined;
    const fake = await fakeServer((request, connection) => {
      if (request.type === CMD.FLUSH) hold = () => connection.simple(request);
      else connection.simple(request);
    });
    const device = await open(fake.uri);
    const flushed = device.flush();
    await write(device, 0, 512);
    hold?.();
    await flushed;
    fake.cut();
    await expect(device.flush()).rejects.toMatchObject({ code: 'NBD_WRITES_LOST' });
  });

  it('takes a server without flush at its word', async () => {
    const fake = await fakeServer();
    fake.flags = FLAG.HAS_FLAGS;
    const device = await open(fake.uri);
    await write(device, 0, 512);
    fake.cut();
    await write(device, 0, 512);
    expect(device.flush()).toBeUndefined();
  });

  it('sends again what a server refused because it shuts down', async () => {
    let refusals = 1;
    const fake = await fakeServer((request, connection) => connection.simple(request, refusals-- > 0 ? 108 : 0));
    const device = await open(fake.uri);
    await write(device, 0, 512);
    expect(fake.seen).toHaveLength(2);
  });

  it('is given up after a time, and mended when the server is back', async () => {
    const fake = await fakeServer();
    const device = await open(fake.uri, 'rw', { giveUpMs: 60 });
    fake.cut();
    await fake.close();
    await expect(read(device, 0, 512)).rejects.toMatchObject({ code: 'NBD_GONE', errno: 'EIO' });
    await expect(read(device, 0, 512)).rejects.toMatchObject({ code: 'NBD_GONE' });
    await fake.listen();
    for (;;) {
      const data = await read(device, 0, 512).catch(() => undefined);
      if (data) break;
      await new Promise((resolve) => setImmediate(resolve));
    }
  });

  it.each<[string, (fake: FakeServer) => void, RegExp]>([
    ['smaller', (fake) => void (fake.size = 512), /has 512 bytes now, and had 1048576/],
    ['read-only', (fake) => void (fake.flags |= FLAG.READ_ONLY), /other operations/],
    ['with other blocks', (fake) => void (fake.blocks = { minimum: 4096, maximum: MiB }), /blocks of 4096/],
  ])('is not mended by an export that is %s', async (_what, change, message) => {
    const fake = await fakeServer();
    const device = await open(fake.uri);
    change(fake);
    fake.cut();
    await expect(read(device, 0, 512)).rejects.toMatchObject({
      code: 'NBD_EXPORT_CHANGED',
      message: expect.stringMatching(message),
    });
    await expect(read(device, 0, 512)).rejects.toMatchObject({ code: 'NBD_EXPORT_CHANGED' });
  });

  it('shows that an export has grown', async () => {
    const fake = await fakeServer();
    const device = await open(fake.uri);
    fake.size = 2 * MiB;
    fake.cut();
    await read(device, 0, 512);
    expect(device.size).toBe(2 * MiB);
  });

  it('ends with the device', async () => {
    const fake = await fakeServer();
    const device = await NbdDevice.open(fake.uri);
    fake.cut();
    await fake.close();
    const waiting = expect(read(device, 0, 512)).rejects.toMatchObject({ code: 'NBD_GONE' });
    await device.close();
    await waiting;
  });
});

describe('extents', () => {
  it('are whole sectors that cover what was asked for, whatever the server says', () => {
    const descriptor = fc.tuple(fc.oneof(fc.nat(2000), fc.constant(0xffffffff)), fc.nat(7));
    fc.assert(
      fc.property(
        fc.array(descriptor, { maxLength: 20 }),
        fc.nat(4095),
        fc.integer({ min: 1, max: 16 }),
        (list, skip, sectors) => {
          const extents = sectorExtents(list.flat(), skip, sectors * 512);
          expect(extents.length).toBeGreaterThan(0);
          let at = 0;
          for (const { length, hole, zero } of extents) {
            expect(length % 512).toBe(0);
            expect(length).toBeGreaterThan(0);
            // Every byte of a hole is one to the server, too.
            if (hole || zero) {
              let from = -skip;
              for (const [size, flags] of list) {
                if (from < at + length && from + size > at)
                  expect(((flags & 1) !== 0) === hole && ((flags & 2) !== 0) === zero).toBe(true);
                from += size;
              }
            }
            at += length;
          }
          expect(at).toBeLessThanOrEqual(sectors * 512);
        },
      ),
    );
  });
});
