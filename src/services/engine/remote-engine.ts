/** An engine on a thread of its own, as the main thread sees it. */
import type { MessagePort, Worker } from 'node:worker_threads';
import type { Claims } from '../../mapper/device-index.ts';
import type { Emit, EventBody, Subject } from '../events/event.ts';
import type { ForksState } from '../fork/records.ts';
import type { Engine } from './engine.ts';
import { Peer } from './peer.ts';

/** What an engine needs of the daemon. */
export interface EngineHost {
  claims: Claims;
  emit: Emit;
  log(line: string): void;
  /** The state has changed; settles when that is durable. */
  save(): Promise<void>;
  users(name: string): Promise<string | undefined>;
}

/** What it begins with. Survives structured cloning. */
export interface EngineStart {
  major: number;
  nbdSocket: string;
  /** Of the package: another one may have been installed since the daemon was started. */
  version: string;
}

export class RemoteEngine implements Engine {
  readonly peer: Peer;
  /** As the engine told it last. Until it has, what it is to bring back: nothing that is saved meanwhile may lose that. */
  #state: ForksState;
  /** Of the connections that it serves, by number. */
  readonly #connectionLogs = new Map<number, (line: string) => void>();

  constructor(port: MessagePort | Worker, host: EngineHost, state: ForksState) {
    const { claims } = host;
    this.#state = state;
    this.peer = new Peer(port, {
      add: ([name, uuid, minor]) => claims.add(name, uuid, minor),
      rename: ([minor, name]) => claims.rename(minor, name),
      setUuid: ([minor, uuid]) => claims.setUuid(minor, uuid),
      hide: ([minor, told]) => {
        this.#state = told;
        claims.hide(minor);
      },
      free: ([minor]) => claims.free(minor),
      emit: ([subject, body]: readonly [Subject, EventBody] | readonly never[]) => host.emit(subject, body),
      log: ([line]) => host.log(line),
      save: ([told]) => {
        this.#state = told;
        return host.save();
      },
      users: ([name]) => host.users(name),
      connectionLog: ([number, line]) => this.#connectionLogs.get(number)?.(line),
    });
  }

  call<T>(call: string, args: readonly unknown[], signal?: AbortSignal): Promise<T> {
    return this.peer.call(call, args, signal);
  }

  async state(): Promise<ForksState> {
    return this.#state;
  }

  /** While `work` runs, lines about the connection of that number go to `log`. */
  async logging<T>(number: number, log: (line: string) => void, work: Promise<T>): Promise<T> {
    this.#connectionLogs.set(number, log);
    try {
      return await work;
    } finally {
      this.#connectionLogs.delete(number);
    }
  }
}
