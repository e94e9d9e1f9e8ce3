import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ERRNO, type Errno } from '../../errors.ts';
import { fromWire, toWire } from './errors.ts';
import { encode, viewOf } from './handshake.ts';
import { chunkHeader, requestHeader, simpleReply } from './transmission.ts';

const u32 = fc.integer({ min: 0, max: 0xffffffff });
const u16 = fc.nat(0xffff);

describe('NBD transmission', () => {
  it('writes a request as the protocol document has it', () => {
    const data = encode(requestHeader, {
      magic: 0x25609513,
      flags: 1,
      type: 6,
      cookieHigh: 0x01020304,
      cookieLow: 0x05060708,
      offset: 0x1_0000_0200,
      length: 4096,
    });
    expect(data.toString('hex')).toBe(
      '25609513' + '0001' + '0006' + '0102030405060708' + '0000000100000200' + '00001000',
    );
  });

  it('has headers of 28, 16 and 20 bytes that read back as written', () => {
    expect([requestHeader.size, simpleReply.size, chunkHeader.size]).toEqual([28, 16, 20]);
    fc.assert(
      fc.property(
        u32,
        u16,
        u16,
        u32,
        u32,
        fc.maxSafeNat(),
        u32,
        (magic, flags, type, cookieHigh, cookieLow, offset, length) => {
          const request = { magic, flags, type, cookieHigh, cookieLow, offset, length };
          expect(requestHeader.get(viewOf(encode(requestHeader, request)), 0)).toEqual(request);
          const chunk = { magic, flags, type, cookieHigh, cookieLow, length };
          expect(chunkHeader.get(viewOf(encode(chunkHeader, chunk)), 0)).toEqual(chunk);
        },
      ),
    );
  });

  it.each<[Errno, number]>([
    ['EPERM', 1],
    ['EROFS', 1],
    ['EIO', 5],
    ['ENOMEM', 12],
    ['EINVAL', 22],
    ['ENOSPC', 28],
    ['EFBIG', 28],
    ['EOVERFLOW', 75],
    ['EOPNOTSUPP', 95],
    ['ESHUTDOWN', 108],
    ['ENODATA', 5],
    ['ENXIO', 5],
  ])('sends %s as %d', (errno, wire) => {
    expect(toWire(errno)).toBe(wire);
  });

  it('understands each of its own numbers, and takes an unknown one for EINVAL', () => {
    for (const errno of Object.keys(ERRNO) as Errno[]) expect(toWire(fromWire(toWire(errno)))).toBe(toWire(errno));
    expect(fromWire(4711)).toBe('EINVAL');
  });
});
