/** Requests and their replies. */
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { DmError } from '../../src/errors.ts';
import { CMD, CMD_FLAG, REQUEST_MAGIC } from '../../src/formats/nbd/constants.ts';
import { encode } from '../../src/formats/nbd/handshake.ts';
import { requestHeader } from '../../src/formats/nbd/transmission.ts';
import { prng } from '../../src/lib/prng.ts';
import { bytes } from '../../src/units.ts';
import { contents, delayed, filled, MiB, RawClient, serve } from './nbd-support.ts';

const [EPERM, EIO, EINVAL, ENOSPC, ENOTSUP] = [1, 5, 22, 28, 95];

describe('transmission', () => {
  const size = 4 * MiB;

  it('echoes the whole cookie', async () => {
    const { path } = await serve({ disk: new MemoryDevice(size) });
    const client = await RawClient.go(path, 'disk');
    client.request(CMD.FLUSH, 0, 0, { cookie: 0xfffffffe });
    expect(await client.reply()).toMatchObject({ error: 0, cookieHigh: 0x80000001, cookieLow: 0xfffffffe });
  });

  it.each([false, true])('reads and writes, structured replies: %s', async (structured) => {
    const device = filled(size);
    const { path } = await serve({ disk: device });
    const client = await RawClient.go(path, 'disk', { structured });
    client.request(CMD.READ, 1024, 8192, { flags: structured ? CMD_FLAG.DF : 0 });
    expect((await client.reply(8192)).data).toEqual(contents(device, 1024, 8192));
    client.write(4096, Buffer.alloc(2048, 7), CMD_FLAG.FUA);
    expect((await client.reply()).error).toBe(0);
    expect(contents(device, 4096, 2048)).toEqual(Buffer.alloc(2048, 7));
  });

  it('serves requests cut into single bytes', async () => {
    const device = new MemoryDevice(size);
    const { path } = await serve({ disk: device });
    const client = await RawClient.go(path, 'disk');
    client.socket.setNoDelay(true);
    const { socket } = client;
    const sent: Buffer[] = [];
    (client as { socket: unknown }).socket = { write: (data: Buffer) => sent.push(data), destroy() {} };
    client.write(512, Buffer.alloc(512, 9));
    client.request(CMD.READ, 512, 512);
    (client as { socket: unknown }).socket = socket;
    for (const byte of Buffer.concat(sent)) {
      socket.write(Buffer.from([byte]));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect((await client.reply()).error).toBe(0);
    expect((await client.reply(512)).data).toEqual(Buffer.alloc(512, 9));
  });

  it('gathers payloads of many chunks, up to 32 MiB', async () => {
    const device = new MemoryDevice(64 * MiB);
    const { path } = await serve({ disk: device });
    const client = await RawClient.go(path, 'disk');
    const data = contents(filled(32 * MiB), 0, 32 * MiB);
    client.write(MiB, data);
    expect((await client.reply()).error).toBe(0);
    client.request(CMD.READ, MiB, data.length);
    const { data: back } = await client.reply(data.length);
    expect(back?.equals(data)).toBe(true);
  });

  it.each([
    [512, 1],
    [20_480, 331],
    [65_536, 1013],
    [199_680, 7919],
  ])('takes payloads of %i bytes cut anywhere', async (length, step) => {
    const device = new MemoryDevice(MiB);
    const { path } = await serve({ disk: device });
    const client = await RawClient.go(path, 'disk');
    const data = contents(filled(length + 4096), 0, length + 4096);
    const head = (type: number, offset: number, count: number) =>
      Buffer.from(
        encode(requestHeader, {
          magic: REQUEST_MAGIC,
          flags: 0,
          type,
          cookieHigh: 0,
          cookieLow: 1,
          offset,
          length: count,
        }),
      );
    for (let cut = 1, round = 0; cut < length + 56; cut += step, round++) {
      const payload = data.subarray(round % 4096, (round % 4096) + length);
      const all = Buffer.concat([head(CMD.WRITE, 512, length), payload, head(CMD.READ, 512, length)]);
      client.socket.write(all.subarray(0, cut));
      for (let turns = 0; turns < 3; turns++) await new Promise((resolve) => setImmediate(resolve));
      client.socket.write(all.subarray(cut));
      expect((await client.reply()).error).toBe(0);
      expect((await client.reply(length)).data?.equals(payload)).toBe(true);
    }
  });

  it('keeps the payloads of writes in flight while more arrives', async () => {
    const device = new MemoryDevice(4 * MiB);
    const random = prng(5);
    const { path } = await serve({ disk: delayed(device, () => random.below(40)) });
    const client = await RawClient.go(path, 'disk');
    const expected = contents(filled(4 * MiB), 0, 4 * MiB);
    let writes = 0;
    for (let at = 0; at < expected.length; writes++) {
      const length = Math.min(512 * (1 + random.below(random.below(8) === 0 ? 200 : 16)), expected.length - at);
      client.write(at, expected.subarray(at, at + length));
      at += length;
      for (let turns = random.below(3); turns > 0; turns--) await new Promise((resolve) => setImmediate(resolve));
    }
    for (let i = 0; i < writes; i++) expect((await client.reply()).error).toBe(0);
    expect(contents(device, 0, 4 * MiB).equals(expected)).toBe(true);
  });

  it('sends in order what the client does not take at once, and what comes meanwhile', async () => {
    const device = filled(8 * MiB);
    const random = prng(9);
    const { path } = await serve({ disk: device });
    const client = await RawClient.go(path, 'disk');
    const turn = () => new Promise((resolve) => setImmediate(resolve));
    const all = Array.from({ length: 100 }, (_, cookie) => ({
      cookie,
      at: 512 * random.below(8192),
      length: 512 * (1 + random.below(random.below(4) === 0 ? 2048 : 16)),
    }));
    const asked = (async () => {
      for (const { cookie, at, length } of all) {
        client.request(CMD.READ, at, length, { cookie });
        if (random.below(4) === 0) client.socket.pause();
        if (random.below(2) === 0) client.socket.resume();
        if (random.below(3) > 0) await turn();
      }
      client.socket.resume();
    })();
    for (const { cookie, at, length } of all) {
      const reply = await client.reply(length);
      expect(reply.cookieLow).toBe(cookie);
      expect(reply.data?.equals(contents(device, at, length))).toBe(true);
    }
    await asked;
  });

  it('refuses more than 32 MiB and stays in step', async () => {
    const device = new MemoryDevice(64 * MiB);
    const { path } = await serve({ disk: device });
    const client = await RawClient.go(path, 'disk', { structured: true });
    client.write(0, Buffer.alloc(32 * MiB + 1, 1));
    const reply = await client.reply();
    expect(reply.error).toBe(EINVAL);
    expect(reply.chunks[0].payload.subarray(6).toString()).toMatch(/33554433 bytes.*33554432 is the most/);
    client.request(CMD.READ, 0, 32 * MiB + 512);
    expect((await client.reply()).error).toBe(EINVAL);
    client.request(CMD.READ, 0, 512);
    expect((await client.reply()).data).toEqual(Buffer.alloc(512));
  });

  it('reads and writes at any byte', async () => {
    const device = filled(size);
    const { path } = await serve({ disk: device });
    const client = await RawClient.go(path, 'disk');
    const expected = contents(device, 0, 4096);
    expected.fill(5, 100, 1301);
    client.write(100, Buffer.alloc(1201, 5));
    expect((await client.reply()).error).toBe(0);
    client.request(CMD.READ, 3, 4000);
    expect((await client.reply(4000)).data).toEqual(expected.subarray(3, 4003));
    client.request(CMD.WRITE_ZEROES, 1, 2001);
    expect((await client.reply()).error).toBe(0);
    expected.fill(0, 1, 2002);
    expect(contents(device, 0, 4096)).toEqual(expected);
  });

  it('flushes after a write with FUA and before its reply', async () => {
    const device = new MemoryDevice(size);
    const order: string[] = [];
    const logged = Object.assign(
      delayed(device, () => 2),
      {
        write: async () => void order.push('write'),
        flush: async () => void order.push('flush'),
      },
    );
    const { path } = await serve({ disk: logged });
    const client = await RawClient.go(path, 'disk');
    client.write(0, Buffer.alloc(512), CMD_FLAG.FUA);
    await client.reply();
    expect(order).toEqual(['write', 'flush']);
    client.write(0, Buffer.alloc(512));
    await client.reply();
    expect(order).toEqual(['write', 'flush', 'write']);
  });

  it('trims, zeroes and caches', async () => {
    const device = filled(size);
    const { path } = await serve({ disk: device });
    const client = await RawClient.go(path, 'disk');
    for (const [type, flags] of [
      [CMD.TRIM, 0],
      [CMD.WRITE_ZEROES, 0],
      [CMD.WRITE_ZEROES, CMD_FLAG.FAST_ZERO | CMD_FLAG.FUA],
      [CMD.WRITE_ZEROES, CMD_FLAG.NO_HOLE],
      [CMD.CACHE, 0],
    ]) {
      client.request(type, 0, 2 * MiB + 512, { flags });
      expect((await client.reply()).error).toBe(0);
    }
    expect(contents(device, 0, 2 * MiB + 512).every((byte) => byte === 0)).toBe(true);
    expect(contents(device, 2 * MiB + 512, 4).every((byte) => byte === 0)).toBe(false);
    client.request(CMD.WRITE_ZEROES, 0, 512, { flags: CMD_FLAG.FAST_ZERO | CMD_FLAG.NO_HOLE });
    expect((await client.reply()).error).toBe(ENOTSUP);
  });

  it('reports allocation and what changed, each in its chunk', async () => {
    const device = Object.assign(new MemoryDevice(size), {
      changed: (at: number, length: number) =>
        [
          { length: bytes(Math.max(0, 65536 - at)), changed: false },
          { length: bytes(Math.max(0, at + length - 65536)), changed: true },
        ].filter((extent) => extent.length > 0),
    });
    device.write(bytes(65536), new Uint8Array(512), 0, 512);
    const { path } = await serve({ disk: device });
    const contexts = ['base:allocation', 'dmkit:changed'];
    const client = await RawClient.go(path, 'disk', { structured: true, contexts });
    const status = async (at: number, length: number, flags = 0) => {
      client.request(CMD.BLOCK_STATUS, at, length, { flags });
      const { error, chunks } = await client.reply();
      expect(error).toBe(0);
      return chunks.map(({ payload }) =>
        Array.from({ length: payload.length / 4 }, (_, i) => payload.readUInt32BE(4 * i)),
      );
    };
    expect(await status(0, size)).toEqual([
      [1, 65536, 3, 65536, 0, size - 131072, 3],
      [2, 65536, 0, size - 65536, 1],
    ]);
    expect(await status(0, size, CMD_FLAG.REQ_ONE)).toEqual([
      [1, 65536, 3],
      [2, 65536, 0],
    ]);
    expect(await status(65535, 2)).toEqual([
      [1, 1, 3, 1, 0],
      [2, 1, 0, 1, 1],
    ]);
  });

  it('keeps block status replies short', async () => {
    const device = new MemoryDevice(size);
    device.extents = (_at, length) =>
      Array.from({ length: length / 512 }, (_, i) => ({ length: bytes(512), hole: i % 2 === 0, zero: false }));
    const { path } = await serve({ disk: device }, { extents: 10 });
    const client = await RawClient.go(path, 'disk', { structured: true, contexts: ['base:allocation'] });
    client.request(CMD.BLOCK_STATUS, 0, size);
    expect((await client.reply()).chunks[0].payload).toHaveLength(4 + 10 * 8);
  });

  it.each<[string, number, number, number, number, number]>([
    ['a read beyond the end', CMD.READ, size - 512, 1024, 0, EINVAL],
    ['a write beyond the end', CMD.WRITE, size, 512, 0, ENOSPC],
    ['zeroes beyond the end', CMD.WRITE_ZEROES, size - 512, 1024, 0, ENOSPC],
    ['a trim beyond the end', CMD.TRIM, size, 512, 0, ENOSPC],
    ['an offset of 2^63', CMD.READ, 2 ** 63, 512, 0, EINVAL],
    ['a read of nothing', CMD.READ, 0, 0, 0, EINVAL],
    ['a write of nothing', CMD.WRITE, 0, 0, 0, EINVAL],
    ['a flush of a range', CMD.FLUSH, 512, 512, 0, EINVAL],
    ['DF without structured replies', CMD.READ, 0, 512, CMD_FLAG.DF, EINVAL],
    ['a flag of another command', CMD.READ, 0, 512, CMD_FLAG.NO_HOLE, EINVAL],
    ['an unknown flag with a write', CMD.WRITE, 0, 512, 0x8000, EINVAL],
    ['an unknown command', 99, 0, 512, 0, EINVAL],
    ['a block status without a context', CMD.BLOCK_STATUS, 0, 512, 0, EINVAL],
  ])('refuses %s and goes on', async (_what, type, offset, length, flags, error) => {
    const { path } = await serve({ disk: new MemoryDevice(size) });
    const client = await RawClient.go(path, 'disk');
    client.request(type, offset, length, { flags, data: Buffer.alloc(type === CMD.WRITE ? length : 0) });
    expect((await client.reply()).error).toBe(error);
    client.request(CMD.READ, 0, 512);
    expect((await client.reply(512)).data).toEqual(Buffer.alloc(512));
  });

  it('refuses to change a read-only device', async () => {
    const device = new MemoryDevice(size);
    device.readOnly = true;
    const { path } = await serve({ disk: device });
    const client = await RawClient.go(path, 'disk');
    for (const type of [CMD.WRITE, CMD.WRITE_ZEROES, CMD.TRIM]) {
      client.request(type, 0, 512, { data: Buffer.alloc(type === CMD.WRITE ? 512 : 0) });
      expect((await client.reply()).error).toBe(EPERM);
    }
  });

  it('sees a device grow and shrink', async () => {
    const device = new MemoryDevice(size);
    const { path } = await serve({ disk: device });
    const client = await RawClient.go(path, 'disk');
    client.request(CMD.READ, size, 512);
    expect((await client.reply()).error).toBe(EINVAL);
    device.size = bytes(2 * size);
    client.request(CMD.READ, size, 512);
    expect((await client.reply(512)).error).toBe(0);
    device.size = bytes(size);
    client.write(size, Buffer.alloc(512));
    expect((await client.reply()).error).toBe(ENOSPC);
  });

  it.each(['at once', 'later'])('passes on errors that come %s, with their text', async (when) => {
    const error = new DmError('FULL', 'ENOSPC', 'the COW store is full');
    const device = Object.assign(new MemoryDevice(size), {
      write: () => {
        if (when === 'at once') throw error;
        return Promise.reject(error);
      },
      read: () => {
        if (when === 'at once') throw new TypeError('a bug');
        return Promise.reject(new TypeError('a bug'));
      },
    });
    const { path, log } = await serve({ disk: device });
    const client = await RawClient.go(path, 'disk', { structured: true });
    client.write(0, Buffer.alloc(512));
    const reply = await client.reply();
    expect(reply.error).toBe(ENOSPC);
    expect(reply.chunks[0].payload.subarray(6).toString()).toBe('the COW store is full');
    expect(log).toEqual([]);
    client.request(CMD.READ, 0, 512);
    expect((await client.reply()).error).toBe(EIO);
    expect(log).toEqual([expect.stringContaining('TypeError: a bug')]);
  });

  it('answers requests that are ready before ones that are not', async () => {
    const device = filled(size);
    let open!: () => void;
    const gate = new Promise<void>((resolve) => (open = resolve));
    const slow = Object.assign(
      delayed(device, () => 0),
      {
        read: (at: number, into: Uint8Array, start: number, length: number) => {
          if (at !== 0) return device.read(bytes(at), into, start, length);
          return gate.then(() => device.read(bytes(at), into, start, length));
        },
      },
    );
    const { path } = await serve({ disk: slow });
    const client = await RawClient.go(path, 'disk');
    client.request(CMD.READ, 0, 4096, { cookie: 1 });
    client.request(CMD.READ, 4096, 4096, { cookie: 2 });
    client.request(CMD.READ, 8192, 4096, { cookie: 3 });
    for (const cookie of [2, 3]) {
      const reply = await client.reply(4096);
      expect(reply.cookieLow).toBe(cookie);
      expect(reply.data).toEqual(contents(device, (cookie - 1) * 4096, 4096));
    }
    open();
    const last = await client.reply(4096);
    expect(last.cookieLow).toBe(1);
    expect(last.data).toEqual(contents(device, 0, 4096));
  });

  it('answers what is in flight before it obeys DISC, and then closes the export', async () => {
    const device = filled(size);
    const { path, exports, idle } = await serve({ disk: delayed(device, () => 5) });
    const client = await RawClient.go(path, 'disk');
    client.request(CMD.READ, 0, 4096);
    client.request(CMD.DISC);
    client.request(CMD.READ, 0, 4096);
    expect((await client.reply(4096)).data).toEqual(contents(device, 0, 4096));
    expect(await client.closed()).toHaveLength(0);
    await idle();
    expect(exports.opened.get('disk')).toBe(0);
  });

  it('answers a client that has shut down its side', async () => {
    const device = filled(size);
    const { path, log, idle } = await serve({ disk: delayed(device, () => 5) });
    const client = await RawClient.go(path, 'disk');
    client.request(CMD.READ, 0, 4096);
    client.socket.end();
    expect((await client.reply(4096)).data).toEqual(contents(device, 0, 4096));
    await idle();
    expect(log).toEqual([]);
  });

  it('stops reading from a client that has too much in flight, and goes on as requests complete', async () => {
    const waiting: (() => void)[] = [];
    const device = Object.assign(new MemoryDevice(size), {
      write: () => new Promise<void>((resolve) => waiting.push(resolve)),
    });
    const { path } = await serve({ disk: device }, { requestsInFlight: 4 });
    const client = await RawClient.go(path, 'disk');
    for (let cookie = 0; cookie < 50; cookie++) client.write(0, Buffer.alloc(512), 0, cookie);
    for (let cookie = 0; cookie < 50; cookie++) {
      while (waiting.length === 0) await new Promise((resolve) => setImmediate(resolve));
      expect(waiting.length).toBeLessThanOrEqual(4);
      waiting.shift()!();
      expect((await client.reply()).cookieLow).toBe(cookie);
    }
  });

  it('stops reading from a client that does not take its replies', async () => {
    let reads = 0;
    const device = Object.assign(new MemoryDevice(size), { read: () => void reads++ });
    const { path } = await serve({ disk: device }, { replyBytes: MiB });
    const client = await RawClient.go(path, 'disk');
    client.reader.release();
    for (let i = 0; i < 64; i++) client.request(CMD.READ, 0, MiB, { cookie: i });
    const other = await RawClient.go(path, 'disk');
    for (let i = 0; i < 20; i++) {
      other.request(CMD.FLUSH);
      await other.reply();
    }
    expect(reads).toBeLessThan(10);
    let got = 0;
    await new Promise<void>((resolve) => {
      client.socket.on('data', (data) => {
        got += data.length;
        if (got === 64 * (16 + MiB)) resolve();
      });
      client.socket.resume();
    });
    expect(reads).toBe(64);
  });

  it('lets all connections share one device', async () => {
    const device = new MemoryDevice(size);
    const { path, exports } = await serve({ disk: device });
    const clients = await Promise.all(
      Array.from({ length: 20 }, () => RawClient.go(path, 'disk', { structured: true })),
    );
    expect(exports.opened.get('disk')).toBe(20);
    for (const [i, client] of clients.entries()) client.write(i * 512, Buffer.alloc(512, i));
    await Promise.all(clients.map((client) => client.reply()));
    clients[0].request(CMD.READ, 0, 20 * 512);
    const { data } = await clients[0].reply();
    for (let i = 0; i < 20; i++) expect(data?.[i * 512]).toBe(i);
  });
});
