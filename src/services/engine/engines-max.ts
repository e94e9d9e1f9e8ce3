import { availableParallelism } from 'node:os';
import { DmError } from '../../errors.ts';
import { system } from '../../lib/system.ts';

/** More have too little of the memory and the threads that all share. */
const DEFAULT_MAX = 7;

/**
 * Threads for forks that a daemon may have beside its main one: `DMKIT_ENGINES`, else as many as there are further cores.
 * None where connections cannot be given to another thread: without koffi, and with TLS, which is the main thread's.
 * Throws ENGINES_NUMBER (EINVAL).
 */
export function enginesMax(env: Readonly<Record<string, string | undefined>>, { tls }: { tls: boolean }): number {
  const { DMKIT_ENGINES: asked } = env;
  if (asked !== undefined && !/^\d{1,3}$/.test(asked))
    throw new DmError(
      'ENGINES_NUMBER',
      'EINVAL',
      `Cannot start with DMKIT_ENGINES=${asked}: it is no number below 1000`,
      {
        hint: 'leave it out for a thread on each core, or 0 for a single one: DMKIT_ENGINES=0',
      },
    );
  if (tls || !system()) return 0;
  return asked === undefined ? Math.min(availableParallelism() - 1, DEFAULT_MAX) : Number(asked);
}
