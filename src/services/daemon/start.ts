/** From a command to a daemon that answers: the one that runs, or one that is started now. */
import { spawn } from 'node:child_process';
import { closeSync, openSync, watch } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DmError } from '../../errors.ts';
import { controlClient, isDaemonGone } from './control-client.ts';
import type { DaemonControl } from './daemon-control.ts';
import { controlSocket, type Directories, ensurePrivateDirectory } from './directories.ts';
import { AlreadyRunning, lockHolder } from './instance-lock.ts';
import { fromWire } from './wire-error.ts';

const PROGRAM = fileURLToPath(new URL('../../../bin/dmkit', import.meta.url));
/** Names the descriptor to tell when the daemon is ready. */
export const READY_FD = 'DMKIT_READY_FD';
/** A start brings back every device, so that it may take long; this bounds only the wait for someone else's. */
const PATIENCE_MS = 30_000;

/** The daemon of these directories if it runs. */
export async function runningDaemon({ run }: Directories): Promise<DaemonControl | undefined> {
  const client = controlClient(controlSocket(run));
  try {
    await client.daemon();
    return client;
  } catch (error) {
    // One that was killed may have accepted the connection: nothing is lost with this call.
    if (isDaemonGone(error)) return undefined;
    throw error;
  }
}

/**
 * The daemon of these directories, started if it does not run. Several at once end up with the same one. `args`: for
 * `dmkit up`. Throws what the daemon failed with.
 */
export async function startDaemon(directories: Directories, args: readonly string[] = []): Promise<DaemonControl> {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const running = await runningDaemon(directories);
    if (running) return running;
    ensurePrivateDirectory(directories.run);
    // Someone else starts it, or the one before is about to end: either shows in the directory.
    const holder = lockHolder(directories.run);
    const fault = holder === undefined ? await launch(directories, args) : new AlreadyRunning(directories.run, holder);
    if (fault === undefined) return controlClient(controlSocket(directories.run));
    if (fault.code !== 'DAEMON_RUNS' || Date.now() > deadline) throw fault;
    await changed(directories.run);
  }
}

/** Undefined when the daemon is ready. */
function launch({ run, state }: Directories, args: readonly string[]): Promise<DmError | undefined> {
  return new Promise((resolve) => {
    ensurePrivateDirectory(state);
    // What a crash writes; a pipe would end with this command.
    const log = openSync(join(state, 'dmkit.log'), 'a', 0o600);
    const child = spawn(process.execPath, [PROGRAM, 'up', '--foreground', ...args], {
      detached: true,
      cwd: '/',
      stdio: ['ignore', log, log, 'pipe'],
      env: { ...process.env, DMKIT_DIR: run, DMKIT_STATE: state, [READY_FD]: '3' },
    });
    closeSync(log);
    let told = '';
    const stream = child.stdio[3] as NodeJS.ReadableStream;
    stream.on('data', (part) => (told += part));
    child.on('error', (error) => resolve(startFailed(error.message)));
    stream.on('end', () => {
      child.unref();
      if (told.startsWith('ready')) return resolve(undefined);
      try {
        resolve(fromWire(JSON.parse(told)));
      } catch {
        resolve(startFailed('it ended without a word'));
      }
    });
  });
}

const startFailed = (why: string) =>
  new DmError('DAEMON_START', 'EIO', `Cannot start the daemon: ${why}`, {
    hint: 'see dmkit.log in the state directory, or what it says in the foreground: dmkit up --foreground',
  });

/** Resolves at the next change in the directory; after a tenth of a second at the latest, as a lock makes no event. */
function changed(directory: string): Promise<void> {
  return new Promise((resolve) => {
    const watcher = watch(directory);
    const done = () => {
      clearTimeout(timer);
      watcher.close();
      resolve();
    };
    const timer = setTimeout(done, 100);
    watcher.once('change', done);
    watcher.once('error', done);
  });
}
