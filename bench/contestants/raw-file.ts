import { copyFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Contestant } from './contestant.ts';

/** What the filesystem itself can do: as many threads as there are connections, each with one write and `fdatasync` at a time. */
export const rawFile: Contestant = {
  name: 'write + fdatasync',
  describe:
    'write + fdatasync: no server; fio writes to a copy of the image on the same filesystem, one thread for each connection',
  copiesOnWrite: false,
  async serve(image, folder) {
    const path = join(folder, 'raw.img');
    copyFileSync(image, path);
    return {
      volumes: [['--ioengine=psync', `--filename=${path}`, `--filesize=${statSync(path).size}`]],
      flush: 'fdatasync',
      stop: async () => {},
    };
  },
};
