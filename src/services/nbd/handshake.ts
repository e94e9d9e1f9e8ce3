/**
 * The server's side of the handshake (doc/proto.md, "Handshake", "Option types").
 *
 * Slow by design: it runs once per connection and awaits each step. A client that breaks the protocol is disconnected by
 * throwing; the caller logs the one line. What a client may merely not have is answered and the handshake goes on.
 */
import type { Duplex } from 'node:stream';
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
import type { ByteReader } from '../../lib/byte-reader.ts';
import type { Exports, OpenExport } from './exports.ts';
import type { Limits } from './limits.ts';

/** Ids on the wire; a negotiated context of an export. */
export const CONTEXT_ID = { [BASE_ALLOCATION]: 1, [DMKIT_CHANGED]: 2 } as const;
export type ContextName = keyof typeof CONTEXT_ID;

/** What the transmission phase needs to know. */
export interface Session {
  name: string;
  open: OpenExport;
  structured: boolean;
  contexts: ContextName[];
}

export function transmissionFlags(open: OpenExport): number {
  let flags = FLAG.HAS_FLAGS | FLAG.SEND_FLUSH | FLAG.SEND_FUA | FLAG.SEND_WRITE_ZEROES | FLAG.SEND_FAST_ZERO;
  flags |= FLAG.SEND_DF | FLAG.SEND_CACHE | FLAG.CAN_MULTI_CONN;
  if (open.readOnly) flags |= FLAG.READ_ONLY;
  if (open.device.canDiscard) flags |= FLAG.SEND_TRIM;
  return flags;
}

const violation = (state: string) => new FormatError('NBD_PROTOCOL', 'EINVAL', state);

/** Resolves with a session whose export is open, or with undefined when the client left in good order. */
export async function negotiate(
  stream: Duplex,
  reader: ByteReader,
  exports: Exports,
  limits: Limits,
): Promise<Session | undefined> {
  return new Handshake(stream, reader, exports, limits).run();
}

class Handshake {
  readonly #stream: Duplex;
  readonly #reader: ByteReader;
  readonly #exports: Exports;
  readonly #limits: Limits;
  #noZeroes = false;
  #structured = false;
  /** The contexts that SET_META_CONTEXT chose, and the export they were chosen for. */
  #contexts: { name: string; chosen: ContextName[] } | undefined;

  constructor(stream: Duplex, reader: ByteReader, exports: Exports, limits: Limits) {
    this.#stream = stream;
    this.#reader = reader;
    this.#exports = exports;
    this.#limits = limits;
  }

  async run(): Promise<Session | undefined> {
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
        case OPT.STARTTLS:
          await this.#refuse(option, REP.ERR_POLICY, 'this server has no TLS');
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
    return { name, open, structured: this.#structured, contexts };
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
