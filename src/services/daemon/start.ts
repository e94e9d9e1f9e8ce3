/** From a command to a daemon that answers: the one that runs, or one that is started now. */
import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, watch } from 'node:fs';
import { readFile, realpath } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { DmError } from '../../errors.ts';
import { splitWords } from '../../targets/arguments.ts';
import { controlClient } from './control-client.ts';
import type { DaemonControl } from './daemon-control.ts';
import { controlSocket, type Directories, ensurePrivateDirectory } from './directories.ts';
import type { State } from './state.ts';
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
    const gone = ['DAEMON_DOWN', 'DAEMON_STOPS', 'DAEMON_LOST'];
    if (error instanceof DmError && gone.includes(error.code)) return undefined;
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
    const fault = await launch(directories, args);
    if (fault === undefined) return controlClient(controlSocket(directories.run));
    // Someone else starts it, or the one before is about to end: either shows in the directory.
    if (fault.code !== 'DAEMON_RUNS' || Date.now() > deadline) throw fault;
    await changed(directories.run);
  }
}

/** Whether a daemon would have devices to bring back. True too when its state cannot be read: it will say why. */
export function hasState({ state }: Directories): boolean {
  try {
    const { state: saved } = JSON.parse(readFileSync(join(state, 'state.json'), 'utf8'));
    return !Array.isArray(saved.devices) || saved.devices.length > 0;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ENOENT';
  }
}

/**
 * Names of the snapshots of `image` that the daemon has, or would bring back: `own` is the one over `cow`, or is being
 * merged from it. Paths may be relative to `directory`.
 */
export async function savedSnapshots(
  { state }: Directories,
  { image, cow, directory }: { image: string; cow: string; directory: string },
): Promise<{ own?: string; others: string[] }> {
  const found: { own?: string; others: string[] } = { others: [] };
  let saved: Partial<State>;
  try {
    ({ state: saved } = JSON.parse(await readFile(join(state, 'state.json'), 'utf8')));
  } catch {
    // Nothing that a daemon could bring back.
    return found;
  }
  const canonical = (path: string) => realpath(resolve(directory, path)).catch(() => path);
  const [imageName, cowName] = await Promise.all([canonical(image), canonical(cow)]);
  for (const { name, table = [] } of saved.devices ?? [])
    for (const { type, args } of table) {
      const words = splitWords(args);
      if (!['snapshot', 'snapshot-merge'].includes(type) || words[0] !== imageName) continue;
      if (words[1] === cowName) found.own = type === 'snapshot' ? name : found.own;
      else if (!words[2]?.startsWith('N')) found.others.push(name);
    }
  found.own ??= saved.forks?.find(({ merging }) => merging?.cow === cowName)?.merging?.name;
  return found;
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
