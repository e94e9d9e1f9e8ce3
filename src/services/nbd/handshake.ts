/**
 * The server's side of the handshake (doc/proto.md, "Handshake", "Option types").
 *
 * Slow by design: it runs once per connection and awaits each step. A client that breaks the protocol is disconnected by
 * throwing; the caller logs the one line. What a client may merely not have is answered and the handshake goes on.
 */
import type { Socket } from 'node:net';
import { DmError, FormatError, fromSystem } from '../../errors.ts';
import {
  BASE_ALLOCATION,
  DMKIT_CHANGED,
  FLAG,
  HANDSHAKE,
  INFO,
  INIT_MAGIC,
  OPT,
  OPTION_MAGIC,
  REP,
  STRING_MAX,
} from '../../formats/nbd/constants.ts';
import {
  clientFlags,
  EXPORT_NAME_ZEROES,
  encode,
  exportNameReply,
  greeting,
  infoBlockSize,
  infoExport,
  optionHeader,
  optionReply,
  Payload,
  parseGo,
  parseMetaContext,
  printContext,
  printInfoText,
  printServer,
  viewOf,
} from '../../formats/nbd/handshake.ts';
import { ByteReader } from '../../lib/byte-reader.ts';
import type { Exports, OpenExport } from './exports.ts';
import type { Limits } from './limits.ts';
import { serveTls, type TlsOptions } from './tls.ts';

/** Ids on the wire; a negotiated context of an export. */
export const CONTEXT_ID = { [BASE_ALLOCATION]: 1, [DMKIT_CHANGED]: 2 } as const;
export type ContextName = keyof typeof CONTEXT_ID;

/** What the transmission phase needs to know. */
export interface Session {
  name: string;
  open: OpenExport;
  structured: boolean;
  contexts: ContextName[];
  /** Over TLS. */
  secure: boolean;
}

/** The handshake's end. */
export interface Negotiated {
  /** The socket, or TLS over it. */
  stream: Socket;
  /** Its export is open. Undefined when the client left in good order. */
  session: Session | undefined;
  /** Bytes that came behind the handshake. */
  rest: Buffer;
}

/** TLS as one listener has it. */
export interface ListenerTls {
  options: TlsOptions;
  required: boolean;
}

export function transmissionFlags(open: OpenExport): number {
  let flags = FLAG.HAS_FLAGS | FLAG.SEND_FLUSH | FLAG.SEND_FUA | FLAG.SEND_WRITE_ZEROES | FLAG.SEND_FAST_ZERO;
  flags |= FLAG.SEND_DF | FLAG.SEND_CACHE | FLAG.CAN_MULTI_CONN;
  if (open.readOnly) flags |= FLAG.READ_ONLY;
  if (open.device.canDiscard) flags |= FLAG.SEND_TRIM;
  return flags;
}

const violation = (state: string) => new FormatError('NBD_PROTOCOL', 'EINVAL', state);

/** Rejects when the client broke the protocol or went in the middle of it. */
export async function negotiate(
  socket: Socket,
  exports: Exports,
  limits: Limits,
  tls: ListenerTls | undefined,
): Promise<Negotiated> {
  return new Handshake(socket, exports, limits, tls).negotiate();
}

class Handshake {
  /** Replaced when TLS begins. */
  #stream: Socket;
  #reader: ByteReader;
  readonly #exports: Exports;
  readonly #limits: Limits;
  readonly #tls: ListenerTls | undefined;
  #secure = false;
  #noZeroes = false;
  #structured = false;
  /** The contexts that SET_META_CONTEXT chose, and the export they were chosen for. */
  #contexts: { name: string; chosen: ContextName[] } | undefined;

  constructor(socket: Socket, exports: Exports, limits: Limits, tls: ListenerTls | undefined) {
    this.#stream = socket;
    this.#reader = new ByteReader(socket);
    this.#exports = exports;
    this.#limits = limits;
    this.#tls = tls;
  }

  async negotiate(): Promise<Negotiated> {
    const session = await this.#run().catch((error: NodeJS.ErrnoException) => {
      if (error.syscall === 'read') throw fromSystem(error, 'lost the connection during the handshake');
      throw error;
    });
    return { stream: this.#stream, session, rest: this.#reader.release() };
  }

  async #run(): Promise<Session | undefined> {
    const { FIXED_NEWSTYLE, NO_ZEROES } = HANDSHAKE;
    await this.#send(encode(greeting, { init: INIT_MAGIC, magic: OPTION_MAGIC, flags: FIXED_NEWSTYLE | NO_ZEROES }));
    const first = await this.#reader.take(clientFlags.size);
    if (!first) return undefined;
    const flags = clientFlags.get(viewOf(first), 0);
    if (flags & ~(FIXED_NEWSTYLE | NO_ZEROES)) throw violation(`sent unknown client flags 0x${flags.toString(16)}`);
    this.#noZeroes = (flags & NO_ZEROES) !== 0;

    let bytes = 0;
    for (let count = 0; ; count++) {
      const head = await this.#reader.take(optionHeader.size);
      if (!head) {
        if (this.#reader.buffered > 0) throw violation('disconnected in the middle of an option');
        return undefined;
      }
      const { magic, option, length } = optionHeader.get(viewOf(head), 0);
      if (magic !== OPTION_MAGIC) throw violation('sent an option without the magic IHAVEOPT');
      if (count >= this.#limits.options) throw violation(`sent more than ${this.#limits.options} options`);
      bytes += length;
      if (bytes > this.#limits.handshakeBytes) {
        throw violation(`sent more than ${this.#limits.handshakeBytes} bytes of options`);
      }
      if (this.#tls?.required && !this.#secure && option !== OPT.STARTTLS && option !== OPT.ABORT) {
        // There is no reply to EXPORT_NAME but the export.
        if (option === OPT.EXPORT_NAME) throw violation('asked for an export without TLS, which this server demands');
        if (!(await this.#reader.skip(length))) throw violation('disconnected in the middle of an option');
        await this.#refuse(option, REP.ERR_TLS_REQD, 'this server demands TLS');
        continue;
      }
      if (length > this.#limits.optionBytes) {
        if (option === OPT.EXPORT_NAME) throw violation(`sent an export name of ${length} bytes`);
        if (!(await this.#reader.skip(length))) throw violation('disconnected in the middle of an option');
        await this.#refuse(
          option,
          REP.ERR_TOO_BIG,
          `the option has ${length} bytes, more than ${this.#limits.optionBytes}`,
        );
        continue;
      }
      const data = await this.#reader.take(length);
      if (!data) throw violation('disconnected in the middle of an option');
      if (option === OPT.ABORT) {
        // Many a client does not wait for it.
        await this.#send(optionReply(option, REP.ACK)).catch(() => {});
        return undefined;
      }
      const session = await this.#answer(option, data);
      if (session) return session;
    }
  }

  async #answer(option: number, data: Buffer): Promise<Session | undefined> {
    if (option === OPT.EXPORT_NAME) return this.#exportName(data);
    if (option === OPT.STARTTLS) {
      await this.#startTls(data);
      return undefined;
    }
    try {
      switch (option) {
        case OPT.GO:
        case OPT.INFO:
          return await this.#go(option, data);
        case OPT.LIST:
          await this.#list(data);
          break;
        case OPT.STRUCTURED_REPLY:
          new Payload(data, 'the STRUCTURED_REPLY option').end();
          this.#structured = true;
          await this.#send(optionReply(option, REP.ACK));
          break;
        case OPT.LIST_META_CONTEXT:
        case OPT.SET_META_CONTEXT:
          await this.#metaContext(option, data);
          break;
        default:
          await this.#refuse(option, REP.ERR_UNSUP, `option ${option} is not known to this server`);
      }
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      // The option was read to its end, so the stream is in step whatever it held.
      await this.#refuse(option, refusal(error), error.message);
    }
    return undefined;
  }

  /**
   * Nothing that came in plain text may count behind it: whoever sits on the line could have put it there. So what was
   * negotiated before is forgotten, and a client that does not wait for the reply is disconnected.
   */
  async #startTls(data: Buffer): Promise<void> {
    if (!this.#tls) return this.#refuse(OPT.STARTTLS, REP.ERR_POLICY, 'this server has no TLS');
    if (this.#secure) return this.#refuse(OPT.STARTTLS, REP.ERR_INVALID, 'TLS is in use already');
    if (data.length > 0) return this.#refuse(OPT.STARTTLS, REP.ERR_INVALID, 'STARTTLS has no data');
    const early = this.#reader.release().length + this.#stream.readableLength;
    if (early > 0) throw violation(`sent ${early} bytes behind STARTTLS in plain text`);
    await this.#send(optionReply(OPT.STARTTLS, REP.ACK));
    // What comes from here on is for TLS, and fails if it is anything else.
    this.#stream = await serveTls(this.#stream, this.#tls.options);
    this.#reader = new ByteReader(this.#stream);
    this.#secure = true;
    this.#structured = false;
    this.#contexts = undefined;
  }

  /** There is no reply for an error, so the connection ends instead. */
  async #exportName(data: Buffer): Promise<Session> {
    if (data.length > STRING_MAX) throw violation(`sent an export name of ${data.length} bytes`);
    const asked = new Payload(data, 'the EXPORT_NAME option').string(data.length);
    const { name, open } = await this.#open(asked);
    const reply = encode(exportNameReply, { size: open.device.size, flags: transmissionFlags(open) });
    await this.#send(this.#noZeroes ? reply : Buffer.concat([reply, Buffer.alloc(EXPORT_NAME_ZEROES)]), open);
    return this.#session(asked, name, open);
  }

  async #go(option: number, data: Buffer): Promise<Session | undefined> {
    const { name: asked, info } = parseGo(data);
    const { name, open } = await this.#open(asked);
    const { device } = open;
    const replies = [encode(infoExport, { type: INFO.EXPORT, size: device.size, flags: transmissionFlags(open) })];
    if (info.includes(INFO.NAME)) replies.push(printInfoText(INFO.NAME, name));
    if (info.includes(INFO.DESCRIPTION) && open.description) {
      replies.push(printInfoText(INFO.DESCRIPTION, open.description));
    }
    // Who does not ask may send requests of any alignment; ByteAccess serves them.
    if (info.includes(INFO.BLOCK_SIZE)) {
      replies.push(
        encode(infoBlockSize, {
          type: INFO.BLOCK_SIZE,
          minimum: device.blockSize,
          preferred: 4096,
          maximum: this.#limits.payloadBytes,
        }),
      );
    }
    const message = Buffer.concat([
      ...replies.map((reply) => optionReply(option, REP.INFO, reply)),
      optionReply(option, REP.ACK),
    ]);
    await this.#send(message, open);
    if (option === OPT.GO) return this.#session(asked, name, open);
    await open.close();
    return undefined;
  }

  async #list(data: Buffer): Promise<void> {
    new Payload(data, 'the LIST option').end();
    const entries = await this.#exports.list();
    await this.#send(
      Buffer.concat([
        ...entries.map(({ name, description }) => optionReply(OPT.LIST, REP.SERVER, printServer(name, description))),
        optionReply(OPT.LIST, REP.ACK),
      ]),
    );
  }

  async #metaContext(option: number, data: Buffer): Promise<void> {
    const { name: asked, queries } = parseMetaContext(data);
    if (!this.#structured) {
      throw new DmError('NBD_PROTOCOL', 'EINVAL', 'meta contexts need structured replies, which were not negotiated');
    }
    const set = option === OPT.SET_META_CONTEXT;
    if (set) this.#contexts = undefined;
    const { open } = await this.#open(asked);
    const offered: ContextName[] = open.changed ? [BASE_ALLOCATION, DMKIT_CHANGED] : [BASE_ALLOCATION];
    await open.close();
    // "An empty leaf name lists a namespace", and no query at all lists everything; SET takes full names only.
    const wanted = (context: ContextName) =>
      queries.includes(context) ||
      (!set && (queries.length === 0 || queries.includes(context.slice(0, context.indexOf(':') + 1))));
    const chosen = offered.filter(wanted);
    if (set) this.#contexts = { name: asked, chosen };
    await this.#send(
      Buffer.concat([
        ...chosen.map((context) =>
          optionReply(option, REP.META_CONTEXT, printContext(set ? CONTEXT_ID[context] : 0, context)),
        ),
        optionReply(option, REP.ACK),
      ]),
    );
  }

  /** The empty name stands for the only export there is. */
  async #open(asked: string): Promise<{ name: string; open: OpenExport }> {
    let name = asked;
    if (asked === '') {
      const entries = await this.#exports.list();
      if (entries.length !== 1) {
        throw new DmError(
          'NBD_EXPORT',
          'ENOENT',
          `the server has ${entries.length} exports and no default: name one (nbdinfo --list shows them)`,
        );
      }
      name = entries[0].name;
    }
    try {
      return { name, open: await this.#exports.open(name) };
    } catch (error) {
      throw fromSystem(error, `Cannot open export "${name}"`);
    }
  }

  /** Contexts hold for the export they were set for, by the name the client used. */
  #session(asked: string, name: string, open: OpenExport): Session {
    const contexts = this.#contexts?.name === asked ? this.#contexts.chosen : [];
    return { name, open, structured: this.#structured, contexts, secure: this.#secure };
  }

  #refuse(option: number, type: number, why: string): Promise<void> {
    return this.#send(optionReply(option, type, Buffer.from(why).subarray(0, STRING_MAX)));
  }

  /** Waits until the client takes replies: one that does not costs no memory. Closes `open` if the client is gone. */
  async #send(data: Buffer, open?: OpenExport): Promise<void> {
    try {
      await new Promise<void>((resolve, reject) => {
        const gone = () => reject(violation('disconnected during the handshake'));
        if (this.#stream.destroyed) return gone();
        this.#stream.once('close', gone);
        this.#stream.write(data, (error) => {
          this.#stream.off('close', gone);
          if (error) reject(fromSystem(error, 'lost the connection during the handshake'));
          else resolve();
        });
      });
    } catch (error) {
      await open?.close();
      throw error;
    }
  }
}

function refusal({ errno }: DmError): number {
  switch (errno) {
    case 'ENOENT':
    case 'ENXIO':
    case 'ENODEV':
      return REP.ERR_UNKNOWN;
    case 'EACCES':
    case 'EPERM':
    case 'EBUSY':
      return REP.ERR_POLICY;
    case 'EINVAL':
      return REP.ERR_INVALID;
    case 'ESHUTDOWN':
      return REP.ERR_SHUTDOWN;
    default:
      return REP.ERR_PLATFORM;
  }
}
