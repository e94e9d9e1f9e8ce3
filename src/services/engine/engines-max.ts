import { DmError } from '../../errors.ts';
import { system } from '../../lib/system.ts';

/**
 * Threads for forks that a daemon may have beside its main one: `DMKIT_ENGINES`. None where connections cannot be given to
 * another thread: without koffi, and with TLS, which is the main thread's. Throws ENGINES_NUMBER (EINVAL).
 */
export function enginesMax(env: Readonly<Record<string, string | undefined>>, { tls }: { tls: boolean }): number {
  const { DMKIT_ENGINES: asked = '0' } = env;
  if (!/^\d{1,3}$/.test(asked))
    throw new DmError(
      'ENGINES_NUMBER',
      'EINVAL',
      `Cannot start with DMKIT_ENGINES=${asked}: it is no number below 1000`,
      {
        hint: 'leave it out for one thread on each core, or 0 for a single one: DMKIT_ENGINES=0',
      },
    );
  return tls || !system() ? 0 : Number(asked);
}
