/**
 * Advisory locks (flock) that keep two programs from writing one file: shared for those who read, exclusive for the one
 * who writes. The lock belongs to the open file description and goes with it, even when the process is killed.
 */
import { spawn } from 'node:child_process';
import type { BigIntStats } from 'node:fs';
import { DmError } from '../errors.ts';
import { entriesOf, textOf } from '../lib/proc.ts';
import { LOCK_EX, LOCK_SH, LOCK_UN, type System } from '../lib/system.ts';
import type { Mode } from './block-device.ts';

export type LockKind = 'shared' | 'exclusive' | 'none';

/**
 * Takes, changes or (`none`) gives back the lock of `fd`. False: someone else holds it. Where locks cannot be had (no
 * koffi and no `flock` program, or a filesystem without locks) it goes on without.
 */
export async function lock(fd: number, kind: LockKind, system: System | undefined): Promise<boolean> {
  if (!system) return lockByProgram(fd, kind);
  try {
    return await system.lockOnThread(fd, kind === 'shared' ? LOCK_SH : kind === 'exclusive' ? LOCK_EX : LOCK_UN);
  } catch {
    return true; // ENOLCK, EOPNOTSUPP: a network filesystem without locks.
  }
}

/** util-linux or busybox `flock` locks the description that it inherits as descriptor 3, exits, and the lock stays. */
function lockByProgram(fd: number, kind: LockKind): Promise<boolean> {
  const option = kind === 'shared' ? '-s' : kind === 'exclusive' ? '-x' : '-u';
  return new Promise((resolve) => {
    const child = spawn('flock', [option, '-n', '3'], { stdio: ['ignore', 'ignore', 'ignore', fd] });
    child.on('error', () => resolve(true));
    child.on('exit', (status) => resolve(status !== 1));
  });
}

/** EBUSY, with who holds the lock and what to do. */
export function inUse(path: string, identity: BigIntStats, mode: Mode): DmError {
  const pid = holder(identity);
  const by =
    pid === undefined ? 'another process' : pid === process.pid ? 'this process' : `${command(pid)} (pid ${pid})`;
  return new DmError(
    'DEVICE_IN_USE',
    'EBUSY',
    `Cannot open ${path} ${mode === 'rw' ? 'for writing' : 'to read'}: ${by} has it open`,
    {
      hint:
        pid === undefined || pid === process.pid
          ? `find who uses it: fuser -v ${path}`
          : `stop that process, or remove the device that uses ${path} there`,
    },
  );
}

/** `1: FLOCK  ADVISORY  WRITE 5419 fe:00:402117 0 EOF`, in /proc/locks and, after `lock:`, in /proc/PID/fdinfo. */
const FLOCK = /FLOCK\s+\S+\s+\S+\s+(-?\d+)\s+([0-9a-f]+):([0-9a-f]+):(\d+) /;

function holder(identity: BigIntStats): number | undefined {
  for (const line of lines('/proc/locks')) {
    const found = FLOCK.exec(line);
    // Only the inode: some filesystems (btrfs, overlayfs) show another device number to stat than to this table.
    if (!found || BigInt(found[4]) !== identity.ino) continue;
    const pid = Number(found[1]);
    // The pid is whoever took the lock; that can have been a `flock` long gone.
    return pid > 0 && command(pid) !== undefined ? pid : owner(identity.ino);
  }
  return undefined;
}

/** The process that has the locked description open, among those we may look into. */
function owner(inode: bigint): number | undefined {
  for (const pid of entriesOf('/proc')) {
    if (!/^\d+$/.test(pid)) continue;
    for (const fd of entriesOf(`/proc/${pid}/fdinfo`))
      for (const line of lines(`/proc/${pid}/fdinfo/${fd}`)) {
        const found = FLOCK.exec(line);
        if (found && BigInt(found[4]) === inode) return Number(pid);
      }
  }
  return undefined;
}

const command = (pid: number): string | undefined => textOf(`/proc/${pid}/comm`);

const lines = (path: string): string[] => textOf(path)?.split('\n') ?? [];
