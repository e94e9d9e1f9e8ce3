import { mkdtemp, rm } from 'node:fs/promises';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ConnectionOptions, connect as connectTls, type TLSSocket } from 'node:tls';
import { onTestFinished } from 'vitest';
import type { BlockDevice } from '../../src/device/block-device.ts';
import { MemoryDevice } from '../../src/device/memory.ts';
import { DmError } from '../../src/errors.ts';
import { CHUNK_DONE, CMD, OPT, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC } from '../../src/formats/nbd/constants.ts';
import {
  encode,
  option,
  optionReplyHeader,
  printGo,
  printMetaContext,
  viewOf,
} from '../../src/formats/nbd/handshake.ts';
import { chunkHeader, requestHeader, simpleReply } from '../../src/formats/nbd/transmission.ts';
import { ByteReader } from '../../src/lib/byte-reader.ts';
import type { Exports, OpenExport } from '../../src/services/nbd/exports.ts';
import type { Limits } from '../../src/services/nbd/limits.ts';
import { NbdServer } from '../../src/services/nbd/server.ts';
import type { TlsOptions } from '../../src/services/nbd/tls.ts';
import { bytes } from '../../src/units.ts';

export const MiB = 1 << 20;

/** Exports of fixed devices that count how often each is open. */
export class FixedExports implements Exports {
  readonly opened = new Map<string, number>();
  readonly #devices: Record<string, BlockDevice & Partial<OpenExport>>;

  constructor(devices: Record<string, BlockDevice & Partial<OpenExport>>) {
    this.#devices = devices;
  }

  async list() {
    return Object.keys(this.#devices).map((name) => ({ name, description: `${name} of the test` }));
  }

  async open(name: string): Promise<OpenExport> {
    const device = Object.hasOwn(this.#devices, name) ? this.#devices[name] : undefined;
    if (!device) throw new DmError('NO_DEVICE', 'ENXIO', `there is no device ${name}`);
    this.opened.set(name, (this.opened.get(name) ?? 0) + 1);
    return {
      device,
      readOnly: device.readOnly,
      description: `${name} of the test`,
      changed: device.changed?.bind(device),
      close: async () => void this.opened.set(name, this.opened.get(name)! - 1),
    };
  }
}

/** What a device has now. */
export const contents = (device: MemoryDevice, at: number, length: number): Buffer => {
  const data = Buffer.alloc(length);
  device.read(bytes(at), data, 0, length);
  return data;
};

export interface Served {
  server: NbdServer;
  exports: FixedExports;
  path: string;
  log: string[];
  uri(name: string): string;
  /** Resolves when no export is open any more. */
  idle(): Promise<void>;
}

/** A server on a Unix socket in a directory of its own. */
export async function start(
  devices: Record<string, BlockDevice & Partial<OpenExport>>,
  limits: Partial<Limits> = {},
  tls?: TlsOptions,
): Promise<Served & { stop(): Promise<void> }> {
  const directory = await mkdtemp(join(tmpdir(), 'dmkit-nbd-'));
  const path = join(directory, 'nbd.sock');
  const log: string[] = [];
  const exports = new FixedExports(devices);
  const server = new NbdServer(exports, { log: (line) => log.push(line), limits, tls });
  await server.listenUnix(path);
  const stop = async () => {
    await server.stop({ drainMs: 200 });
    await rm(directory, { recursive: true });
  };
  const idle = async () => {
    while (server.connectionCount > 0) await new Promise((resolve) => setImmediate(resolve));
  };
  const uri = (name: string) => `nbd+unix:///${encodeURIComponent(name)}?socket=${path}`;
  return { server, exports, path, log, idle, uri, stop };
}

/** One that lives as long as the test. */
export async function serve(...args: Parameters<typeof start>): Promise<Served> {
  const served = await start(...args);
  onTestFinished(() => served.stop());
  return served;
}

export interface RawReply {
  error: number;
  cookieLow: number;
  cookieHigh: number;
  /** Of a structured reply. */
  chunks: { type: number; flags: number; payload: Buffer }[];
  data: Buffer | undefined;
}

/** A client that says exactly what a test wants said. */
export class RawClient {
  socket: Socket;
  reader: ByteReader;
  structured = false;

  /** A socket's path, or a port on loopback. */
  constructor(where: string | number) {
    this.socket = connect(typeof where === 'string' ? { path: where, allowHalfOpen: true } : { port: where });
    this.socket.on('error', () => {});
    this.reader = new ByteReader(this.socket);
    onTestFinished(() => void this.socket.destroy());
  }

  /** Reads the greeting and sends client flags. */
  static async greet(path: string | number, flags = 3): Promise<RawClient> {
    const client = new RawClient(path);
    await client.reader.take(18);
    const data = Buffer.alloc(4);
    data.writeUInt32BE(flags);
    client.socket.write(data);
    return client;
  }

  static async go(
    path: string,
    name: string,
    { structured = false, contexts = [] as string[] } = {},
  ): Promise<RawClient> {
    const client = await RawClient.greet(path);
    if (structured) {
      await client.ask(OPT.STRUCTURED_REPLY);
      client.structured = true;
    }
    if (contexts.length > 0) await client.ask(OPT.SET_META_CONTEXT, printMetaContext({ name, queries: contexts }));
    const replies = await client.ask(OPT.GO, printGo({ name, info: [] }));
    if (replies.at(-1)!.type !== 1) throw new Error(`GO: ${replies.at(-1)!.data}`);
    return client;
  }

  /** The TLS handshake, after STARTTLS was answered. */
  async secure(options: ConnectionOptions): Promise<TLSSocket> {
    this.reader.release();
    const socket = connectTls({ socket: this.socket, ...options });
    await new Promise<void>((resolve, reject) => socket.once('secureConnect', resolve).once('error', reject));
    socket.on('error', () => {});
    this.socket = socket;
    this.reader = new ByteReader(socket);
    return socket;
  }

  async ask(number: number, data?: Uint8Array): Promise<{ type: number; data: Buffer }[]> {
    this.socket.write(option(number, data));
    const replies = [];
    for (;;) {
      const head = optionReplyHeader.get(viewOf(await this.take(20)), 0);
      if (head.option !== number) throw new Error(`reply to option ${head.option}`);
      replies.push({ type: head.type, data: await this.take(head.length) });
      if (head.type === 1 || head.type >= 2 ** 31) return replies;
    }
  }

  request(
    type: number,
    offset = 0,
    length = 0,
    { flags = 0, cookie = 1, data = Buffer.alloc(0) as Buffer, magic = REQUEST_MAGIC } = {},
  ) {
    const cookieHigh = 0x80000001;
    const head = encode(requestHeader, { magic, flags, type, cookieHigh, cookieLow: cookie, offset, length });
    this.socket.write(Buffer.concat([head, data]));
  }

  write(offset: number, data: Buffer, flags = 0, cookie = 1): void {
    this.request(CMD.WRITE, offset, data.length, { data, flags, cookie });
  }

  /** The next reply, `length` bytes of data included if it is a successful simple one to a read. */
  async reply(length = 0): Promise<RawReply> {
    const chunks: RawReply['chunks'] = [];
    for (;;) {
      const start = await this.take(16);
      const simple = simpleReply.get(viewOf(start), 0);
      if (simple.magic === SIMPLE_REPLY_MAGIC) {
        const data = simple.error === 0 && length > 0 ? await this.take(length) : undefined;
        return { ...simple, chunks, data };
      }
      const head = chunkHeader.get(viewOf(Buffer.concat([start, await this.take(4)])), 0);
      const payload = await this.take(head.length);
      chunks.push({ type: head.type, flags: head.flags, payload });
      if ((head.flags & CHUNK_DONE) === 0) continue;
      const error = head.type >= 0x8000 ? payload.readUInt32BE() : 0;
      const { cookieHigh, cookieLow } = head;
      return { error, cookieHigh, cookieLow, chunks, data: head.type === 1 ? payload.subarray(8) : undefined };
    }
  }

  async take(length: number): Promise<Buffer> {
    const data = await this.reader.take(length);
    if (!data) throw new Error('the server closed the connection');
    return data;
  }

  /** Resolves when the server has closed the connection, with what it sent before. */
  async closed(): Promise<Buffer> {
    const parts: Uint8Array[] = [];
    for (;;) {
      const byte = await this.reader.take(1).catch(() => undefined);
      if (!byte) return Buffer.concat(parts);
      parts.push(byte);
    }
  }
}

/** A device that answers later, by the turns of the event loop that `turns` gives. */
export function delayed(device: BlockDevice, turns: () => number): BlockDevice {
  const later = async <T>(work: () => T | Promise<T>): Promise<T> => {
    for (let left = turns(); left > 0; left--) await new Promise((resolve) => setImmediate(resolve));
    return work();
  };
  return {
    name: device.name,
    get size() {
      return device.size;
    },
    blockSize: device.blockSize,
    readOnly: device.readOnly,
    canDiscard: device.canDiscard,
    read: (at, into, start, length) => later(() => device.read(at, into, start, length)),
    write: (at, from, start, length) => later(() => device.write(at, from, start, length)),
    flush: () => later(() => device.flush()),
    discard: (at, length) => later(() => device.discard(at, length)),
    writeZeroes: (at, length, mayUnmap) => later(() => device.writeZeroes(at, length, mayUnmap)),
    extents: (at, length) => later(() => device.extents(at, length)),
    close: () => device.close(),
  };
}

export const filled = (size: number, seed = 1): MemoryDevice => {
  const device = new MemoryDevice(size);
  const data = Buffer.alloc(size);
  for (let i = 0; i < size; i += 4) data.writeUInt32LE((Math.imul(i + seed, 2654435761) ^ i) >>> 0, i);
  device.write(0 as never, data, 0, size);
  return device;
};
