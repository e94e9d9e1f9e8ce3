import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { CMD, OPT, REQUEST_MAGIC } from '../../src/formats/nbd/constants.ts';
import { encode, option, printGo, printMetaContext } from '../../src/formats/nbd/handshake.ts';
import { requestHeader } from '../../src/formats/nbd/transmission.ts';
import { delayed, filled, MiB, RawClient, serve } from './nbd-support.ts';

const u32 = fc.oneof(fc.nat(100), fc.constantFrom(512, 4096, MiB, 0x7fffffff, 0xffffffff), fc.nat(0xffffffff));

const anyOption = fc
  .tuple(
    fc.oneof(fc.integer({ min: 1, max: 12 }), u32),
    fc.oneof(fc.uint8Array({ maxLength: 60 }), goData(), contextData()),
  )
  .map(([number, data]) => option(number, data));

function goData() {
  return fc
    .tuple(fc.constantFrom('disk', '', 'x'), fc.array(fc.nat(5), { maxLength: 4 }))
    .map(([name, info]) => Uint8Array.from(printGo({ name, info })));
}

function contextData() {
  const query = fc.constantFrom('base:', 'base:allocation', 'dmkit:changed', '');
  return fc
    .tuple(fc.constantFrom('disk', '', 'x'), fc.array(query, { maxLength: 4 }))
    .map(([name, queries]) => Uint8Array.from(printMetaContext({ name, queries })));
}

const anyRequest = fc
  .record({
    magic: fc.oneof({ weight: 20, arbitrary: fc.constant(REQUEST_MAGIC) }, u32),
    flags: fc.oneof(fc.constant(0), fc.nat(31), fc.nat(0xffff)),
    type: fc.oneof({ weight: 10, arbitrary: fc.nat(8) }, fc.nat(0xffff)),
    cookieHigh: u32,
    cookieLow: u32,
    offset: fc.oneof(fc.nat(MiB + 4096), fc.maxSafeNat(), fc.constant(2 ** 64 - 2048)),
    length: fc.oneof({ weight: 5, arbitrary: fc.nat(20_000) }, u32),
  })
  .map((head) => {
    const payload = head.type === CMD.WRITE ? Buffer.alloc(Math.min(head.length, 100_000), 3) : Buffer.alloc(0);
    return Buffer.concat([encode(requestHeader, head), payload]);
  });

const enter = Buffer.concat([
  Buffer.from([0, 0, 0, 3]),
  option(OPT.STRUCTURED_REPLY),
  option(OPT.SET_META_CONTEXT, printMetaContext({ name: 'disk', queries: ['base:allocation', 'dmkit:changed'] })),
  option(OPT.GO, printGo({ name: 'disk', info: [] })),
]);

/** A conversation: likely correct at first, then whatever, then bytes changed anywhere. */
const stream = fc
  .tuple(
    fc.oneof(
      fc.constant(enter),
      fc.constant(Buffer.from([0, 0, 0, 3])),
      fc.uint8Array({ maxLength: 40 }).map((data) => Buffer.from(data)),
    ),
    fc.array(
      fc.oneof(
        anyRequest,
        anyOption,
        fc.uint8Array({ maxLength: 100 }).map((data) => Buffer.from(data)),
      ),
      { maxLength: 12 },
    ),
    fc.array(fc.tuple(fc.double({ min: 0, max: 1, noNaN: true, maxExcluded: true }), fc.nat(255)), { maxLength: 3 }),
    fc.boolean(),
  )
  .map(([head, parts, changes, mutate]) => {
    const data = Buffer.concat([head, ...parts]);
    if (mutate) for (const [where, byte] of changes) data[Math.floor(where * data.length)] = byte;
    return data;
  });

const cuts = fc.array(fc.nat(300), { maxLength: 5 });
const ending = fc.constantFrom<'end' | 'destroy'>('end', 'destroy');

describe('a server that is told anything', () => {
  it.each([
    ['at once', () => 0],
    ['later', () => 3],
  ])('lives on and serves a good client, with a device that answers %s', async (_when, turns) => {
    const bad = filled(MiB);
    const good = filled(MiB, 5);
    const expected = Buffer.alloc(65536);
    good.read(0 as never, expected, 0, expected.length);
    const unhandled: unknown[] = [];
    const onUnhandled = (error: unknown) => unhandled.push(error);
    process.on('unhandledRejection', onUnhandled);
    const { path, log, exports, server } = await serve({
      disk: turns() === 0 ? bad : delayed(bad, turns),
      good: turns() === 0 ? good : delayed(good, turns),
    });
    const neighbour = await RawClient.go(path, 'good');
    await fc.assert(
      fc.asyncProperty(stream, cuts, ending, async (data, pieces, end) => {
        const client = new RawClient(path);
        const closed = new Promise((resolve) => client.socket.once('close', resolve));
        // Its replies are read or not, as they come.
        client.reader.release();
        client.socket.resume();
        let at = 0;
        for (const piece of pieces) {
          client.socket.write(data.subarray(at, (at += piece)));
          await new Promise((resolve) => setImmediate(resolve));
        }
        client.socket.end(data.subarray(at));
        if (end === 'destroy') client.socket.destroy();
        neighbour.request(CMD.READ, 0, expected.length);
        const reply = await neighbour.reply(expected.length);
        expect(reply.error).toBe(0);
        expect(reply.data?.equals(expected)).toBe(true);
        await closed;
      }),
      { numRuns: 400 },
    );
    while (server.connectionCount > 1) await new Promise((resolve) => setImmediate(resolve));
    expect(exports.opened.get('disk')).toBe(0);
    // The neighbour's own, and nothing of those that went.
    expect(server.heldBytes).toBeLessThan(280 * 1024);
    expect(log.filter((line) => /TypeError|RangeError|AssertionError/.test(line))).toEqual([]);
    process.off('unhandledRejection', onUnhandled);
    expect(unhandled).toEqual([]);
  });

  it('answers every request of a correct client, in whatever pieces they come', async () => {
    const device = new MemoryDevice(MiB);
    const { path } = await serve({ disk: delayed(device, () => 1) });
    const request = fc.record({
      type: fc.constantFrom(CMD.READ, CMD.WRITE, CMD.FLUSH),
      block: fc.nat(255),
      blocks: fc.integer({ min: 1, max: 40 }),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(request, { minLength: 1, maxLength: 30 }),
        fc.infiniteStream(fc.integer({ min: 1, max: 5000 })),
        async (requests, sizes) => {
          const client = await RawClient.go(path, 'disk', { structured: true });
          const all = Buffer.concat(
            requests.map(({ type, block, blocks }, cookieLow) => {
              const length = type === CMD.FLUSH ? 0 : blocks * 512;
              const offset = type === CMD.FLUSH ? 0 : block * 512;
              const head = encode(requestHeader, {
                magic: REQUEST_MAGIC,
                flags: 0,
                type,
                cookieHigh: 0,
                cookieLow,
                offset,
                length,
              });
              return type === CMD.WRITE ? Buffer.concat([head, Buffer.alloc(length, cookieLow)]) : head;
            }),
          );
          for (let at = 0; at < all.length; ) client.socket.write(all.subarray(at, (at += sizes.next().value)));
          const cookies = new Set<number>();
          for (let i = 0; i < requests.length; i++) {
            const { error, cookieLow, data } = await client.reply();
            expect(error).toBe(0);
            if (requests[cookieLow].type === CMD.READ) expect(data).toHaveLength(requests[cookieLow].blocks * 512);
            cookies.add(cookieLow);
          }
          expect(cookies.size).toBe(requests.length);
          client.socket.destroy();
        },
      ),
      { numRuns: 60 },
    );
  });
});
