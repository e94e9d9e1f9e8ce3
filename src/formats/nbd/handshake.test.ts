import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FormatError } from '../../errors.ts';
import { OPT, REP } from './constants.ts';
import {
  encode,
  greeting,
  infoBlockSize,
  infoExport,
  option,
  optionReply,
  parseContext,
  parseGo,
  parseInfo,
  parseMetaContext,
  parseServer,
  printable,
  printContext,
  printGo,
  printInfoText,
  printMetaContext,
  printServer,
  viewOf,
} from './handshake.ts';

/** Without half a surrogate pair, which has no UTF-8. */
const wellFormed = (word: string) => !/\p{Surrogate}/u.test(word);
const text = fc.string({ unit: 'binary', maxLength: 50 }).filter((word) => !word.includes('\0') && wellFormed(word));

describe('NBD handshake', () => {
  it('writes the greeting as the protocol document has it', () => {
    const data = encode(greeting, { init: 'NBDMAGIC', magic: 'IHAVEOPT', flags: 3 });
    expect(data.toString('hex')).toBe('4e42444d41474943' + '49484156454f5054' + '0003');
    expect(greeting.get(viewOf(data), 0)).toEqual({ init: 'NBDMAGIC', magic: 'IHAVEOPT', flags: 3 });
  });

  it('writes options and replies as the protocol document has them', () => {
    expect(option(OPT.GO, Buffer.from('ab')).toString('hex')).toBe(
      '49484156454f5054' + '00000007' + '00000002' + '6162',
    );
    expect(optionReply(OPT.LIST, REP.ERR_UNSUP).toString('hex')).toBe(
      '0003e889045565a9' + '00000003' + '80000001' + '00000000',
    );
  });

  it('reads back what it wrote', () => {
    fc.assert(
      fc.property(
        text,
        fc.array(fc.nat(65535), { maxLength: 9 }),
        fc.array(text, { maxLength: 9 }),
        (name, info, queries) => {
          expect(parseGo(printGo({ name, info }))).toEqual({ name, info });
          expect(parseMetaContext(printMetaContext({ name, queries }))).toEqual({ name, queries });
          expect(parseServer(printServer(name, 'text'))).toEqual({ name, description: 'text' });
          expect(parseContext(printContext(7, name))).toEqual({ id: 7, name });
        },
      ),
    );
    const size = 2 ** 40 + 512;
    expect(parseInfo(encode(infoExport, { type: 0, size, flags: 5 }))).toEqual({ type: 0, size, flags: 5 });
    const blocks = { type: 3, minimum: 1, preferred: 4096, maximum: 0xffffffff } as const;
    expect(parseInfo(encode(infoBlockSize, blocks))).toEqual(blocks);
    expect(parseInfo(printInfoText(2, 'x'))).toEqual({ type: 'other' });
  });

  it('answers any other bytes with a FormatError, whatever they promise', () => {
    const parsers = [parseGo, parseMetaContext, parseServer, parseContext, parseInfo];
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), fc.constantFrom(...parsers), (data, parse) => {
        try {
          parse(data);
        } catch (error) {
          expect(error).toBeInstanceOf(FormatError);
        }
      }),
      { numRuns: 2000 },
    );
  });

  it.each([
    ['a name longer than its option', Buffer.from('ffffffff0000', 'hex')],
    ['more INFO numbers than there are', Buffer.concat([printGo({ name: 'a', info: [1] }).subarray(0, -1)])],
    ['bytes behind the end', Buffer.concat([printGo({ name: 'a', info: [] }), Buffer.from([0])])],
    ['a name that is not UTF-8', Buffer.from('00000001ff0000', 'hex')],
    ['a name with a NUL', Buffer.from('00000001000000', 'hex')],
    ['a name longer than 4096 bytes', printGo({ name: 'x'.repeat(4097), info: [] })],
  ])('refuses %s', (_what, data) => {
    expect(() => parseGo(data)).toThrow(FormatError);
  });

  it('counts queries by their bytes, not by what was promised', () => {
    const data = printMetaContext({ name: '', queries: [] });
    data.writeUInt32BE(0xffffffff, 4);
    expect(() => parseMetaContext(data)).toThrow(FormatError);
  });

  it('keeps control characters of the other side out of logs', () => {
    expect(printable(Buffer.from('a\nb\x1b[31mc\u202e'))).toBe('a?b?[31mc?');
  });
});
