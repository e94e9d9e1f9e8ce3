/** The bound on the memory of an NBD server, with clients that mean harm. */
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { CMD } from '../../src/formats/nbd/constants.ts';
import type { NbdServer } from '../../src/services/nbd/server.ts';
import { delayed, filled, MiB, RawClient, serve } from './nbd-support.ts';

/** What a connection has beside its share of the limit. */
const OWN = 350 * 1024;

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
/** Until what came has been looked at: nothing changes any more. */
async function settled(server: NbdServer): Promise<void> {
  for (let same = 0, last = -1; same < 50; ) {
    await turn();
    const now = server.heldBytes;
    same = now === last ? same + 1 : 0;
    last = now;
  }
}

/** A client that never reads what it is sent. */
async function deaf(path: string, name = 'disk'): Promise<RawClient> {
  const client = await RawClient.go(path, name);
  client.reader.release();
  return client;
}

/** Resolves when the server has closed the connection. */
function closed({ socket }: RawClient): Promise<void> {
  return new Promise((resolve) => {
    if (socket.destroyed || socket.readableEnded) return resolve();
    socket.once('close', resolve).once('end', resolve).resume();
  });
}

describe('a server with a bound on its memory', () => {
  it('holds no more for clients that read nothing, and goes on serving small requests', async () => {
    const limit = 48 * MiB;
    const { path, server, log } = await serve(
      { disk: new MemoryDevice(64 * MiB) },
      // The connections to one device may take half of it.
      { memoryBytes: 2 * limit, stallMs: 600_000 },
    );
    const clients = await Promise.all(Array.from({ length: 20 }, () => deaf(path)));
    let most = 0;
    for (const client of clients) {
      for (let cookie = 0; cookie < 4; cookie++) client.request(CMD.READ, 0, 8 * MiB, { cookie });
      await turn();
      most = Math.max(most, server.heldBytes);
    }
    await settled(server);
    most = Math.max(most, server.heldBytes);
    expect(most).toBeLessThanOrEqual(limit + 21 * OWN);
    expect(most).toBeGreaterThan(limit - 9 * MiB);
    const good = await RawClient.go(path, 'disk');
    for (let i = 0; i < 100; i++) {
      good.write(i * 4096, Buffer.alloc(4096, i + 1));
      expect((await good.reply()).error).toBe(0);
      good.request(CMD.READ, i * 4096, 4096);
      expect((await good.reply(4096)).data).toEqual(Buffer.alloc(4096, i + 1));
    }
    // As they read, or go, the others get their turn.
    await Promise.all(
      clients.map(
        (client, i) =>
          new Promise<void>((resolve) => {
            let got = 0;
            if (i % 2 === 0) return resolve(void client.socket.destroy());
            client.socket.on('data', (data) => {
              got += data.length;
              if (got === 4 * (16 + 8 * MiB)) resolve();
            });
            client.socket.resume();
          }),
      ),
    );
    expect(log.filter((line) => /memory/.test(line))).toEqual([]);
  });

  it('holds no more for payloads that do not end', async () => {
    const { path, server } = await serve(
      { disk: new MemoryDevice(64 * MiB) },
      { memoryBytes: 64 * MiB, stallMs: 600_000 },
    );
    for (let i = 0; i < 12; i++) {
      const client = await RawClient.go(path, 'disk');
      client.request(CMD.WRITE, 0, 32 * MiB, { data: Buffer.alloc(100_000) });
    }
    await settled(server);
    expect(server.heldBytes).toBeLessThanOrEqual(64 * MiB + 12 * OWN);
    expect(server.heldBytes).toBeGreaterThan(32 * MiB);
  });

  it('holds no more for a device that is slow', async () => {
    const waiting: (() => void)[] = [];
    const device = Object.assign(new MemoryDevice(64 * MiB), {
      write: () => new Promise<void>((resolve) => waiting.push(resolve)),
      read: () => new Promise<void>((resolve) => waiting.push(resolve)),
    });
    const limits = { memoryBytes: 16 * MiB, stallMs: 100 };
    const { path, server, log } = await serve({ disk: device }, limits);
    const clients = await Promise.all(Array.from({ length: 8 }, () => RawClient.go(path, 'disk')));
    // Writes that lie whole in what was received keep that; reads that no sector fits are read elsewhere first.
    const requests = 200;
    for (const client of clients) {
      for (let cookie = 0; cookie < requests; cookie++) {
        if (cookie % 4 === 0) client.request(CMD.READ, 7, 60_000, { cookie });
        else client.write(0, Buffer.alloc(60_000 - (60_000 % 512)), 0, cookie);
      }
    }
    await settled(server);
    expect(server.heldBytes).toBeLessThanOrEqual(16 * MiB + 8 * OWN);
    // The time limit passes several times, and it is not theirs.
    await new Promise((resolve) => setTimeout(resolve, 400));
    expect(server.connectionCount).toBe(8);
    expect(log).toEqual([]);
    for (const client of clients) client.socket.destroy();
    while (server.connectionCount > 0) {
      for (const complete of waiting.splice(0)) complete();
      await turn();
    }
    expect(server.heldBytes).toBe(0);
  });

  it('has memory for a device beside one that keeps all it gets', async () => {
    const waiting: (() => void)[] = [];
    const slow = Object.assign(new MemoryDevice(64 * MiB), {
      write: () => new Promise<void>((resolve) => waiting.push(resolve)),
      read: () => new Promise<void>((resolve) => waiting.push(resolve)),
    });
    const fast = filled(64 * MiB);
    const limits = { memoryBytes: 32 * MiB, stallMs: 600_000 };
    const { path, server } = await serve({ slow, fast }, limits);
    const clients = await Promise.all(Array.from({ length: 64 }, () => RawClient.go(path, 'slow')));
    for (const client of clients) {
      for (let cookie = 0; cookie < 256; cookie++)
        client.request(CMD.READ, 0, cookie % 2 ? 4096 : 128 * 1024, { cookie });
    }
    await settled(server);
    const good = await RawClient.go(path, 'fast');
    const data = Buffer.alloc(MiB);
    for (let i = 0; i < 64; i++) {
      good.request(CMD.READ, i * MiB, MiB, { cookie: 1 });
      good.write(i * MiB, Buffer.alloc(MiB, i), 0, 2);
      fast.read((i * MiB) as never, data, 0, MiB);
      expect((await good.reply(MiB)).data?.equals(data)).toBe(true);
      expect((await good.reply()).error).toBe(0);
    }
    for (const client of clients) client.socket.destroy();
    while (server.connectionCount > 1) {
      for (const complete of waiting.splice(0)) complete();
      await turn();
    }
  });

  it('does not let a connection that is idle keep what its last request needed', async () => {
    const { path, server } = await serve({ disk: new MemoryDevice(64 * MiB) }, { memoryBytes: 40 * MiB });
    for (let i = 0; i < 4; i++) {
      const client = await RawClient.go(path, 'disk');
      client.request(CMD.READ, 0, 32 * MiB);
      await client.reply(32 * MiB);
      client.write(0, Buffer.alloc(32 * MiB));
      await client.reply();
    }
    expect(server.heldBytes).toBeLessThanOrEqual(4 * OWN);
  });

  it.each<[string, (client: RawClient) => void, RegExp]>([
    ['does not take a reply', (client) => client.request(CMD.READ, 0, 32 * MiB), /did not take its replies for 50 ms/],
    [
      'does not finish a payload',
      (client) => client.request(CMD.WRITE, 0, 32 * MiB, { data: Buffer.alloc(1000) }),
      /did not finish a payload for 50 ms/,
    ],
    [
      'takes a reply byte by byte',
      (client) => {
        client.request(CMD.READ, 0, 32 * MiB);
        const sip = () => {
          client.socket.read(1);
          if (!client.socket.destroyed) setImmediate(sip);
        };
        sip();
      },
      /did not take its replies/,
    ],
  ])('cuts off a client that %s when others wait, and serves them', async (_what, misbehave, line) => {
    const limits = { memoryBytes: 40 * MiB, stallMs: 50 };
    const { path, server, log } = await serve({ disk: filled(32 * MiB) }, limits);
    const bad = await deaf(path);
    misbehave(bad);
    while (server.heldBytes < 32 * MiB) await turn();
    const good = await RawClient.go(path, 'disk');
    good.request(CMD.READ, 0, 16 * MiB);
    expect((await good.reply(16 * MiB)).error).toBe(0);
    good.write(0, Buffer.alloc(16 * MiB));
    expect((await good.reply()).error).toBe(0);
    expect(log).toEqual([expect.stringMatching(line)]);
    await closed(bad);
  });

  it('gives everything back when clients disappear with everything in flight', async () => {
    const limits = { memoryBytes: 4 * MiB, stallMs: 600_000 };
    const { path, server, idle } = await serve({ disk: delayed(filled(8 * MiB), () => 3) }, limits);
    for (let round = 0; round < 10; round++) {
      const clients = await Promise.all(Array.from({ length: 6 }, () => deaf(path)));
      for (const [i, client] of clients.entries()) {
        for (let cookie = 0; cookie < 4; cookie++) client.request(CMD.READ, 100 * i, MiB + i, { cookie });
        client.request(CMD.WRITE, 0, 2 * MiB, { data: Buffer.alloc(round * 100_000) });
      }
      for (let i = 0; i < round; i++) await turn();
      for (const client of clients) client.socket.destroy();
    }
    await idle();
    await settled(server);
    expect(server.heldBytes).toBe(0);
  });

  it('stops in good order while clients stand in line', async () => {
    const { path, server, exports } = await serve({ disk: new MemoryDevice(64 * MiB) }, { memoryBytes: MiB });
    const clients = await Promise.all(Array.from({ length: 4 }, () => deaf(path)));
    for (const client of clients) client.request(CMD.READ, 0, 16 * MiB);
    await settled(server);
    await server.stop({ drainMs: 50 });
    expect(exports.opened.get('disk')).toBe(0);
    expect(server.heldBytes).toBe(0);
  });

  it('serves everybody who behaves, however little there is', async () => {
    const device = filled(4 * MiB);
    const limits = { memoryBytes: MiB / 2, stallMs: 600_000 };
    const { path, server } = await serve({ disk: delayed(device, () => 1) }, limits);
    const expected = Buffer.alloc(4 * MiB);
    device.read(0 as never, expected, 0, expected.length);
    await Promise.all(
      Array.from({ length: 12 }, async (_, i) => {
        const client = await RawClient.go(path, 'disk', { structured: true });
        for (let k = 0; k < 8; k++) {
          const at = (i * 8 + k) * 32_768;
          const length = 1 + ((i * 7919 + k * 104_729) % (MiB - 1));
          const offset = Math.min(at, 4 * MiB - length);
          client.request(CMD.READ, offset, length, { cookie: 2 * k });
          client.write(at, expected.subarray(at, at + 32_768), 0, 2 * k + 1);
        }
        for (let k = 0; k < 16; k++) expect((await client.reply()).error).toBe(0);
        client.socket.destroy();
      }),
    );
    while (server.connectionCount > 0) await turn();
    const after = Buffer.alloc(4 * MiB);
    device.read(0 as never, after, 0, after.length);
    expect(after.equals(expected)).toBe(true);
  });
});
