/** The program: the world outside as commands see it, and the exit status. */
import { spawn } from 'node:child_process';
import { basename } from 'node:path';
import { text } from 'node:stream/consumers';
import { directories, hasState, runningDaemon, startDaemon } from '../api/index.ts';
import { run } from './run.ts';
import type { ShortIo } from './short/command.ts';

function processIo(): ShortIo {
  const { env } = process;
  const cwd = process.cwd();
  const interrupted = new AbortController();
  let signal: AbortSignal | undefined;
  const control = () => startDaemon(directories(env));
  const existing = async () => {
    const where = directories(env);
    return (await runningDaemon(where)) ?? (hasState(where) ? startDaemon(where) : undefined);
  };
  return {
    stdout: process.stdout,
    stderr: process.stderr,
    stdin: () => text(process.stdin),
    env,
    cwd,
    control,
    existing,
    exec: (argv) =>
      new Promise((resolve, reject) => {
        const child = spawn(argv[0], argv.slice(1), { stdio: 'inherit' });
        child.on('error', reject);
        child.on('close', (status) => resolve(status ?? 1));
      }),
    columns: process.stdout.columns,
    progress: process.stderr.isTTY,
    /** Ctrl-C and SIGTERM end the program unless the command has asked to be told. */
    get signal() {
      if (!signal) {
        signal = interrupted.signal;
        for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => interrupted.abort());
      }
      return signal;
    },
  };
}

export function start(): void {
  // A reader that has had enough (`dmkit ls | head -1`) is no failure of ours.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(0);
    process.stderr.write(`${basename(process.argv[1])}: Cannot write the output: ${error.message}\n`);
    process.exit(1);
  });
  // Whoever read it has gone, or its disk is full: that costs the lines, not a daemon's devices.
  process.stderr.on('error', () => {});
  run(basename(process.argv[1]), process.argv.slice(2), processIo()).then(
    (status) => {
      process.exitCode = status;
    },
    (error) => {
      process.stderr.write(`dmkit: ${error instanceof Error ? (error.stack ?? error.message) : error}\n`);
      process.stderr.write('This is a fault in dmkit; please report it with the lines above.\n');
      process.exitCode = 1;
    },
  );
}
