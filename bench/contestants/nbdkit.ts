import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { CHUNK, type Contestant, start } from './contestant.ts';

export const nbdkit: Contestant = {
  name: 'nbdkit',
  describe: (side) =>
    side === 'snapshot'
      ? `file plugin with the cow filter, ${CHUNK / 1024} KiB blocks; its store is lost when it ends`
      : 'file plugin; protects no snapshot',
  version: () => execFileSync('nbdkit', ['--version'], { encoding: 'utf8' }).trim().split(' ')[1],
  serve(side, image, folder) {
    const socket = join(folder, 's');
    const filter = side === 'snapshot' ? ['--filter=cow'] : [];
    const block = side === 'snapshot' ? [`cow-block-size=${CHUNK}`] : [];
    const args = ['--foreground', '--unix', socket, ...filter, 'file', image, ...block];
    return start(socket, `nbd+unix:///?socket=${socket}`, 'nbdkit', args, { TMPDIR: folder });
  },
};
