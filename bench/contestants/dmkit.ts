import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { CHUNK, type Contestant, start } from './contestant.ts';

const SERVER = join(import.meta.dirname, 'dmkit-server.js');

export const dmkit: Contestant = {
  name: 'dmkit',
  describe: (side) =>
    side === 'snapshot'
      ? `snapshot target, persistent, ${CHUNK / 1024} KiB chunks`
      : 'snapshot-origin target with one such snapshot, which keeps the old content of every chunk written',
  version: () => JSON.parse(readFileSync('package.json', 'utf8')).version,
  serve(side, image, folder) {
    const socket = join(folder, 's');
    const args = [SERVER, image, join(folder, 'cow.img'), socket];
    return start(socket, `nbd+unix:///${side}?socket=${socket}`, process.execPath, args);
  },
};
