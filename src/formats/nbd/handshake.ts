/**
 * Messages of the handshake (doc/proto.md, "Handshake"), big-endian.
 *
 *     server  NBDMAGIC IHAVEOPT flags:16                          greeting
 *     client  flags:32
 *     client  IHAVEOPT option:32 length:32 data                   as often as it likes
 *     server  0x3e889045565a9 option:32 type:32 length:32 data    one or more for each option
 *
 * Nothing that came from the other side is believed: every length is checked against the bytes that are there, and
 * strings are UTF-8 without NUL, at most 4096 bytes. What breaks that is a FormatError.
 */
import { FormatError } from '../../errors.ts';
import { big, type Field, struct } from '../struct.ts';
import { INFO, OPTION_MAGIC, OPTION_REPLY_MAGIC, STRING_MAX } from './constants.ts';

const ascii8: Field<string> = {
  size: 8,
  get: (view, at) => String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + at, 8)),
  set: (view, at, value) => {
    for (let i = 0; i < 8; i++) view.setUint8(at + i, value.charCodeAt(i));
  },
};

export const greeting = struct({ init: ascii8, magic: ascii8, flags: big.u16 });
export const clientFlags = big.u32;
export const optionHeader = struct({ magic: ascii8, option: big.u32, length: big.u32 });
export const optionReplyHeader = struct({ magic: big.u64, option: big.u32, type: big.u32, length: big.u32 });
/** Answer to EXPORT_NAME; 124 zero bytes follow unless NO_ZEROES was negotiated. */
export const exportNameReply = struct({ size: big.u64, flags: big.u16 });
export const EXPORT_NAME_ZEROES = 124;
export const infoExport = struct({ type: big.u16, size: big.u64, flags: big.u16 });
export const infoBlockSize = struct({ type: big.u16, minimum: big.u32, preferred: big.u32, maximum: big.u32 });

export const viewOf = (data: Uint8Array) => new DataView(data.buffer, data.byteOffset, data.byteLength);

export function encode<T>(field: Field<T>, value: T): Buffer {
  const data = Buffer.alloc(field.size);
  field.set(viewOf(data), 0, value);
  return data;
}

export const option = (number: number, data: Uint8Array = Buffer.alloc(0)): Buffer =>
  Buffer.concat([encode(optionHeader, { magic: OPTION_MAGIC, option: number, length: data.length }), data]);

export const optionReply = (number: number, type: number, data: Uint8Array = Buffer.alloc(0)): Buffer =>
  Buffer.concat([
    encode(optionReplyHeader, { magic: OPTION_REPLY_MAGIC, option: number, type, length: data.length }),
    data,
  ]);

const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** Text of the other side, made fit for one line of a log. */
export const printable = (data: Uint8Array): string =>
  new TextDecoder().decode(data.subarray(0, STRING_MAX)).replace(/[\p{Cc}\p{Cf}]/gu, '?');

/** Walks the data of one option or reply; `what` names it in errors. */
export class Payload {
  readonly #data: Buffer;
  readonly #what: string;
  #at = 0;

  constructor(data: Uint8Array, what: string) {
    this.#data = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    this.#what = what;
  }

  u16 = (): number => this.#take(2).readUInt16BE();
  u32 = (): number => this.#take(4).readUInt32BE();

  string(length: number): string {
    if (length > STRING_MAX) throw this.#malformed(`has a string of ${length} bytes, more than ${STRING_MAX}`);
    const data = this.#take(length);
    if (data.includes(0)) throw this.#malformed('has a string with a NUL byte');
    try {
      return utf8.decode(data);
    } catch {
      throw this.#malformed('has a string that is not UTF-8');
    }
  }

  get left(): number {
    return this.#data.length - this.#at;
  }

  rest = (): Buffer => this.#take(this.left);

  end(): void {
    if (this.left > 0) throw this.#malformed(`has ${this.left} bytes too many`);
  }

  #take(length: number): Buffer {
    if (length > this.left) throw this.#malformed(`ends ${length - this.left} bytes early`);
    return this.#data.subarray(this.#at, (this.#at += length));
  }

  #malformed(state: string): FormatError {
    return new FormatError('NBD_PROTOCOL', 'EINVAL', `Cannot parse ${this.#what}: it ${state}`);
  }
}

export interface GoOption {
  name: string;
  /** INFO numbers asked for. */
  info: number[];
}

const prefixed = (text: string): Buffer => {
  const data = Buffer.from(text);
  return Buffer.concat([encode(big.u32, data.length), data]);
};

/** Data of GO and INFO. */
export const printGo = ({ name, info }: GoOption): Buffer =>
  Buffer.concat([prefixed(name), encode(big.u16, info.length), ...info.map((number) => encode(big.u16, number))]);

export function parseGo(data: Uint8Array): GoOption {
  const payload = new Payload(data, 'the GO or INFO option');
  const name = payload.string(payload.u32());
  const info = Array.from({ length: payload.u16() }, payload.u16);
  payload.end();
  return { name, info };
}

export interface MetaContextOption {
  name: string;
  queries: string[];
}

/** Data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export const printMetaContext = ({ name, queries }: MetaContextOption): Buffer =>
  Buffer.concat([prefixed(name), encode(big.u32, queries.length), ...queries.map(prefixed)]);

export function parseMetaContext(data: Uint8Array): MetaContextOption {
  const payload = new Payload(data, 'the META_CONTEXT option');
  const name = payload.string(payload.u32());
  const queries: string[] = [];
  // No array of the promised length: the count is checked by running out of bytes.
  for (let count = payload.u32(); count > 0; count--) queries.push(payload.string(payload.u32()));
  payload.end();
  return { name, queries };
}

/** Data of a SERVER reply to LIST. */
export const printServer = (name: string, description = ''): Buffer =>
  Buffer.concat([prefixed(name), Buffer.from(description)]);

export function parseServer(data: Uint8Array): { name: string; description: string } {
  const payload = new Payload(data, 'an entry of the export list');
  const name = payload.string(payload.u32());
  return { name, description: printable(payload.rest()) };
}

/** Data of a META_CONTEXT reply. */
export const printContext = (id: number, name: string): Buffer =>
  Buffer.concat([encode(big.u32, id), Buffer.from(name)]);

export function parseContext(data: Uint8Array): { id: number; name: string } {
  const payload = new Payload(data, 'a META_CONTEXT reply');
  const id = payload.u32();
  return { id, name: payload.string(payload.left) };
}

/** Data of an INFO reply with text (NAME, DESCRIPTION). */
export const printInfoText = (type: number, text: string): Buffer =>
  Buffer.concat([encode(big.u16, type), Buffer.from(text)]);

export type Info =
  | { type: typeof INFO.EXPORT; size: number; flags: number }
  | { type: typeof INFO.BLOCK_SIZE; minimum: number; preferred: number; maximum: number }
  | { type: 'other' };

/** Data of an INFO reply; kinds that nobody here asks for are `other`. */
export function parseInfo(data: Uint8Array): Info {
  const payload = new Payload(data, 'an INFO reply');
  const type = payload.u16();
  if (type === INFO.EXPORT) {
    const size = payload.u32() * 2 ** 32 + payload.u32();
    const flags = payload.u16();
    payload.end();
    return { type, size, flags };
  }
  if (type === INFO.BLOCK_SIZE) {
    const info = { type, minimum: payload.u32(), preferred: payload.u32(), maximum: payload.u32() } as const;
    payload.end();
    return info;
  }
  return { type: 'other' };
}
