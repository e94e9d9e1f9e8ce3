import { type MessagePort, Worker } from 'node:worker_threads';
import type { ForksState } from '../fork/records.ts';
import type { StartedEngine } from './engines.ts';
import { type EngineHost, type EngineStart, RemoteEngine } from './remote-engine.ts';

/** Beside this module, as it is built. */
const MODULE = new URL(import.meta.url.endsWith('.ts') ? './worker.ts' : './worker.js', import.meta.url);

/** What `runEngine` answers on, and how to end it. */
export interface Thread {
  port: MessagePort | Worker;
  end(): Promise<unknown>;
}

/** Should it end by itself, so does the daemon: its devices would be gone. */
export function startThread(start: EngineStart): Thread {
  const worker = new Worker(MODULE, { workerData: start });
  let ending = false;
  worker.on('error', (error) => {
    throw error;
  });
  worker.on('exit', (status) => {
    if (!ending) throw new Error(`The thread of an engine ended with ${status}`);
  });
  return {
    port: worker,
    end() {
      ending = true;
      return worker.terminate();
    },
  };
}

/** The engine on that thread. `state`: what it is to bring back; `watchers`: those who wait for events already. */
export function startEngine(
  { port, end }: Thread,
  host: EngineHost,
  { state, watchers }: { state: ForksState; watchers: number },
): StartedEngine {
  const engine = new RemoteEngine(port, host, state);
  if (watchers > 0) engine.peer.tell('watched', [watchers]);
  engine.peer.tell('begin', []);
  return Object.assign(engine, {
    async end() {
      engine.peer.end('The daemon is stopping');
      await end();
    },
  });
}
