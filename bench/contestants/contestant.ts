import { type ChildProcess, spawn } from 'node:child_process';
import { connect } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';

/** `snapshot`: writes go to a store beside the image. `origin`: the image itself. */
export type Side = 'snapshot' | 'origin';

/** Bytes: the chunk or cluster that every contestant copies. */
export const CHUNK = 65536;

/** A program that serves an image and a snapshot of it. */
export interface Contestant {
  name: string;
  /** What it is, in one line of a report. */
  describe(side: Side): string;
  version(): string;
  /** Serves one side of `image`, with an empty store in `folder` (which is empty). */
  serve(side: Side, image: string, folder: string): Promise<Served>;
}

export interface Served {
  uri: string;
  stop(): Promise<void>;
}

/** Starts a server and waits until its socket takes connections. */
export async function start(socket: string, uri: string, command: string, args: string[], env = {}): Promise<Served> {
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, ...env } });
  return serving(child, `${command} ${args.join(' ')}`, socket, uri);
}

/** Waits until the socket of a server takes connections. */
export async function serving(child: ChildProcess, command: string, socket: string, uri: string): Promise<Served> {
  let complaint = '';
  child.stderr?.on('data', (text) => (complaint += text));
  let failed: string | undefined;
  child.once('error', (error) => (failed = error.message));
  child.once('exit', (code, signal) => (failed = `it ended with ${signal ?? code}. ${complaint}`));
  for (let tries = 0; !(await answers(socket)); tries++) {
    if (failed === undefined && tries < 1000) await pause(10);
    else {
      await stop(child);
      throw new Error(`Cannot start ${command}: ${failed ?? `${socket} does not answer`}`);
    }
  }
  return { uri, stop: () => stop(child) };
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const gone = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGTERM');
  const late = setTimeout(() => child.kill('SIGKILL'), 10_000);
  await gone;
  clearTimeout(late);
}

function answers(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(socket);
    probe.once('connect', () => resolve(true)).once('error', () => resolve(false));
    probe.once('connect', () => probe.destroy());
  });
}
