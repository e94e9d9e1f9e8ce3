/** The other side of a `RemoteEngine`: an assembly, and the connections to its devices. */
import type { MessagePort } from 'node:worker_threads';
import { assemble } from '../assembly.ts';
import { nbdUri } from '../daemon/directories.ts';
import { MapperExports } from '../daemon/mapper-exports.ts';
import type { DeviceEvent } from '../events/event.ts';
import type { OpenExport, Served } from '../nbd/exports.ts';
import type { Session } from '../nbd/handshake.ts';
import { LIMITS } from '../nbd/limits.ts';
import { Serving, shareAmong } from '../nbd/serving.ts';
import { engineCalls } from './engine.ts';
import { Peer } from './peer.ts';
import type { EngineStart } from './remote-engine.ts';

/** What a handshake tells of an export on another thread. */
export interface ExportFacts {
  /** The opener's; to be closed. */
  number: number;
  size: number;
  blockSize: number;
  canDiscard: boolean;
  readOnly: boolean;
  description: string | undefined;
  hasOrigin: boolean;
}

/** A connection whose handshake is done. */
export interface HandedOver {
  /** A descriptor that this side closes. */
  fd: number;
  /** What came behind the handshake. */
  rest: Uint8Array;
  session: Pick<Session, 'name' | 'structured' | 'contexts' | 'secure'>;
}

/** Begins to answer on `port`. */
export function runEngine(port: MessagePort, { major, nbdSocket }: EngineStart): Peer {
  let watchers = 0;
  const assembly = assemble({
    major,
    claims: {
      add: (...args) => peer.call('add', args),
      rename: (...args) => peer.call('rename', args),
      setUuid: (...args) => peer.call('setUuid', args),
      // With the records as they are now: why it goes is in them.
      hide: (minor) => peer.tell('hide', [minor, forks.state()]),
      free: (...args) => peer.tell('free', args),
    },
    events: {
      emit: ({ storedName, uuid }, body) => peer.tell('emit', [{ storedName, uuid }, body]),
      get waiting() {
        return watchers;
      },
      events: () => Promise.reject<{ events: DeviceEvent[]; next: number; lost: boolean }>(new Error('not kept here')),
    },
    // A failure is told by who saves.
    changed: () => peer.call<void>('save', [forks.state()]).catch(() => {}),
    save: () => peer.call('save', [forks.state()]),
    uri: (name) => nbdUri(nbdSocket, name),
    users: (name) => peer.call('users', [name]),
    log: (line) => peer.tell('log', [line]),
  });
  const { mapper, forks, monitor } = assembly;
  const exports = new MapperExports(mapper);
  const serving = new Serving(LIMITS);
  const opens = new Map<number, OpenExport>();
  const connections = new Map<number, Served>();
  let opened = 0;

  const calls = engineCalls(assembly);
  /** Also of what has failed: what was told meanwhile of a device that is suspended for a moment is not so any more. */
  const told = async (work: unknown) => {
    try {
      return await work;
    } finally {
      await peer.call('save', [forks.state()]).catch(() => {});
    }
  };
  const peer: Peer = new Peer(port, {
    ...calls,
    leave: (args, signal) => told(calls.leave(args, signal)),
    join: (args, signal) => told(calls.join(args, signal)),
    recover: (args, signal) => told(calls.recover(args, signal)),
    share: ([threads]) => shareAmong(threads, serving),
    /** So many wait for events, or have just ceased to. */
    watched: ([count]) => {
      watchers = count;
      monitor.taken();
    },
    openExport: async ([name]): Promise<ExportFacts> => {
      const open = await exports.open(name);
      const { device, readOnly, description, changed } = open;
      const number = ++opened;
      opens.set(number, open);
      const { size, blockSize, canDiscard } = device;
      return { number, size, blockSize, canDiscard, readOnly, description, hasOrigin: changed !== undefined };
    },
    closeExport: async ([number]) => {
      const open = opens.get(number)!;
      opens.delete(number);
      await open.close();
    },
    /** Resolves when the connection has ended. */
    serve: async ([number, handed]: readonly [number, HandedOver] | readonly never[]) => {
      const { fd, rest, session } = handed;
      const log = (line: string) => peer.tell('connectionLog', [number, line]);
      const transmission = serving.transmission(fd, { ...session, open: opens.get(number)! }, log);
      connections.set(number, transmission);
      transmission.start(Buffer.from(rest));
      await transmission.done;
      connections.delete(number);
    },
    drain: ([number]) => connections.get(number)?.drain(),
    cut: ([number]) => connections.get(number)?.cut(),
  });
  return peer;
}
