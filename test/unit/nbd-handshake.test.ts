/** What is agreed on with a client before its first request. */
import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { DmError } from '../../src/errors.ts';
import { CMD, FLAG, INFO, OPT, REP } from '../../src/formats/nbd/constants.ts';
import { parseContext, parseInfo, parseServer, printGo, printMetaContext } from '../../src/formats/nbd/handshake.ts';
import { negotiate } from '../../src/services/nbd/handshake.ts';
import { LIMITS } from '../../src/services/nbd/limits.ts';
import { contents, FixedExports, filled, MiB, RawClient, serve } from './nbd-support.ts';

const EINVAL = 22;

describe('handshake', () => {
  it('greets as fixed newstyle without zeroes', async () => {
    const { path } = await serve({ disk: new MemoryDevice(MiB) });
    const client = new RawClient(path);
    expect((await client.take(18)).toString('latin1')).toBe('NBDMAGICIHAVEOPT\0\x03');
  });

  it('lists exports with their descriptions', async () => {
    const { path } = await serve({ a: new MemoryDevice(MiB), 'b c': new MemoryDevice(MiB) });
    const client = await RawClient.greet(path);
    const replies = await client.ask(OPT.LIST);
    expect(replies.slice(0, -1).map(({ data }) => parseServer(data))).toEqual([
      { name: 'a', description: 'a of the test' },
      { name: 'b c', description: 'b c of the test' },
    ]);
    expect((await client.ask(OPT.LIST, Buffer.from('x'))).at(-1)?.type).toBe(REP.ERR_INVALID);
  });

  it('tells size, flags, name, description and block sizes to who asks', async () => {
    const { path, exports } = await serve({ disk: new MemoryDevice(MiB, { blockSize: 4096 }) });
    const client = await RawClient.greet(path);
    const info = [INFO.NAME, INFO.DESCRIPTION, INFO.BLOCK_SIZE];
    const replies = await client.ask(OPT.INFO, printGo({ name: 'disk', info }));
    const { HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, SEND_DF, CAN_MULTI_CONN } = FLAG;
    const flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | SEND_DF | CAN_MULTI_CONN;
    expect(replies.map(({ type }) => type)).toEqual([REP.INFO, REP.INFO, REP.INFO, REP.INFO, REP.ACK]);
    expect(parseInfo(replies[0].data)).toEqual({
      type: 0,
      size: MiB,
      flags: flags | FLAG.SEND_CACHE | FLAG.SEND_FAST_ZERO,
    });
    expect(replies[1].data.toString()).toBe('\0\x01disk');
    expect(replies[2].data.toString()).toBe('\0\x02disk of the test');
    expect(parseInfo(replies[3].data)).toEqual({ type: 3, minimum: 4096, preferred: 4096, maximum: 32 * MiB });
    expect(exports.opened.get('disk')).toBe(0);
  });

  it('says that a read-only device is, and that one cannot discard', async () => {
    const device = new MemoryDevice(MiB);
    device.readOnly = true;
    device.canDiscard = false;
    const { path } = await serve({ disk: device });
    const client = await RawClient.greet(path);
    const info = parseInfo((await client.ask(OPT.INFO, printGo({ name: 'disk', info: [] })))[0].data);
    expect(info.type === 0 && info.flags & (FLAG.READ_ONLY | FLAG.SEND_TRIM)).toBe(FLAG.READ_ONLY);
  });

  it.each([0, 2])('serves EXPORT_NAME, client flags %d', async (flags) => {
    const { path } = await serve({ disk: filled(MiB) });
    const client = await RawClient.greet(path, flags);
    client.socket.write(
      Buffer.concat([Buffer.from('IHAVEOPT'), Buffer.from([0, 0, 0, 1, 0, 0, 0, 4]), Buffer.from('disk')]),
    );
    const reply = await client.take(10);
    expect(reply.readUInt32BE(4)).toBe(MiB);
    if (flags === 0) expect((await client.take(124)).every((byte) => byte === 0)).toBe(true);
    client.request(CMD.READ, 512, 1024);
    expect((await client.reply(1024)).data).toEqual(contents(filled(MiB), 512, 1024));
  });

  it('takes the empty name for the only export, and asks for a name where there are several', async () => {
    const one = await serve({ disk: new MemoryDevice(MiB) });
    const replies = await (await RawClient.greet(one.path)).ask(OPT.GO, printGo({ name: '', info: [INFO.NAME] }));
    expect(replies[1].data.toString()).toBe('\0\x01disk');
    const two = await serve({ a: new MemoryDevice(MiB), b: new MemoryDevice(MiB) });
    const refused = (await (await RawClient.greet(two.path)).ask(OPT.GO, printGo({ name: '', info: [] }))).at(-1)!;
    expect(refused.type).toBe(REP.ERR_UNKNOWN);
    expect(refused.data.toString()).toMatch(/2 exports/);
  });

  it('refuses an unknown export, an unknown option and STARTTLS, and goes on', async () => {
    const { path } = await serve({ disk: new MemoryDevice(MiB) });
    const client = await RawClient.greet(path);
    const unknown = await client.ask(OPT.GO, printGo({ name: 'nope', info: [] }));
    expect(unknown).toEqual([{ type: REP.ERR_UNKNOWN, data: Buffer.from('there is no device nope') }]);
    expect((await client.ask(77, Buffer.alloc(99)))[0].type).toBe(REP.ERR_UNSUP);
    expect((await client.ask(OPT.STARTTLS))[0].type).toBe(REP.ERR_POLICY);
    expect((await client.ask(OPT.GO, Buffer.from('junk')))[0].type).toBe(REP.ERR_INVALID);
    expect((await client.ask(OPT.GO, Buffer.alloc(70_000)))[0].type).toBe(REP.ERR_TOO_BIG);
    expect((await client.ask(OPT.GO, printGo({ name: 'disk', info: [] }))).at(-1)?.type).toBe(REP.ACK);
  });

  it('says in one line that a client broke the connection', async () => {
    const stream = new Duplex({ read() {}, write: (_data, _encoding, done) => done() });
    const ended = negotiate(stream as Socket, new FixedExports({}), LIMITS, undefined);
    const expected = expect(ended).rejects.toThrow(DmError);
    stream.destroy(Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET', syscall: 'read' }));
    await expected;
    await expect(ended).rejects.toThrow(/^lost the connection during the handshake/);
  });

  it('ends in good order at ABORT', async () => {
    const { path, log, idle } = await serve({ disk: new MemoryDevice(MiB) });
    const client = await RawClient.greet(path);
    expect((await client.ask(OPT.ABORT))[0].type).toBe(REP.ACK);
    expect(await client.closed()).toHaveLength(0);
    client.socket.destroy();
    await idle();
    expect(log).toEqual([]);
  });

  it('lists and sets meta contexts by name, by namespace, and all', async () => {
    const snapshot = Object.assign(new MemoryDevice(MiB), { changed: () => [] });
    const { path, exports } = await serve({ snapshot, disk: new MemoryDevice(MiB) });
    const client = await RawClient.greet(path);
    const ask = async (number: number, name: string, ...queries: string[]) => {
      const replies = await client.ask(number, printMetaContext({ name, queries }));
      expect(replies.at(-1)?.type).toBe(REP.ACK);
      return replies.slice(0, -1).map(({ data }) => parseContext(data).name);
    };
    expect((await client.ask(OPT.SET_META_CONTEXT, printMetaContext({ name: 'disk', queries: [] })))[0].type).toBe(
      REP.ERR_INVALID,
    );
    await client.ask(OPT.STRUCTURED_REPLY);
    const { LIST_META_CONTEXT: LIST, SET_META_CONTEXT: SET } = OPT;
    expect(await ask(LIST, 'snapshot')).toEqual(['base:allocation', 'dmkit:changed']);
    expect(await ask(LIST, 'snapshot', 'dmkit:')).toEqual(['dmkit:changed']);
    expect(await ask(LIST, 'snapshot', 'base:', 'other:x')).toEqual(['base:allocation']);
    expect(await ask(LIST, 'disk')).toEqual(['base:allocation']);
    expect(await ask(LIST, 'disk', 'dmkit:changed')).toEqual([]);
    expect(await ask(SET, 'snapshot')).toEqual([]);
    expect(await ask(SET, 'snapshot', 'base:')).toEqual([]);
    expect(await ask(SET, 'snapshot', 'dmkit:changed', 'base:allocation')).toEqual([
      'base:allocation',
      'dmkit:changed',
    ]);
    expect((await client.ask(SET, printMetaContext({ name: 'x', queries: [] })))[0].type).toBe(REP.ERR_UNKNOWN);
    expect(exports.opened.get('snapshot')).toBe(0);
  });

  it('forgets meta contexts that were set for another export', async () => {
    const { path } = await serve({ a: new MemoryDevice(MiB), b: new MemoryDevice(MiB) });
    const client = await RawClient.greet(path);
    await client.ask(OPT.STRUCTURED_REPLY);
    await client.ask(OPT.SET_META_CONTEXT, printMetaContext({ name: 'a', queries: ['base:allocation'] }));
    await client.ask(OPT.GO, printGo({ name: 'b', info: [] }));
    client.request(CMD.BLOCK_STATUS, 0, 4096);
    expect((await client.reply()).error).toBe(EINVAL);
  });
});
