import { type MessagePort, Worker } from 'node:worker_threads';
import type { ForksState } from '../fork/records.ts';
import type { StartedEngine } from './engines.ts';
import { type EngineHost, type EngineStart, RemoteEngine } from './remote-engine.ts';

/** Beside this module, as it is built. */
const MODULE = new URL(import.meta.url.endsWith('.ts') ? './worker.ts' : './worker.js', import.meta.url);

/** What `runEngine` answers on, and how to end it. */
export interface Thread {
  port: MessagePort | Worker;
  /** Rejects when it ends before it has said anything. */
  failed: Promise<never>;
  end(): Promise<unknown>;
}

/** Should it end by itself later on, so does the daemon: its devices would be gone. */
export function startThread(start: EngineStart): Thread {
  const worker = new Worker(MODULE, { workerData: start });
  let [begun, ending] = [false, false];
  worker.once('message', () => (begun = true));
  const failed = new Promise<never>((_, reject) => {
    const onEnd = (error: Error) => {
      if (begun) throw error;
      reject(error);
    };
    worker.on('error', onEnd);
    worker.on('exit', (status) => {
      if (!ending) onEnd(new Error(`The thread of an engine ended with ${status}`));
    });
  });
  return {
    port: worker,
    failed,
    end() {
      ending = true;
      return worker.terminate();
    },
  };
}

/**
 * The engine on that thread, when it answers. `state`: what it is to bring back; `watchers`: those who wait for events already.
 * Rejects with what kept the thread from its start.
 */
export async function startEngine(
  { port, failed, end }: Thread,
  host: EngineHost,
  { state, watchers }: { state: ForksState; watchers: number },
): Promise<StartedEngine> {
  const engine = new RemoteEngine(port, host, state);
  if (watchers > 0) engine.peer.tell('watched', [watchers]);
  try {
    await Promise.race([engine.call('begin', []), failed]);
  } catch (error) {
    engine.peer.end((error as Error).message);
    void end();
    host.log(`Everything goes on with the threads there are: ${(error as Error).message}`);
    throw error;
  }
  return Object.assign(engine, {
    async end() {
      engine.peer.end('The daemon is stopping');
      await end();
    },
  });
}
