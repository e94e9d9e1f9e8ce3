/** The first module of an engine's thread. */
import { readFileSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { runEngine } from './engine-thread.ts';
import type { EngineStart } from './remote-engine.ts';

const start = workerData as EngineStart;
const { version } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8'));
if (version !== start.version)
  throw new Error(`${version} was installed over the ${start.version} that runs: dmkit down; dmkit up`);
const peer = runEngine(parentPort!, start);
// As on the main thread: what is thrown past every handler ends the daemon.
process.on('unhandledRejection', (reason) =>
  peer.tell('log', [`unhandled rejection: ${reason instanceof Error ? reason.stack : reason}`]),
);
