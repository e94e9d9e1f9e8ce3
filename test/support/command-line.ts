/** Command lines of dmkit on a mapper in this process, in the place of a daemon. */
import { join } from 'node:path';
import type { DeviceMapper } from '../../src/api/index.ts';
import { run } from '../../src/cli/run.ts';
import type { ShortIo } from '../../src/cli/short/command.ts';

export interface Called {
  dm: DeviceMapper;
  /** The current one; `DIR` in what is printed, as it has another name in every run. */
  directory: string;
  over?: Partial<ShortIo>;
  /** Other answers than the mapper's. */
  daemon?: object;
}

export async function call(argv: readonly string[], { dm, directory, over = {}, daemon = {} }: Called) {
  const result = { status: 0, stdout: '', stderr: '' };
  const control = async () =>
    ({ ...dm, daemon: async () => ({}), ...daemon }) as unknown as Awaited<ReturnType<ShortIo['control']>>;
  const io: ShortIo = {
    stdout: { write: (text) => void (result.stdout += text) },
    stderr: { write: (text) => void (result.stderr += text) },
    stdin: async () => '',
    env: { DMKIT_DIR: join(directory, 'run'), DMKIT_STATE: join(directory, 'state') },
    cwd: directory,
    control,
    existing: control,
    ...over,
  };
  result.status = await run('dmkit', argv, io);
  result.stdout = result.stdout.replaceAll(directory, 'DIR');
  result.stderr = result.stderr.replaceAll(directory, 'DIR');
  return result;
}
