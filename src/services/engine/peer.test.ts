import { setImmediate as turn } from 'node:timers/promises';
import { MessageChannel } from 'node:worker_threads';
import { afterEach, expect, test } from 'vitest';
import { DmError } from '../../errors.ts';
import { Peer, type PeerHandlers } from './peer.ts';

const channels: MessageChannel[] = [];

afterEach(() => {
  for (const { port1 } of channels.splice(0)) port1.close();
});

function peers(handlers: PeerHandlers, back: PeerHandlers = {}): [Peer, Peer] {
  const channel = new MessageChannel();
  channels.push(channel);
  return [new Peer(channel.port1, back), new Peer(channel.port2, handlers)];
}

test('a call is answered with what the other side returns', async () => {
  const [near] = peers({ add: ([a, b]) => a + b, later: async ([value]) => ({ value }) });
  expect(await near.call('add', [2, 3])).toBe(5);
  expect(await near.call('later', ['x'])).toEqual({ value: 'x' });
});

test('an error arrives as it was thrown, with its code, errno and hint', async () => {
  const [near] = peers({
    refuse: () => {
      throw new DmError('DEVICE_OPEN', 'EBUSY', 'Cannot', { hint: 'first …' });
    },
  });
  const error = await near.call('refuse', []).catch((reason) => reason);
  expect(error).toBeInstanceOf(DmError);
  expect(error).toMatchObject({ code: 'DEVICE_OPEN', errno: 'EBUSY', message: 'Cannot', hint: 'first …' });
});

test('what was told before an answer has arrived before it', async () => {
  const told: unknown[] = [];
  const [near, far] = peers(
    {
      work: async () => {
        for (let i = 0; i < 3; i++) far.tell('note', [i]);
        return 'done';
      },
    },
    { note: ([value]) => told.push(value) },
  );
  expect(await near.call('work', [])).toBe('done');
  expect(told).toEqual([0, 1, 2]);
});

test('who waits no longer ends the call on the other side, also when that was so from the start', async () => {
  const [near] = peers({
    wait: (_args, signal) =>
      new Promise((_resolve, reject) =>
        signal.addEventListener('abort', () => reject(new DmError('INTERRUPTED', 'EINTR', 'ended'))),
      ),
  });
  const abort = new AbortController();
  const waiting = near.call('wait', [], abort.signal);
  await turn();
  abort.abort();
  await expect(waiting).rejects.toMatchObject({ code: 'INTERRUPTED' });
  await expect(near.call('wait', [], abort.signal)).rejects.toMatchObject({ code: 'INTERRUPTED' });
});

test('calls without an answer reject when the other side is gone, and so do later ones', async () => {
  const [near] = peers({ never: () => new Promise(() => {}) });
  const waiting = near.call('never', []);
  near.end('it stops');
  await expect(waiting).rejects.toMatchObject({ code: 'DAEMON_STOPS', message: 'it stops' });
  await expect(near.call('never', [])).rejects.toMatchObject({ code: 'DAEMON_STOPS' });
  near.tell('never', []);
});
