/** The first module of an engine's thread. */
import { parentPort, workerData } from 'node:worker_threads';
import { runEngine } from './engine-thread.ts';
import type { EngineStart } from './remote-engine.ts';

const peer = runEngine(parentPort!, workerData as EngineStart);
// As on the main thread: what is thrown past every handler ends the daemon.
process.on('unhandledRejection', (reason) =>
  peer.tell('log', [`unhandled rejection: ${reason instanceof Error ? reason.stack : reason}`]),
);
