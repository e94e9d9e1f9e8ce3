import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { CHUNK, type Contestant, nbd, start } from './contestant.ts';

const version = () => execFileSync('nbdkit', ['--version'], { encoding: 'utf8' }).trim();

const serve = (folder: string, args: string[]) => {
  const socket = join(folder, 's');
  return start(socket, [nbd(socket)], 'nbdkit', ['--foreground', '--unix', socket, ...args], { TMPDIR: folder });
};

export const nbdkitCow: Contestant = {
  name: 'nbdkit cow',
  describe: `nbdkit cow: the cow filter over the file plugin, ${CHUNK / 1024} KiB blocks; a flush makes nothing durable, its store is lost when it ends`,
  copiesOnWrite: true,
  version,
  serve: (image, folder) => serve(folder, ['--filter=cow', 'file', image, `cow-block-size=${CHUNK}`]),
};

/** No copy-on-write at all: the image itself. Only to be read, as all contestants share it. */
export const nbdkitFile: Contestant = {
  name: 'nbdkit file',
  describe: 'nbdkit file: the file plugin on the image itself: no copy-on-write at all',
  copiesOnWrite: false,
  version,
  serve: (image, folder) => serve(folder, ['--readonly', 'file', image]),
};
