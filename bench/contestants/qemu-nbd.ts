import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { CHUNK, type Contestant, nbd, start } from './contestant.ts';

export const qemuNbd: Contestant = {
  name: 'qemu-nbd + qcow2',
  describe: `qemu-nbd + qcow2: an overlay with ${CHUNK / 1024} KiB clusters`,
  copiesOnWrite: true,
  version: () => execFileSync('qemu-nbd', ['--version'], { encoding: 'utf8' }).split('\n')[0].trim(),
  serve(image, folder) {
    const socket = join(folder, 's');
    const file = join(folder, 'overlay.qcow2');
    const options = ['-f', 'qcow2', '-F', 'raw', '-b', image, '-o', `cluster_size=${CHUNK}`];
    execFileSync('qemu-img', ['create', '-q', ...options, file]);
    const args = ['--socket', socket, '--format', 'qcow2', '--persistent', '--shared', '0', file];
    return start(socket, [nbd(socket)], 'qemu-nbd', args);
  },
};
