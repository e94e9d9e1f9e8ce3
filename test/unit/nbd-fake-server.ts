import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import {
  CMD,
  FLAG,
  INFO,
  OPT,
  REP,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from '../../src/formats/nbd/constants.ts';
import {
  encode,
  exportNameReply,
  greeting,
  infoBlockSize,
  infoExport,
  optionHeader,
  optionReply,
  printContext,
  viewOf,
} from '../../src/formats/nbd/handshake.ts';
import { chunkHeader, requestHeader, simpleReply } from '../../src/formats/nbd/transmission.ts';
import { ByteReader } from '../../src/lib/byte-reader.ts';

export interface FakeRequest {
  type: number;
  flags: number;
  cookieHigh: number;
  cookieLow: number;
  offset: number;
  length: number;
  data: Buffer;
}

/** What a fake server says; each part can be changed between connections. */
export interface FakeServer {
  uri: string;
  size: number;
  flags: number;
  blocks: { minimum: number; maximum: number } | undefined;
  structured: boolean;
  knowsGo: boolean;
  /** What it sends first; a normal greeting when undefined. */
  hello: Buffer | undefined;
  /** Replaces its answer to an option. */
  option: ((option: number) => Buffer | undefined) | undefined;
  request: (request: FakeRequest, connection: FakeConnection) => void | Promise<void>;
  /** Every request seen, over all connections. */
  seen: FakeRequest[];
  connections: number;
  /** Cuts all connections, as a server that is killed. */
  cut(): void;
  /** Stops and starts listening. */
  close(): Promise<void>;
  listen(): Promise<void>;
}

export class FakeConnection {
  readonly socket: Socket;

  constructor(socket: Socket) {
    this.socket = socket;
  }

  simple({ cookieHigh, cookieLow }: FakeRequest, error = 0, data = Buffer.alloc(0)): void {
    const head = encode(simpleReply, { magic: SIMPLE_REPLY_MAGIC, error, cookieHigh, cookieLow });
    this.socket.write(Buffer.concat([head, data]));
  }

  chunk(
    { cookieHigh, cookieLow }: FakeRequest,
    type: number,
    payload: Buffer,
    flags = 1,
    length = payload.length,
  ): void {
    const head = encode(chunkHeader, { magic: STRUCTURED_REPLY_MAGIC, flags, type, cookieHigh, cookieLow, length });
    this.socket.write(Buffer.concat([head, payload]));
  }
}

/** A server that answers as a test wants, over a correct handshake unless told otherwise. */
export async function fakeServer(
  request: FakeServer['request'] = (seen, connection) =>
    connection.simple(seen, 0, Buffer.alloc(seen.type === CMD.READ ? seen.length : 0)),
): Promise<FakeServer> {
  const directory = await mkdtemp(join(tmpdir(), 'dmkit-nbd-'));
  const path = join(directory, 'nbd.sock');
  const sockets = new Set<Socket>();
  const fake: FakeServer = {
    uri: `nbd+unix:///disk?socket=${path}`,
    size: 1 << 20,
    flags: FLAG.HAS_FLAGS | FLAG.SEND_FLUSH | FLAG.SEND_TRIM | FLAG.SEND_WRITE_ZEROES,
    blocks: undefined,
    structured: false,
    knowsGo: true,
    hello: undefined,
    option: undefined,
    request,
    seen: [],
    connections: 0,
    cut: () => {
      for (const socket of sockets) socket.destroy();
    },
    close: () => new Promise((resolve) => server.close(() => resolve())),
    listen: () => new Promise((resolve) => server.listen(path, resolve)),
  };
  const server = createServer((socket) => {
    fake.connections++;
    sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => sockets.delete(socket));
    converse(socket, fake).catch(() => socket.destroy());
  });
  await fake.listen();
  onTestFinished(async () => {
    fake.cut();
    if (server.listening) await fake.close();
    await rm(directory, { recursive: true, force: true });
  });
  return fake;
}

async function converse(socket: Socket, fake: FakeServer): Promise<void> {
  const reader = new ByteReader(socket);
  const take = async (length: number) => {
    const data = await reader.take(length);
    if (!data) throw new Error('the client is gone');
    return data;
  };
  socket.write(fake.hello ?? encode(greeting, { init: 'NBDMAGIC', magic: 'IHAVEOPT', flags: 3 }));
  await take(4);
  for (let entered = false; !entered; ) {
    const { option, length } = optionHeader.get(viewOf(await take(16)), 0);
    await take(length);
    const instead = fake.option?.(option);
    if (instead) {
      socket.write(instead);
      continue;
    }
    switch (option) {
      case OPT.EXPORT_NAME:
        socket.write(encode(exportNameReply, { size: fake.size, flags: fake.flags }));
        entered = true;
        break;
      case OPT.GO: {
        if (!fake.knowsGo) {
          socket.write(optionReply(option, REP.ERR_UNSUP));
          break;
        }
        const { size, flags, blocks } = fake;
        socket.write(optionReply(option, REP.INFO, encode(infoExport, { type: INFO.EXPORT, size, flags })));
        if (blocks) {
          const info = { type: INFO.BLOCK_SIZE, preferred: blocks.minimum, ...blocks };
          socket.write(optionReply(option, REP.INFO, encode(infoBlockSize, info)));
        }
        socket.write(optionReply(option, REP.ACK));
        entered = true;
        break;
      }
      case OPT.STRUCTURED_REPLY:
        socket.write(optionReply(option, fake.structured ? REP.ACK : REP.ERR_UNSUP));
        break;
      case OPT.SET_META_CONTEXT:
        socket.write(optionReply(option, REP.META_CONTEXT, printContext(42, 'base:allocation')));
        socket.write(optionReply(option, REP.ACK));
        break;
      default:
        socket.write(optionReply(option, REP.ERR_UNSUP));
    }
  }
  const connection = new FakeConnection(socket);
  for (;;) {
    const head = requestHeader.get(viewOf(await take(28)), 0);
    const request = { ...head, data: head.type === CMD.WRITE ? await take(head.length) : Buffer.alloc(0) };
    if (head.type === CMD.DISC) {
      socket.end();
      return;
    }
    fake.seen.push(request);
    await fake.request(request, connection);
  }
}
