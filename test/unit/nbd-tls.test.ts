import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { NbdDevice, nbdBackend } from '../../src/device/nbd.ts';
import { CMD, OPT, REP } from '../../src/formats/nbd/constants.ts';
import { option, optionReply, printGo, printMetaContext } from '../../src/formats/nbd/handshake.ts';
import { NbdServer } from '../../src/services/nbd/server.ts';
import type { TlsOptions } from '../../src/services/nbd/tls.ts';
import { bytes } from '../../src/units.ts';
import { deviceSuite } from '../support/device-suite.ts';
import { fakeServer } from './nbd-fake-server.ts';
import { FixedExports, filled, MiB, RawClient, serve, start } from './nbd-support.ts';

const FIXTURES = join(import.meta.dirname, '../fixtures/tls');
const STRANGER = join(FIXTURES, 'stranger');
const files = (directory = FIXTURES): TlsOptions => ({
  cert: join(directory, 'server-cert.pem'),
  key: join(directory, 'server-key.pem'),
});
const mutual = { ...files(), ca: join(FIXTURES, 'ca-cert.pem') };
const ca = await readFile(join(FIXTURES, 'ca-cert.pem'));
const trust = { ca, servername: 'localhost' };

/** A server on TCP; resolves with its port. */
async function listen(tls?: TlsOptions, host = '127.0.0.1') {
  const log: string[] = [];
  const device = filled(MiB);
  const exports = new FixedExports({ disk: device });
  const server = new NbdServer(exports, { log: (line) => log.push(line), tls });
  onTestFinished(() => server.stop({ drainMs: 100 }));
  const port = await server.listenTcp({ host, port: 0 });
  const idle = async () => {
    while (server.connectionCount > 0) await new Promise((resolve) => setImmediate(resolve));
  };
  return { server, port, log, device, exports, idle };
}

const uriOf = (port: number, certificates = FIXTURES, more = '') =>
  `nbds://localhost:${port}/disk?tls-certificates=${certificates}${more}`;

async function open(uri: string): Promise<NbdDevice> {
  const device = await NbdDevice.open(uri);
  onTestFinished(() => device.close());
  return device;
}

async function secured(where: string | number): Promise<RawClient> {
  const client = await RawClient.greet(where);
  expect(await client.ask(OPT.STARTTLS)).toEqual([{ type: REP.ACK, data: Buffer.alloc(0) }]);
  await client.secure(trust);
  return client;
}

/** A copy of the certificates to change. */
async function copy(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), 'dmkit-tls-'));
  onTestFinished(() => rm(directory, { recursive: true }));
  await cp(FIXTURES, directory, { recursive: true });
  return directory;
}

deviceSuite('an NBD export over TLS', async () => {
  const served = await start({ disk: new MemoryDevice(4 * MiB) }, {}, mutual);
  const uri = served.uri('disk').replace('nbd+', 'nbds+');
  return { device: await NbdDevice.open(`${uri}&tls-certificates=${FIXTURES}`), cleanup: served.stop };
});

describe('a server that demands TLS', () => {
  it('refuses everything but STARTTLS and ABORT before', async () => {
    const { port } = await listen(files());
    const client = await RawClient.greet(port);
    const go = printGo({ name: 'disk', info: [] });
    for (const [number, data] of [
      [OPT.LIST],
      [OPT.STRUCTURED_REPLY],
      [OPT.INFO, go],
      [OPT.GO, go],
      [OPT.SET_META_CONTEXT, printMetaContext({ name: 'disk', queries: [] })],
      [99, Buffer.alloc(100_000)],
    ] as [number, Buffer?][]) {
      expect((await client.ask(number, data)).map(({ type }) => type)).toEqual([REP.ERR_TLS_REQD]);
    }
    expect((await client.ask(OPT.STARTTLS, Buffer.from('x')))[0].type).toBe(REP.ERR_INVALID);
    expect((await client.ask(OPT.ABORT))[0].type).toBe(REP.ACK);
    expect(await client.closed()).toHaveLength(0);
  });

  it('disconnects who asks for an export by EXPORT_NAME', async () => {
    const { port, log, idle } = await listen(files());
    const client = await RawClient.greet(port);
    client.socket.write(option(OPT.EXPORT_NAME, Buffer.from('disk')));
    expect(await client.closed()).toHaveLength(0);
    await idle();
    expect(log).toEqual([expect.stringContaining('without TLS')]);
  });

  it('serves over TLS', async () => {
    const { port, log } = await listen(files());
    const client = await secured(port);
    expect((await client.ask(OPT.STARTTLS))[0].type).toBe(REP.ERR_INVALID);
    expect((await client.ask(OPT.LIST)).at(-1)?.type).toBe(REP.ACK);
    expect((await client.ask(OPT.GO, printGo({ name: 'disk', info: [] }))).at(-1)?.type).toBe(REP.ACK);
    client.write(4096, Buffer.alloc(70_000, 7));
    expect((await client.reply()).error).toBe(0);
    client.request(CMD.READ, 4096, 70_000);
    expect((await client.reply(70_000)).data).toEqual(Buffer.alloc(70_000, 7));
    client.request(CMD.DISC);
    expect(await client.closed()).toHaveLength(0);
    expect(log).toEqual([]);
  });

  it('ends in good order at ABORT within TLS', async () => {
    const { port, log, idle } = await listen(files());
    const client = await secured(port);
    expect((await client.ask(OPT.ABORT))[0].type).toBe(REP.ACK);
    expect(await client.closed()).toHaveLength(0);
    client.socket.destroy();
    await idle();
    expect(log).toEqual([]);
  });

  it('answers what is in flight over TLS when it stops', async () => {
    const { port, server, exports, device } = await listen(files());
    const client = await secured(port);
    await client.ask(OPT.GO, printGo({ name: 'disk', info: [] }));
    client.request(CMD.READ, 0, 512);
    const expected = Buffer.alloc(512);
    device.read(bytes(0), expected, 0, 512);
    expect((await client.reply(512)).data).toEqual(expected);
    const stopped = server.stop({ drainMs: 5000 });
    expect(await client.closed()).toHaveLength(0);
    client.socket.end();
    await stopped;
    expect(exports.opened.get('disk')).toBe(0);
  });

  it('is not held up by a client that takes no replies over TLS', async () => {
    const { port, server, exports } = await listen(files());
    const client = await secured(port);
    await client.ask(OPT.GO, printGo({ name: 'disk', info: [] }));
    client.reader.release();
    for (let i = 0; i < 40; i++) client.request(CMD.READ, 0, MiB);
    while (server.heldBytes < 2 * MiB) await new Promise((resolve) => setImmediate(resolve));
    await server.stop({ drainMs: 50 });
    expect(exports.opened.get('disk')).toBe(0);
    expect(server.heldBytes).toBe(0);
  });
});

describe('plain text before TLS', () => {
  it('counts for nothing: what was negotiated is forgotten', async () => {
    // Offered, not demanded: so there is something to negotiate.
    const { path } = await serve({ disk: filled(MiB) }, {}, files());
    const client = await RawClient.greet(path);
    await client.ask(OPT.STRUCTURED_REPLY);
    await client.ask(OPT.SET_META_CONTEXT, printMetaContext({ name: 'disk', queries: ['base:allocation'] }));
    await client.ask(OPT.STARTTLS);
    await client.secure(trust);
    const refused = await client.ask(OPT.SET_META_CONTEXT, printMetaContext({ name: 'disk', queries: [] }));
    expect(refused[0].type).toBe(REP.ERR_INVALID);
    await client.ask(OPT.GO, printGo({ name: 'disk', info: [] }));
    client.request(CMD.BLOCK_STATUS, 0, 512);
    expect((await client.reply()).error).toBe(22);
    client.request(CMD.READ, 0, 512);
    expect((await client.reply(512)).data).toHaveLength(512);
  });

  it.each([1, 20, 70_000])('behind STARTTLS costs the connection: %d bytes', async (count) => {
    const { path, log, idle } = await serve({ disk: filled(MiB) }, {}, files());
    const client = await RawClient.greet(path);
    const more = Buffer.concat(Array.from({ length: count / 16 + 1 }, () => option(OPT.STRUCTURED_REPLY)));
    client.socket.write(Buffer.concat([option(OPT.STARTTLS), more.subarray(0, count)]));
    expect(await client.closed()).toHaveLength(0);
    client.socket.destroy();
    await idle();
    expect(log).toEqual([expect.stringMatching(/behind STARTTLS in plain text/)]);
  });

  it('behind the reply is no handshake', async () => {
    const { path, log, idle } = await serve({ disk: filled(MiB) }, {}, files());
    const client = await RawClient.greet(path);
    await client.ask(OPT.STARTTLS);
    client.socket.write(option(OPT.GO, printGo({ name: 'disk', info: [] })));
    await client.closed();
    client.socket.destroy();
    await idle();
    expect(log).toEqual([expect.stringMatching(/TLS handshake failed/)]);
  });

  it('from a server costs it the client', async () => {
    const fake = await fakeServer();
    fake.option = (number) =>
      number === OPT.STARTTLS
        ? Buffer.concat([optionReply(number, REP.ACK), optionReply(OPT.STRUCTURED_REPLY, REP.ACK)])
        : undefined;
    const uri = `${fake.uri.replace('nbd+', 'nbds+')}&tls-certificates=${FIXTURES}`;
    await expect(NbdDevice.open(uri)).rejects.toMatchObject({
      code: 'NBD_PROTOCOL',
      message: expect.stringContaining('20 bytes in plain text'),
    });
  });
});

describe('certificates of clients', () => {
  it('are taken when the authority signed them', async () => {
    const { port, device } = await listen(mutual);
    const disk = await open(uriOf(port));
    await disk.write(bytes(512), Buffer.alloc(512, 9), 0, 512);
    const data = Buffer.alloc(512);
    device.read(bytes(512), data, 0, 512);
    expect(data).toEqual(Buffer.alloc(512, 9));
  });

  it.each(['TLSv1.2', 'TLSv1.3'] as const)('are demanded, and a stranger is refused, with %s', async (version) => {
    const { port, log, idle, exports } = await listen(mutual);
    const versions = { minVersion: version, maxVersion: version };
    const stranger = {
      cert: await readFile(join(STRANGER, 'client-cert.pem')),
      key: await readFile(join(STRANGER, 'client-key.pem')),
    };
    for (const certificate of [{}, stranger]) {
      const client = await RawClient.greet(port);
      await client.ask(OPT.STARTTLS);
      const attempt = async () => {
        await client.secure({ ...trust, ...versions, ...certificate });
        return client.ask(OPT.LIST);
      };
      await expect(attempt()).rejects.toThrow();
      client.socket.destroy();
    }
    await idle();
    expect(log).toHaveLength(2);
    for (const line of log) expect(line).toMatch(/TLS handshake failed/);
    expect(exports.opened.size).toBe(0);
  });

  it('are read again for every connection', async () => {
    const directory = await copy();
    const { port, log } = await listen(files(directory));
    await open(uriOf(port));
    await cp(join(STRANGER, 'server-cert.pem'), join(directory, 'server-cert.pem'));
    await cp(join(STRANGER, 'server-key.pem'), join(directory, 'server-key.pem'));
    await expect(NbdDevice.open(uriOf(port))).rejects.toMatchObject({ code: 'NBD_TLS' });
    await open(uriOf(port, STRANGER));
    await rm(join(directory, 'server-key.pem'));
    await expect(NbdDevice.open(uriOf(port, STRANGER))).rejects.toMatchObject({ code: 'NBD_TLS' });
    expect(log.at(-1)).toMatch(/server-key\.pem/);
  });
});

describe('a client', () => {
  it.each<[string, () => Promise<string>, RegExp]>([
    ['an authority it does not know', async () => STRANGER, /TLS handshake failed/],
    [
      'no authority',
      async () => {
        const directory = await copy();
        await rm(join(directory, 'ca-cert.pem'));
        return directory;
      },
      /ca-cert\.pem/,
    ],
    [
      'a certificate without its key',
      async () => {
        const directory = await copy();
        await rm(join(directory, 'client-key.pem'));
        return directory;
      },
      /client-key\.pem/,
    ],
    [
      'a certificate that is none',
      async () => {
        const directory = await copy();
        await writeFile(join(directory, 'client-cert.pem'), 'no certificate');
        return directory;
      },
      /TLS handshake failed/,
    ],
  ])('does not connect with %s', async (_what, directory, message) => {
    const { port } = await listen(mutual);
    const attempt = NbdDevice.open(uriOf(port, await directory()));
    await expect(attempt).rejects.toMatchObject({ code: 'NBD_TLS', message: expect.stringMatching(message) });
  });

  it('without a certificate is told so by a server that demands one', async () => {
    const directory = await copy();
    await rm(join(directory, 'client-cert.pem'));
    await rm(join(directory, 'client-key.pem'));
    await open(uriOf((await listen(files())).port, directory));
    const { port } = await listen(mutual);
    await expect(NbdDevice.open(uriOf(port, directory))).rejects.toMatchObject({ code: 'NBD_TLS' });
  });

  it('compares the name in the certificate with the host, or with tls-hostname', async () => {
    const { port } = await listen(files());
    await open(uriOf(port).replace('localhost', '127.0.0.1'));
    await expect(NbdDevice.open(uriOf(port).replace('localhost', '127.0.0.2'))).rejects.toMatchObject({
      code: 'NBD_CONNECT',
    });
    await expect(NbdDevice.open(uriOf(port, FIXTURES, '&tls-hostname=example.com'))).rejects.toMatchObject({
      code: 'NBD_TLS',
      message: expect.stringMatching(/example\.com/),
    });
    const directory = await copy();
    await open(uriOf(port, directory, '&tls-hostname=localhost'));
  });

  it('trusts no unknown authority without tls-certificates', async () => {
    const { port } = await listen(files());
    await expect(NbdDevice.open(`nbds://localhost:${port}/disk`)).rejects.toMatchObject({ code: 'NBD_TLS' });
  });

  it('does without TLS only when the URI says so', async () => {
    const { port } = await listen();
    await expect(NbdDevice.open(uriOf(port))).rejects.toMatchObject({
      code: 'NBD_TLS',
      message: expect.stringMatching(/demands TLS, and the server refused it: this server has no TLS/),
    });
    const demanding = await listen(files());
    await expect(NbdDevice.open(`nbd://localhost:${demanding.port}/disk`)).rejects.toMatchObject({
      code: 'NBD_TLS',
      message: expect.stringMatching(/the server demands TLS/),
    });
    const lenient = await listen({ ...files(), required: false });
    await open(`nbd://localhost:${lenient.port}/disk`);
    await open(uriOf(lenient.port));
  });

  it('does not wait for ever for a server that says nothing in the TLS handshake', async () => {
    const fake = await fakeServer();
    fake.option = (number) => (number === OPT.STARTTLS ? optionReply(number, REP.ACK) : undefined);
    const uri = `${fake.uri.replace('nbd+', 'nbds+')}&tls-certificates=${FIXTURES}`;
    const attempt = NbdDevice.open(uri);
    const failed = expect(attempt).rejects.toMatchObject({ code: 'NBD_TLS' });
    while (fake.connections === 0) await new Promise((resolve) => setImmediate(resolve));
    setImmediate(() => setImmediate(fake.cut));
    await failed;
  });

  it('connects again when the connection drops', async () => {
    const { port, server, device } = await listen(mutual);
    const disk = await open(uriOf(port));
    await server.stop({ drainMs: 0 });
    const next = new NbdServer(new FixedExports({ disk: device }), { tls: mutual });
    onTestFinished(() => next.stop());
    await next.listenTcp({ port });
    const [data, expected] = [Buffer.alloc(4096), Buffer.alloc(4096)];
    await disk.read(bytes(8192), data, 0, 4096);
    device.read(bytes(8192), expected, 0, 4096);
    expect(data).toEqual(expected);
  });

  it('asks for an absolute path where a table names the disk', async () => {
    await expect(nbdBackend.identify('nbds://localhost/disk?tls-certificates=certs')).rejects.toMatchObject({
      code: 'NBD_URI',
      message: expect.stringMatching(/not absolute/),
    });
  });
});

describe('listening', () => {
  it.each<[string, Partial<TlsOptions>, RegExp]>([
    ['that is not there', { key: '/nonexistent/key.pem' }, /Cannot read \/nonexistent\/key\.pem/],
    ['that is none', { cert: join(FIXTURES, 'README.md') }, /Cannot use the certificate/],
    ['of another certificate', { key: join(FIXTURES, 'client-key.pem') }, /Cannot use the certificate/],
  ])('fails with a key or certificate %s', async (_what, wrong, message) => {
    const server = new NbdServer(new FixedExports({}), { tls: { ...mutual, ...wrong } });
    await expect(server.listenTcp({ port: 0 })).rejects.toMatchObject({
      code: 'NBD_TLS',
      message: expect.stringMatching(message),
      hint: expect.any(String),
    });
  });

  it.each<[string, string, TlsOptions | undefined, boolean]>([
    ['loopback', '127.0.0.1', undefined, false],
    ['loopback by name', 'localhost', undefined, false],
    ['every address', '0.0.0.0', undefined, true],
    ['every address of IPv6', '::', undefined, true],
    ['every address with TLS', '0.0.0.0', files(), false],
    ['every address with TLS for those who like', '0.0.0.0', { ...files(), required: false }, true],
  ])('warns where others can read along: %s', async (_what, host, tls, warns) => {
    const { log } = await listen(tls, host);
    expect(log).toEqual(warns ? [expect.stringMatching(/without TLS: whoever reaches it can read and write/)] : []);
  });
});

it('says in one line of the log that a client went in the middle of the TLS handshake', async () => {
  const { path, log, idle } = await serve({ disk: filled(MiB) }, {}, files());
  const client = await RawClient.greet(path);
  await client.ask(OPT.STARTTLS);
  client.socket.write(Buffer.from([0x16, 0x03, 0x01]));
  client.socket.destroy();
  await idle();
  expect(log).toEqual([expect.stringMatching(/TLS handshake/)]);
});
