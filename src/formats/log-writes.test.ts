import { describe, expect, test } from 'vitest';
import { FormatError } from '../errors.ts';
import { logEntry, markBytesMax, parseEntry, parseSuper, superOf } from './log-writes.ts';

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function entryOf(sector: number, nrSectors: number, flags: number, dataLen = 0, text = ''): DataView {
  const block = new Uint8Array(512);
  logEntry.set(viewOf(block), 0, { sector, nrSectors, flags, dataLen });
  block.set(Buffer.from(text), logEntry.size);
  return viewOf(block);
}

test('the super block is the bytes that the kernel writes', () => {
  const block = superOf({ blockSize: 4096, entries: 8 });
  expect(block.length).toBe(4096);
  expect(Buffer.from(block.subarray(0, 32)).toString('hex')).toBe(
    '7268737766736a00' + '0100000000000000' + '0800000000000000' + '0010000000000000',
  );
  expect(parseSuper(viewOf(block), 'log')).toEqual({ blockSize: 4096, entries: 8 });
});

describe('a super block is refused', () => {
  const cases: [string, number, number, string][] = [
    ['without the magic', 0, 0x73, 'WRITE_LOG_MAGIC'],
    ['with a magic that differs at its end', 6, 0, 'WRITE_LOG_MAGIC'],
    ['of another version', 8, 2, 'WRITE_LOG_VERSION'],
    ['with blocks of no size', 25, 0, 'WRITE_LOG_CORRUPT'],
    ['with blocks of 513 bytes', 24, 1, 'WRITE_LOG_CORRUPT'],
    ['with blocks of 2 GiB', 27, 0x80, 'WRITE_LOG_CORRUPT'],
  ];
  test.each(cases)('%s', (_, at, value, code) => {
    const block = superOf({ blockSize: 512, entries: 8 });
    block[at] = value;
    expect(() => parseSuper(viewOf(block), 'log')).toThrow(expect.objectContaining({ code, errno: 'EINVAL' }));
  });
});

test('reads each kind of entry', () => {
  const plain = { at: 0, length: 0, fua: false, flush: false, metadata: false, mark: undefined, dataBytes: 0 };
  const parse = (...fields: Parameters<typeof entryOf>) => parseEntry(entryOf(...fields), 512, 'log');
  expect(parse(8, 2, 0)).toEqual({ ...plain, kind: 'write', at: 4096, length: 1024, dataBytes: 1024 });
  expect(parse(0, 0, 1)).toEqual({ ...plain, kind: 'flush', flush: true });
  expect(parse(8, 2, 3)).toMatchObject({ kind: 'write', flush: true, fua: true, dataBytes: 1024 });
  expect(parse(8, 2, 18)).toMatchObject({ kind: 'write', fua: true, metadata: true });
  expect(parse(8, 2, 4)).toEqual({ ...plain, kind: 'discard', at: 4096, length: 1024 });
  expect(parse(0, 0, 8, 2, 'm1...')).toEqual({ ...plain, kind: 'mark', mark: 'm1' });
  expect(parseEntry(entryOf(1, 1, 0), 4096, 'log')).toMatchObject({ at: 4096, length: 4096 });
});

test.each<[string, Parameters<typeof entryOf>]>([
  ['unknown flags', [0, 1, 32]],
  ['flags of more than 32 bits', [0, 1, 2 ** 32]],
  ['a mark with data', [0, 1, 8, 1]],
  ['a mark that is a flush', [0, 0, 9, 1]],
  ['a mark that does not fit into its block', [0, 0, 8, markBytesMax(512) + 1]],
  ['text of a write', [0, 1, 0, 1]],
  ['a discard that is a flush', [0, 1, 5]],
  ['a place beyond any device', [2 ** 60, 1, 0]],
  ['a length beyond any device', [0, 2 ** 63, 4]],
])('refuses %s', (_, fields) => {
  expect(() => parseEntry(entryOf(...fields), 512, 'entry 3 of log')).toThrow(FormatError);
  expect(() => parseEntry(entryOf(...fields), 512, 'entry 3 of log')).toThrow(/^Cannot read entry 3 of log: /);
});
