import { DmError } from '../../errors.ts';
import { system } from '../../lib/system.ts';

/**
 * Threads for forks that a daemon may have beside its main one: `DMKIT_ENGINES`, else none. None where connections cannot be given to another thread: without koffi, and with TLS, which is the main thread's.
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
        hint: 'leave it out for a single thread, or give the number of further cores: DMKIT_ENGINES=3',
      },
    );
  if (tls || !system()) return 0;
  return Number(asked ?? 0);
}
