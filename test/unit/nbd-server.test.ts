/** The server as a whole: where it listens, what its clients may cost it, how it ends. */
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { CMD } from '../../src/formats/nbd/constants.ts';
import { NbdServer } from '../../src/services/nbd/server.ts';
import { contents, delayed, FixedExports, filled, MiB, RawClient, serve } from './nbd-support.ts';

describe('what a client may cost', () => {
  it.each<[string, (client: RawClient) => void, RegExp]>([
    ['unknown client flags', (client) => client.socket.write(Buffer.from([0, 0, 1, 0])), /client flags 0x100/],
    [
      'garbage for options',
      (client) => client.socket.write(Buffer.concat([Buffer.alloc(4), Buffer.alloc(16, 'x')])),
      /IHAVEOPT/,
    ],
    [
      'an endless export name',
      (client) =>
        client.socket.write(
          Buffer.concat([Buffer.alloc(4), Buffer.from('IHAVEOPT\0\0\0\x01\x7f\xff\xff\xff', 'latin1')]),
        ),
      /bytes of options/,
    ],
    [
      'a flood of options',
      (client) => {
        client.reader.release();
        client.socket.resume();
        client.socket.write(Buffer.alloc(4));
        const one = Buffer.from('IHAVEOPT\0\0\0\x63\0\0\0\0', 'latin1');
        client.socket.write(Buffer.concat(Array.from({ length: 1100 }, () => one)));
      },
      /more than 1024 options/,
    ],
    [
      'half an option',
      (client) => client.socket.end(Buffer.concat([Buffer.alloc(4), Buffer.from('IHAVE')])),
      /middle of an option/,
    ],
    ['silence', () => {}, /longer than 100 ms/],
  ])('costs %s its connection, in one line of the log', async (what, misbehave, line) => {
    const limits = what === 'silence' ? { handshakeMs: 100 } : {};
    const { path, log, idle } = await serve({ disk: new MemoryDevice(MiB) }, limits);
    const good = await RawClient.go(path, 'disk');
    const bad = new RawClient(path);
    misbehave(bad);
    while (log.length === 0) await new Promise((resolve) => setImmediate(resolve));
    expect(log).toEqual([expect.stringMatching(line)]);
    good.request(CMD.READ, 0, 512);
    expect((await good.reply(512)).error).toBe(0);
    good.socket.destroy();
    bad.socket.destroy();
    await idle();
  });

  it.each<[string, (client: RawClient) => void, RegExp]>([
    [
      'a request without magic',
      (client) => client.request(CMD.READ, 0, 512, { magic: 0xdeadbeef }),
      /without its magic/,
    ],
    ['half a request', (client) => client.socket.end(Buffer.from('256095', 'hex')), /middle of a request/],
    [
      'half a payload',
      (client) => {
        client.request(CMD.WRITE, 0, 4096, { data: Buffer.alloc(100) });
        client.socket.end();
      },
      /middle of a request/,
    ],
  ])('ends a connection with %s', async (_what, misbehave, line) => {
    const device = new MemoryDevice(MiB);
    const { path, log, exports, idle } = await serve({ disk: device });
    const bad = await RawClient.go(path, 'disk');
    misbehave(bad);
    await bad.closed();
    bad.socket.destroy();
    await idle();
    expect(log).toEqual([expect.stringMatching(line)]);
    expect(exports.opened.get('disk')).toBe(0);
  });

  it('survives a client that disappears with everything in flight', async () => {
    const { path, exports, idle, log } = await serve({ disk: delayed(filled(MiB), () => 3) });
    for (let i = 0; i < 20; i++) {
      const client = await RawClient.go(path, 'disk', { structured: i % 2 === 0 });
      for (let k = 0; k < 30; k++) client.request(CMD.READ, 0, 65536, { cookie: k });
      client.write(0, Buffer.alloc(100_000));
      client.socket.destroy();
    }
    await idle();
    expect(exports.opened.get('disk')).toBe(0);
    expect(log.filter((line) => !/middle of|handshake/.test(line))).toEqual([]);
  });

  it('accepts so many connections and no more', async () => {
    const { path, log, idle } = await serve({ disk: new MemoryDevice(MiB) }, { connections: 3 });
    const clients = await Promise.all([1, 2, 3].map(() => RawClient.go(path, 'disk')));
    const fourth = new RawClient(path);
    expect(await fourth.closed()).toHaveLength(0);
    expect(log).toEqual([expect.stringContaining('refused, 3 connections')]);
    for (const client of clients) client.socket.destroy();
    await idle();
    await RawClient.go(path, 'disk');
  });
});

describe('listening', () => {
  const inDirectory = async () => {
    const directory = await mkdtemp(join(tmpdir(), 'dmkit-nbd-'));
    onTestFinished(() => rm(directory, { recursive: true }));
    return join(directory, 'nbd.sock');
  };
  const newServer = () => {
    const server = new NbdServer(new FixedExports({ disk: new MemoryDevice(MiB) }));
    onTestFinished(() => server.stop());
    return server;
  };

  it('makes a socket that only its owner may use, and leaves nothing else', async () => {
    const path = await inDirectory();
    const server = newServer();
    await server.listenUnix(path);
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    await server.stop();
    await expect(stat(path)).rejects.toThrow('ENOENT');
  });

  it('replaces the socket of a dead server and refuses to replace that of a living one', async () => {
    const path = await inDirectory();
    await newServer().listenUnix(path);
    await expect(newServer().listenUnix(path)).rejects.toMatchObject({ code: 'NBD_LISTEN', errno: 'EBUSY' });
    const stale = `${path}-stale`;
    await writeFile(stale, '');
    const orphan = createServer();
    await new Promise<void>((resolve) => orphan.listen(`${path}-x`, resolve));
    orphan.close();
    await newServer().listenUnix(stale);
    await RawClient.go(stale, 'disk');
  });

  it('says so when the path is too long or the directory is missing', async () => {
    await expect(newServer().listenUnix(`/tmp/${'x'.repeat(110)}`)).rejects.toMatchObject({ code: 'NBD_LISTEN' });
    await expect(newServer().listenUnix('/nonexistent/nbd.sock')).rejects.toMatchObject({ errno: 'ENOENT' });
  });

  it('listens on TCP, on loopback', async () => {
    const server = newServer();
    const port = await server.listenTcp({ port: 0 });
    const socket = connect(port, '127.0.0.1');
    const greeting = await new Promise<Buffer>((resolve) => socket.once('data', resolve));
    expect(greeting.subarray(0, 8).toString()).toBe('NBDMAGIC');
    socket.destroy();
    await expect(newServer().listenTcp({ port })).rejects.toMatchObject({
      message: expect.stringContaining(`${port}`),
    });
  });

  it('stops after it has answered what is in flight', async () => {
    const device = filled(MiB);
    const { path, server, exports } = await serve({ disk: delayed(device, () => 20) });
    const client = await RawClient.go(path, 'disk');
    client.request(CMD.READ, 0, 4096, { cookie: 1 });
    const idle = await RawClient.go(path, 'disk');
    const stopped = server.stop({ drainMs: 5000 });
    expect(await idle.closed()).toHaveLength(0);
    idle.socket.end();
    expect((await client.reply(4096)).data).toEqual(contents(device, 0, 4096));
    expect(await client.closed()).toHaveLength(0);
    client.socket.end();
    await stopped;
    expect(exports.opened.get('disk')).toBe(0);
    await expect(stat(path)).rejects.toThrow('ENOENT');
  });

  it('does not wait for ever for a client that takes no replies', async () => {
    const { path, server, exports } = await serve({ disk: new MemoryDevice(64 * MiB) });
    const client = await RawClient.go(path, 'disk');
    client.reader.release();
    client.request(CMD.READ, 0, 16 * MiB);
    await server.stop({ drainMs: 100 });
    expect(exports.opened.get('disk')).toBe(0);
  });
});
