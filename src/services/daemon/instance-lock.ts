/** One daemon per directory. */
import {
  closeSync,
  constants,
  ftruncateSync,
  linkSync,
  openSync,
  readFileSync,
  renameSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { DmError, fromSystem } from '../../errors.ts';
import { LOCK_EX, system } from '../../lib/system.ts';

export interface InstanceLock {
  release(): void;
}

/** EBUSY: `directory` has a daemon. */
export class AlreadyRunning extends DmError {
  constructor(directory: string, pid: number | undefined) {
    const who = pid === undefined ? 'another daemon' : `a daemon with pid ${pid}`;
    super('DAEMON_RUNS', 'EBUSY', `Cannot start: ${who} runs with ${directory}`, {
      hint: 'stop it: dmkit down. Or give other directories in DMKIT_DIR and DMKIT_STATE',
    });
  }
}

/**
 * Holds `directory` until released or until this process ends, however it ends. Throws AlreadyRunning while another
 * process holds it.
 */
export function lockInstance(directory: string): InstanceLock {
  const path = join(directory, 'daemon.lock');
  try {
    return system() ? lockFile(path, directory) : linkFile(`${path}.pid`, directory);
  } catch (error) {
    throw fromSystem(error, `Cannot lock ${path}`);
  }
}

/**
 * The pid of the process that has `directory`, as it left it there; nothing is tried. Undefined also where there is no
 * /proc to tell whether it lives.
 */
export function lockHolder(directory: string): number | undefined {
  const path = join(directory, 'daemon.lock');
  return [path, `${path}.pid`].map(pidIn).find((holder) => holder?.started && isAlive(holder))?.pid;
}

/** The kernel drops the lock with the process. The file stays: who unlinks a lock file hands out two locks. */
function lockFile(path: string, directory: string): InstanceLock {
  const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
  if (!system()?.lock(fd, LOCK_EX)) {
    closeSync(fd);
    throw new AlreadyRunning(directory, pidIn(path)?.pid);
  }
  ftruncateSync(fd, 0);
  writeSync(fd, own(), 0);
  return {
    release() {
      ftruncateSync(fd, 0);
      closeSync(fd);
    },
  };
}

/**
 * Without `flock`: a file that appears whole, by link(2), with the pid and start time of its holder. One left behind by
 * a holder that has ended is moved away first, and put back if it turns out that someone else had done so just before.
 */
function linkFile(path: string, directory: string): InstanceLock {
  const mine = `${path}.${process.pid}`;
  writeFileSync(mine, own(), { mode: 0o600 });
  try {
    for (;;) {
      try {
        linkSync(mine, path);
        return { release: () => unlinkSync(path) };
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      }
      const holder = pidIn(path);
      if (holder && isAlive(holder)) throw new AlreadyRunning(directory, holder.pid);
      const aside = `${path}.stale.${process.pid}`;
      try {
        renameSync(path, aside);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') continue;
        throw error;
      }
      const moved = pidIn(aside);
      if (moved && isAlive(moved)) {
        linkSync(aside, path);
        unlinkSync(aside);
        throw new AlreadyRunning(directory, moved.pid);
      }
      unlinkSync(aside);
    }
  } finally {
    unlinkSync(mine);
  }
}

interface Holder {
  pid: number;
  started: string;
}

/**
 * Field 22 of /proc/PID/stat, in clock ticks since boot: a pid that was given to another process since is told apart.
 * Empty for a process that has ended, though nobody has asked for its status.
 */
function startTime(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const [state, ...fields] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return state === 'Z' ? '' : fields[18];
  } catch {
    return '';
  }
}

const own = () => `${process.pid} ${startTime(process.pid)}\n`;

function pidIn(path: string): Holder | undefined {
  try {
    const [pid, started = ''] = readFileSync(path, 'utf8').trim().split(' ');
    return /^\d+$/.test(pid) ? { pid: Number(pid), started } : undefined;
  } catch {
    return undefined;
  }
}

function isAlive({ pid, started }: Holder): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
  }
  return startTime(pid) === started;
}
