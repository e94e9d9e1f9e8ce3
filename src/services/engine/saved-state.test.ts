/** What is saved of devices that come, go and move. */
import { MessageChannel } from 'node:worker_threads';
import { expect, test } from 'vitest';
import type { SavedDevice } from '../../mapper/saved-device.ts';
import type { ForkRecord, ForksState } from '../fork/records.ts';
import type { Engine } from './engine.ts';
import { Engines } from './engines.ts';
import { Peer } from './peer.ts';
import { Registry } from './registry.ts';
import { type EngineHost, RemoteEngine } from './remote-engine.ts';

const MAJOR = 254;

function device(name: string, minor: number, table = [{ start: 0, length: 8, type: 'zero', args: '' }]): SavedDevice {
  const flags = { readOnly: false, suspended: false, deferredRemove: false, readAheadMinimum: false };
  return { name, uuid: '', minor, table, eventNumber: 0, ...flags };
}

/** Engines of which the first has these devices. `called` sees each call that it gets. */
function make(devices: SavedDevice[], called: (call: string) => Promise<void> = async () => {}) {
  const registry = new Registry(MAJOR, () => {});
  const local: Engine = {
    async call<T>(call: string) {
      await called(call);
      return [] as T;
    },
    state: async (): Promise<ForksState> => ({ devices, forks: [] }),
  };
  const start = () => {
    throw new Error('no threads');
  };
  return { registry, engines: new Engines({ major: MAJOR, registry, local, max: 0, start }) };
}

const tell = async (engines: Engines) =>
  (await engines.state()).devices.map(({ name, table }) => [name, table?.length]);

test('what is being brought back is saved as it was: half of it is not what there is', async () => {
  const { table: _, ...half } = device('a', 0);
  const during: unknown[] = [];
  const { registry, engines } = make([half], async (call) => {
    if (call === 'restore') during.push(await tell(engines));
  });
  await registry.claimsOf(0).add('a', '', 0);
  await engines.restore({ devices: [device('a', 0), device('b', 1)], forks: [] });
  expect(during).toEqual([
    [
      ['a', 1],
      ['b', 1],
    ],
  ]);
  expect(await tell(engines)).toEqual([['a', undefined]]);
});

test('a device that is being removed is saved no more: another may have its name by then', async () => {
  const { registry, engines } = make([device('a', 0), device('a', 1)]);
  const claims = registry.claimsOf(0);
  await claims.add('a', '', 0);
  claims.hide(0);
  await claims.add('a', '', 1);
  expect((await engines.state()).devices.map(({ minor }) => minor)).toEqual([1]);
  claims.free(0);
  expect((await engines.state()).devices.map(({ minor }) => minor)).toEqual([1]);
});

test('a device is saved by the name that it has, though its engine has yet to tell of it', async () => {
  const { registry, engines } = make([device('old', 0)]);
  const claims = registry.claimsOf(0);
  await claims.add('old', '', 0);
  await claims.rename(0, 'new');
  expect(await tell(engines)).toEqual([['new', 1]]);
});

test('with a removal comes why: a restart finishes a drop that has taken its device', async () => {
  const { port1, port2 } = new MessageChannel();
  const hidden: number[] = [];
  const hide = (minor: number) => void hidden.push(minor);
  const host = { claims: { hide }, emit() {}, log() {}, save: async () => {}, users: async () => undefined };
  const record: ForkRecord = { uuid: 'u', role: 'fork', image: '/a.img', cow: '/a.cow', owned: true };
  const engine = new RemoteEngine(port1, host as unknown as EngineHost, { devices: [device('a', 0)], forks: [record] });
  const told: ForksState = { devices: [], forks: [{ ...record, dropping: 'delete' }] };
  const far = new Peer(port2, { now: () => far.tell('hide', [0, told]) });
  await engine.call('now', []);
  expect([hidden, await engine.state()]).toEqual([[0], told]);
  port1.close();
});
