import { PassThrough } from 'node:stream';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ByteReader } from './byte-reader.ts';

describe('ByteReader', () => {
  it('gives the bytes in the amounts asked for, however they came', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.uint8Array({ maxLength: 9 })), fc.array(fc.nat(9)), async (chunks, amounts) => {
        const stream = new PassThrough();
        const reader = new ByteReader(stream);
        for (const chunk of chunks) stream.write(chunk);
        stream.end();
        const all = Buffer.concat(chunks);
        let at = 0;
        for (const amount of amounts) {
          const got = await reader.take(amount);
          if (at + amount > all.length) {
            expect(got).toBeUndefined();
            break;
          }
          expect(got).toEqual(all.subarray(at, at + amount));
          at += amount;
        }
        expect(reader.buffered).toBeLessThanOrEqual(all.length - at);
      }),
    );
  });

  it('hands over what was not taken', async () => {
    const stream = new PassThrough();
    const reader = new ByteReader(stream);
    stream.write('abcdef');
    expect((await reader.take(2))?.toString()).toBe('ab');
    expect(reader.release().toString()).toBe('cdef');
    expect(stream.isPaused()).toBe(true);
  });

  it('skips what it need not hold, and says when the stream ends first', async () => {
    const stream = new PassThrough();
    const reader = new ByteReader(stream);
    stream.write(Buffer.alloc(100_000));
    stream.write('x');
    expect(await reader.skip(100_000)).toBe(true);
    expect((await reader.take(1))?.toString()).toBe('x');
    stream.end();
    expect(await reader.skip(1)).toBe(false);
  });

  it('stops a stream that runs ahead', async () => {
    const stream = new PassThrough({ highWaterMark: 1 << 20 });
    const reader = new ByteReader(stream);
    for (let i = 0; i < 8; i++) stream.write(Buffer.alloc(100_000));
    await reader.take(1);
    expect(reader.buffered).toBeLessThan(500_000);
    expect(stream.isPaused()).toBe(true);
    expect((await reader.take(799_999))?.length).toBe(799_999);
  });

  it('rejects when the stream fails', async () => {
    const stream = new PassThrough();
    const reader = new ByteReader(stream);
    const taken = reader.take(1);
    stream.destroy(new Error('broken'));
    await expect(taken).rejects.toThrow('broken');
  });
});
