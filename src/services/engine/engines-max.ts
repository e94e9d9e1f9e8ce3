import { availableParallelism } from 'node:os';
import { DmError } from '../../errors.ts';
import { system } from '../../lib/system.ts';

/** More engines than this share out memory and the threads that wait for disks too thinly. */
const ENGINES_MAX = 7;

/**
 * Threads for forks that a daemon may have beside its main one: `DMKIT_ENGINES`, else one for each further core. None where
 * connections cannot be given to another thread: without koffi, and with TLS, which is the main thread's. Throws ENGINES_NUMBER
 * (EINVAL).
 */
export function enginesMax(
  env: Readonly<Record<string, string | undefined>>,
  { tls, cores = availableParallelism() }: { tls: boolean; cores?: number },
): number {
  const { DMKIT_ENGINES: asked } = env;
  if (asked !== undefined && !/^\d{1,3}$/.test(asked))
    throw new DmError(
      'ENGINES_NUMBER',
      'EINVAL',
      `Cannot start with DMKIT_ENGINES=${asked}: it is no number below 1000`,
      {
        hint: 'leave it out for one on each further core, or give their number: DMKIT_ENGINES=3',
      },
    );
  if (tls || !system()) return 0;
  return asked === undefined ? Math.min(cores - 1, ENGINES_MAX) : Number(asked);
}
