import { Worker } from 'node:worker_threads';
import type { ForksState } from '../fork/records.ts';
import type { StartedEngine } from './engines.ts';
import { type EngineHost, type EngineStart, RemoteEngine } from './remote-engine.ts';

/** Beside this module, as it is built. */
const MODULE = new URL(import.meta.url.endsWith('.ts') ? './worker.ts' : './worker.js', import.meta.url);

export interface NewEngine {
  start: EngineStart;
  host: EngineHost;
  /** What it is to bring back. */
  state: ForksState;
  /** Those who wait for events already. */
  watchers: number;
}

/** An engine on a new thread. Should the thread end by itself, so does the daemon: its devices would be gone. */
export function startEngine({ start, host, state, watchers }: NewEngine): StartedEngine {
  const worker = new Worker(MODULE, { workerData: start });
  const engine = new RemoteEngine(worker, host, state);
  let ending = false;
  worker.on('error', (error) => {
    throw error;
  });
  worker.on('exit', (status) => {
    if (!ending) throw new Error(`The thread of an engine ended with ${status}`);
  });
  if (watchers > 0) engine.peer.tell('watched', [watchers]);
  engine.peer.tell('begin', []);
  return Object.assign(engine, {
    async end() {
      ending = true;
      engine.peer.end('The daemon is stopping');
      await worker.terminate();
    },
  });
}
