import { type ChildProcess, spawn } from 'node:child_process';
import { connect } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';

/** Bytes: the chunk or cluster that every contestant copies. */
export const CHUNK = 65536;

/** A program that serves volumes over an image. */
export interface Contestant {
  name: string;
  /** What it is, in one line of a report. */
  describe: string;
  /** Whether it keeps the image as it was, as a snapshot does. Those that do are the peers that tails are compared with. */
  copiesOnWrite: boolean;
  /** Of the program, if it is not dmkit. */
  version?(): string;
  /** Serves volumes over `image`, with empty stores in `folder` (which is empty). */
  serve(image: string, folder: string): Promise<Served>;
}

export interface Served {
  /** For each volume, fio's words for where it is. */
  volumes: string[][];
  /** Volumes that are busy beside these, and not measured. */
  others?: string[][];
  /** fio's word for what makes a write durable. */
  flush: 'fsync' | 'fdatasync';
  /** The server, if there is one. */
  pid?: number;
  stop(): Promise<void>;
}

/** fio's words for an export. */
export const nbd = (socket: string, name = '') => ['--ioengine=nbd', `--uri=nbd+unix:///${name}?socket=${socket}`];

const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** Makes sure that a process does not outlive the benchmark, however that ends. */
export function own<Child extends ChildProcess>(child: Child): Child {
  running.add(child);
  return child.once('exit', () => running.delete(child));
}

/** Starts a server and waits until its socket takes connections. */
export async function start(
  socket: string,
  volumes: string[][],
  command: string,
  args: string[],
  env = {},
): Promise<Served> {
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, ...env } });
  return { volumes, flush: 'fsync', ...(await serving(child, `${command} ${args.join(' ')}`, socket)) };
}

/** Waits until the socket of a server takes connections. */
export async function serving(
  child: ChildProcess,
  command: string,
  socket: string,
): Promise<Pick<Served, 'pid' | 'stop'>> {
  own(child);
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
  return { pid: child.pid, stop: () => stop(child) };
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
