import { MessageChannel } from 'node:worker_threads';
import { expect, test } from 'vitest';
import { runEngine } from './engine-thread.ts';
import { Peer } from './peer.ts';

test('what there is is told also when nothing could leave', async () => {
  const { port1, port2 } = new MessageChannel();
  runEngine(port2, { major: 254, nbdSocket: '/run/nbd.sock', version: '0' });
  const saved: unknown[] = [];
  const peer = new Peer(port1, { save: ([state]) => saved.push(state) });
  await expect(peer.call('leave', [['none'], []])).rejects.toMatchObject({ code: 'NO_DEVICE' });
  expect(saved).toEqual([{ devices: [], forks: [] }]);
  port1.close();
});
