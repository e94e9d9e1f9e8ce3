/**
 * The XML that `thin_dump` prints and `thin_restore` reads: elements with attributes, no text between them, and nothing else of XML.
 *
 *     document = <superblock time transaction data_block_size nr_data_blocks [uuid flags version metadata_snap]> (def | device)* </superblock>
 *     def      = <def name> map* </def>                    what several devices have; 1.x
 *     device   = <device dev_id mapped_blocks transaction creation_time snap_time> (map | <ref name/>)* </device>
 *     map      = <single_mapping origin_block data_block time/>
 *              | <range_mapping origin_begin data_begin length time/>
 */
import { FormatError } from '../../errors.ts';

export type ThinXml =
  | { kind: 'superblock'; time: number; transaction: bigint; dataBlockSize: number; nrDataBlocks: number }
  | { kind: 'device'; id: number; transaction: bigint; creationTime: number; snapTime: number }
  | { kind: 'map'; virtual: number; data: number; length: number; time: number }
  | { kind: 'def' | 'ref'; name: string }
  | { kind: 'end of def' }
  | { kind: 'end of device' }
  | { kind: 'end' };

export interface ThinXmlItem {
  readonly item: ThinXml;
  /** From 1. */
  readonly line: number;
}

/** What is wrong with a document, and in which line. */
export const xmlError = (line: number, what: string) =>
  new FormatError('THIN_XML', 'EINVAL', `Line ${line} of the XML: ${what}`, {
    hint: 'it has to be as thin_dump prints it',
  });

/** Longer than any element. */
const TAG_MAX = 4096;

/** Items in order, as many at a time as a part of the text holds. Rejects with FormatError; does not look at what numbers mean. */
export async function* readThinXml(text: AsyncIterable<string>): AsyncGenerator<ThinXmlItem[]> {
  let rest = '';
  let line = 1;
  const open: string[] = [];
  let ended = false;
  for await (const part of text) {
    rest += part;
    const items: ThinXmlItem[] = [];
    let at = 0;
    for (let end = rest.indexOf('>', at); end >= 0; end = rest.indexOf('>', at)) {
      const piece = rest.slice(at, end + 1);
      const begin = line + newlines(piece.slice(0, piece.indexOf('<')));
      if (ended) throw xmlError(begin, 'something follows the end of the superblock');
      const item = readTag(piece, begin, open);
      items.push({ item, line: begin });
      ended = item.kind === 'end';
      line += newlines(piece);
      at = end + 1;
    }
    rest = rest.slice(at);
    if (rest.length > TAG_MAX) throw xmlError(line, 'what begins here does not end');
    if (items.length > 0) yield items;
  }
  if (!ended) throw xmlError(line, 'it ends before the superblock does');
  if (rest.trim() !== '') throw xmlError(line, 'something follows the end of the superblock');
}

function newlines(text: string): number {
  let count = 0;
  for (let at = text.indexOf('\n'); at >= 0; at = text.indexOf('\n', at + 1)) count++;
  return count;
}

const TAG = /^\s*<(\/?)(\w+)((?:\s+\w+="[^"<>]*")*)\s*(\/?)>$/;

function readTag(text: string, line: number, open: string[]): ThinXml {
  const match = TAG.exec(text);
  if (!match) throw xmlError(line, `${JSON.stringify(text.trim().slice(0, 80))} is no element`);
  const [, closes, name, attributes, empty] = match;
  const within = open.at(-1);
  if (closes) {
    if (name !== within || attributes || empty) throw xmlError(line, `</${name}> ends nothing that is open`);
    open.pop();
    return ENDS[name];
  }
  const element = Object.hasOwn(ELEMENTS, name) ? ELEMENTS[name] : undefined;
  if (!element?.within.includes(within)) throw xmlError(line, `<${name}> does not belong here`);
  const holds = Object.hasOwn(ENDS, name);
  if (holds === (empty !== ''))
    throw xmlError(line, `<${name}> ${holds ? 'has an end of its own' : 'holds nothing: it ends with />'}`);
  if (holds) open.push(name);
  return element.read(new Attributes(name, attributes, line));
}

const ENDS: Record<string, ThinXml> = {
  def: { kind: 'end of def' },
  device: { kind: 'end of device' },
  superblock: { kind: 'end' },
};

const U64 = 2n ** 64n;

class Attributes {
  readonly #values = new Map<string, string>();
  readonly #name: string;
  readonly #line: number;

  constructor(name: string, text: string, line: number) {
    this.#name = name;
    this.#line = line;
    for (const [, key, value] of text.matchAll(/(\w+)="([^"]*)"/g)) {
      if (this.#values.has(key)) throw xmlError(line, `<${name}> has ${key} twice`);
      this.#values.set(key, value);
    }
  }

  text(key: string): string {
    const value = this.#values.get(key);
    if (value === undefined) throw xmlError(this.#line, `<${this.#name}> has no ${key}`);
    this.#values.delete(key);
    return value;
  }

  /** What may be missing. */
  has(key: string): boolean {
    return this.#values.has(key);
  }

  big(key: string): bigint {
    const text = this.text(key);
    if (!/^\d{1,20}$/.test(text) || BigInt(text) >= U64) throw this.#noNumber(key, text);
    return BigInt(text);
  }

  number(key: string): number {
    const text = this.text(key);
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
    if (!Number.isSafeInteger(value)) throw this.#noNumber(key, text);
    return value;
  }

  #noNumber(key: string, text: string): FormatError {
    return xmlError(this.#line, `${key} of <${this.#name}> is ${JSON.stringify(text)}, not a number`);
  }

  /** Throws if there are others. */
  end(): void {
    for (const key of this.#values.keys()) throw xmlError(this.#line, `<${this.#name}> has ${key}, which is not known`);
  }
}

interface Element {
  readonly within: readonly (string | undefined)[];
  read(attributes: Attributes): ThinXml;
}

function named(kind: 'def' | 'ref', attributes: Attributes): ThinXml {
  const name = attributes.text('name');
  attributes.end();
  return { kind, name };
}

const ELEMENTS: Record<string, Element> = {
  superblock: {
    within: [undefined],
    read(attributes) {
      const item = {
        kind: 'superblock',
        time: attributes.number('time'),
        transaction: attributes.big('transaction'),
        dataBlockSize: attributes.number('data_block_size'),
        nrDataBlocks: attributes.number('nr_data_blocks'),
      } as const;
      // Nothing of these is restored: what was found wrong is gone, and a metadata snapshot is not in the document.
      if (attributes.has('uuid')) attributes.text('uuid');
      for (const key of ['flags', 'version', 'metadata_snap']) if (attributes.has(key)) attributes.number(key);
      attributes.end();
      return item;
    },
  },
  def: { within: ['superblock'], read: (attributes) => named('def', attributes) },
  ref: { within: ['device'], read: (attributes) => named('ref', attributes) },
  device: {
    within: ['superblock'],
    read(attributes) {
      // Counted again, as it may be what is wrong.
      attributes.number('mapped_blocks');
      const item = {
        kind: 'device',
        id: attributes.number('dev_id'),
        transaction: attributes.big('transaction'),
        creationTime: attributes.number('creation_time'),
        snapTime: attributes.number('snap_time'),
      } as const;
      attributes.end();
      return item;
    },
  },
  single_mapping: {
    within: ['device', 'def'],
    read(attributes) {
      const item = {
        kind: 'map',
        virtual: attributes.number('origin_block'),
        data: attributes.number('data_block'),
        length: 1,
        time: attributes.number('time'),
      } as const;
      attributes.end();
      return item;
    },
  },
  range_mapping: {
    within: ['device', 'def'],
    read(attributes) {
      const item = {
        kind: 'map',
        virtual: attributes.number('origin_begin'),
        data: attributes.number('data_begin'),
        length: attributes.number('length'),
        time: attributes.number('time'),
      } as const;
      attributes.end();
      return item;
    },
  },
};
