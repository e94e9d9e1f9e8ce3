/**
 * The client's side of the NBD handshake (doc/proto.md, "Handshake"): fixed newstyle with GO, else EXPORT_NAME. What the
 * server sends is not believed: counts and lengths have limits, and sizes must make sense.
 */
import { connect, type Socket } from 'node:net';
import { DmError, FormatError, fromSystem } from '../errors.ts';
import {
  BASE_ALLOCATION,
  FLAG,
  HANDSHAKE,
  INFO,
  INIT_MAGIC,
  isRepError,
  OPT,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  REP,
} from '../formats/nbd/constants.ts';
import {
  clientFlags,
  EXPORT_NAME_ZEROES,
  encode,
  exportNameReply,
  greeting,
  option,
  optionReplyHeader,
  parseContext,
  parseInfo,
  printable,
  printGo,
  printMetaContext,
  viewOf,
} from '../formats/nbd/handshake.ts';
import { type NbdAddress, printNbdUri } from '../formats/nbd/uri.ts';
import { ByteReader } from '../lib/byte-reader.ts';
import { connectTls, tlsFailed } from './nbd-tls.ts';

const HANDSHAKE_MS = 10_000;
/** Replies to one option, and the data of one. */
const REPLIES_MAX = 1000;
const REPLY_BYTES_MAX = 64 * 1024;
/** "Block size constraints": the maximum when the server says nothing, and the most that is ever asked for. */
const PAYLOAD_MAX = 32 * 1024 * 1024;
/** "The minimum block size is at most 64 KiB." */
const MINIMUM_MAX = 64 * 1024;

/** What an export is and takes. */
export interface NbdGeometry {
  /** Bytes, a multiple of 512. */
  size: number;
  /** Transmission flags. */
  flags: number;
  /** Bytes, a power of two from 512 on. */
  minimum: number;
  /** Payload bytes of one request, a multiple of `minimum`. */
  maximum: number;
  structured: boolean;
  /** Id of `base:allocation` in this session. */
  allocation: number | undefined;
}

export interface NbdLink {
  socket: Socket;
  geometry: NbdGeometry;
  /** Bytes that came behind the handshake. */
  rest: Buffer;
}

interface Reply {
  type: number;
  data: Buffer;
}

const broken = (state: string) => new FormatError('NBD_PROTOCOL', 'EIO', `the server ${state}`);

const noTls = (state: string) =>
  new DmError('NBD_TLS', 'EOPNOTSUPP', `the URI demands TLS, and the server ${state}`, {
    hint: 'have the server offer TLS; nbd:// in place of nbds:// goes without, for everybody on the way to read',
  });

/** Connects and negotiates. Rejects with a DmError that names the URI, at the latest after ten seconds. */
export async function connectNbd(address: NbdAddress): Promise<NbdLink> {
  const attempted = `Cannot open ${printNbdUri(address)}`;
  const socket = address.kind === 'unix' ? connect(address.socket) : connect(address.port, address.host);
  if (address.kind === 'tcp') socket.setNoDelay(true).setKeepAlive(true, 15_000);
  let late: DmError | undefined;
  const tooSlow = setTimeout(() => {
    late = new DmError('NBD_CONNECT', 'ETIMEDOUT', `no answer within ${HANDSHAKE_MS / 1000} s`);
    socket.destroy(late);
  }, HANDSHAKE_MS);
  // Whoever reads learns of an error; between two readers it must not be thrown.
  socket.on('error', () => {});
  try {
    return await new ClientHandshake(socket, address).run();
  } catch (reason) {
    socket.destroy();
    let error = late ?? (reason as NodeJS.ErrnoException);
    // An alert: in TLS 1.3 the server judges the client's certificate after the client believes all is well.
    if (error.code?.startsWith('ERR_SSL')) error = tlsFailed(error);
    if (error instanceof DmError) {
      const { code, errno, message, hint } = error;
      throw new DmError(code, errno, `${attempted}: ${message}`, { hint, cause: error });
    }
    const { errno, message } = fromSystem(error, attempted);
    const hint = 'check that the server runs, and that it listens there';
    throw new DmError('NBD_CONNECT', errno, message, { hint, cause: error });
  } finally {
    clearTimeout(tooSlow);
  }
}

class ClientHandshake {
  /** Replaced when TLS begins. */
  #socket: Socket;
  #reader: ByteReader;
  readonly #address: NbdAddress;
  readonly #name: string;
  #noZeroes = false;
  #structured = false;
  #allocation: number | undefined;
  #blocks: { minimum: number; maximum: number } | undefined;

  constructor(socket: Socket, address: NbdAddress) {
    this.#socket = socket;
    this.#reader = new ByteReader(socket);
    this.#address = address;
    this.#name = address.exportName;
  }

  async run(): Promise<NbdLink> {
    const { init, magic, flags } = greeting.get(viewOf(await this.#take(greeting.size)), 0);
    if (init !== INIT_MAGIC) throw broken('is no NBD server');
    if (magic !== OPTION_MAGIC) throw broken('speaks only the oldstyle protocol of before 2011');
    const fixed = (flags & HANDSHAKE.FIXED_NEWSTYLE) !== 0;
    this.#noZeroes = (flags & HANDSHAKE.NO_ZEROES) !== 0;
    this.#socket.write(encode(clientFlags, flags & (HANDSHAKE.FIXED_NEWSTYLE | HANDSHAKE.NO_ZEROES)));
    if (this.#address.tls) {
      if (!fixed) throw noTls('speaks a protocol from before options');
      await this.#startTls();
    }
    let found = fixed ? await this.#go() : undefined;
    found ??= await this.#exportName();
    const geometry = this.#geometry(found.size, found.flags);
    return { socket: this.#socket, geometry, rest: this.#reader.release() };
  }

  /** The first option, so that nothing is negotiated in plain text. */
  async #startTls(): Promise<void> {
    const reply = (await this.#ask(OPT.STARTTLS)).at(-1)!;
    if (reply.type !== REP.ACK) throw noTls(`refused it${reply.data.length > 0 ? `: ${printable(reply.data)}` : ''}`);
    // A server says nothing before the client does: someone on the line put it there.
    const early = this.#reader.release().length + this.#socket.readableLength;
    if (early > 0) throw broken(`sent ${early} bytes in plain text before TLS began`);
    this.#socket = await connectTls(this.#socket, this.#address);
    this.#reader = new ByteReader(this.#socket);
  }

  /** Undefined when the server does not know GO. */
  async #go(): Promise<{ size: number; flags: number } | undefined> {
    this.#structured = (await this.#ask(OPT.STRUCTURED_REPLY)).at(-1)!.type === REP.ACK;
    if (this.#structured) {
      const queries = [BASE_ALLOCATION];
      for (const { type, data } of await this.#ask(
        OPT.SET_META_CONTEXT,
        printMetaContext({ name: this.#name, queries }),
      )) {
        if (type !== REP.META_CONTEXT) continue;
        const { id, name } = parseContext(data);
        if (name === BASE_ALLOCATION) this.#allocation = id;
      }
    }
    const replies = await this.#ask(OPT.GO, printGo({ name: this.#name, info: [INFO.BLOCK_SIZE] }));
    const last = replies.at(-1)!;
    if (last.type === REP.ERR_UNSUP) return undefined;
    if (isRepError(last.type)) throw refused(last);
    let found: { size: number; flags: number } | undefined;
    for (const { type, data } of replies) {
      if (type !== REP.INFO) continue;
      const info = parseInfo(data);
      if (info.type === INFO.EXPORT) found = info;
      else if (info.type === INFO.BLOCK_SIZE) this.#blocks = info;
    }
    if (!found) throw broken('did not say how large the export is');
    return found;
  }

  async #exportName(): Promise<{ size: number; flags: number }> {
    this.#socket.write(option(OPT.EXPORT_NAME, Buffer.from(this.#name)));
    const reply = await this.#reader.take(exportNameReply.size);
    if (!reply) {
      throw new DmError('NBD_EXPORT', 'ENOENT', `the server refused export "${this.#name}" and closed the connection`);
    }
    if (!this.#noZeroes) await this.#take(EXPORT_NAME_ZEROES);
    return exportNameReply.get(viewOf(reply), 0);
  }

  /** Sends an option; resolves with all replies to it, of which the last is the final one. */
  async #ask(number: number, data?: Uint8Array): Promise<Reply[]> {
    this.#socket.write(option(number, data));
    const replies: Reply[] = [];
    for (;;) {
      const head = optionReplyHeader.get(viewOf(await this.#take(optionReplyHeader.size)), 0);
      if (head.magic !== OPTION_REPLY_MAGIC) throw broken('sent an option reply without its magic');
      if (head.option !== number) throw broken(`answered option ${head.option} when asked for ${number}`);
      if (head.length > REPLY_BYTES_MAX) throw broken(`sent an option reply of ${head.length} bytes`);
      if (replies.length === REPLIES_MAX) throw broken(`sent more than ${REPLIES_MAX} replies to one option`);
      replies.push({ type: head.type, data: await this.#take(head.length) });
      if (head.type === REP.ACK || isRepError(head.type)) return replies;
    }
  }

  #geometry(size: number, flags: number): NbdGeometry {
    if (size > Number.MAX_SAFE_INTEGER) throw broken(`says that the export has ${size} bytes`);
    if (size % 512 !== 0) {
      throw new DmError('NBD_SIZE', 'EINVAL', `the export has ${size} bytes, which is not a multiple of 512`, {
        hint: 'serve it rounded up, e.g. nbdkit --filter=truncate file IMAGE round-up=512',
      });
    }
    const { minimum = 512, maximum = PAYLOAD_MAX } = this.#blocks ?? {};
    if (minimum < 1 || minimum > MINIMUM_MAX || (minimum & (minimum - 1)) !== 0 || maximum < minimum) {
      throw broken(`says that its blocks are from ${minimum} to ${maximum} bytes`);
    }
    const block = Math.max(512, minimum);
    if (maximum < block) throw broken(`takes no more than ${maximum} bytes at once`);
    return {
      size,
      flags: (flags & FLAG.HAS_FLAGS) === 0 ? FLAG.HAS_FLAGS : flags,
      minimum: block,
      maximum: Math.floor(Math.min(maximum, PAYLOAD_MAX) / block) * block,
      structured: this.#structured,
      allocation: this.#allocation,
    };
  }

  async #take(length: number): Promise<Buffer> {
    const data = await this.#reader.take(length);
    if (!data) throw broken('closed the connection during the handshake');
    return data;
  }
}

function refused({ type, data }: Reply): DmError {
  const text = data.length > 0 ? `the server says: ${printable(data)}` : 'the server gives no reason';
  switch (type) {
    case REP.ERR_UNKNOWN:
      return new DmError('NBD_EXPORT', 'ENOENT', `no such export (${text})`, {
        hint: 'nbdinfo --list URI shows the exports',
      });
    case REP.ERR_TLS_REQD:
      return new DmError('NBD_TLS', 'EACCES', 'the server demands TLS', {
        hint: 'write nbds:// in place of nbd://, with ?tls-certificates=/DIRECTORY unless a public authority signed its certificate',
      });
    case REP.ERR_POLICY:
      return new DmError('NBD_EXPORT', 'EACCES', `the export is not to be had (${text})`);
    default:
      return new DmError('NBD_EXPORT', 'EIO', `the server refused with error 0x${type.toString(16)} (${text})`);
  }
}
