import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { CHUNK, type Contestant, start } from './contestant.ts';

export const qemuNbd: Contestant = {
  name: 'qemu-nbd',
  describe: (side) =>
    side === 'snapshot' ? `qcow2 overlay, ${CHUNK / 1024} KiB clusters` : 'the raw image; protects no snapshot',
  version: () => execFileSync('qemu-nbd', ['--version'], { encoding: 'utf8' }).split('\n')[0].split(' ')[1],
  async serve(side, image, folder) {
    const socket = join(folder, 's');
    let [format, file] = ['raw', image];
    if (side === 'snapshot') {
      [format, file] = ['qcow2', join(folder, 'overlay.qcow2')];
      const options = ['-f', format, '-F', 'raw', '-b', image, '-o', `cluster_size=${CHUNK}`];
      execFileSync('qemu-img', ['create', '-q', ...options, file]);
    }
    const args = ['--socket', socket, '--format', format, '--persistent', '--shared', '4', '--discard', 'unmap', file];
    return start(socket, `nbd+unix:///?socket=${socket}`, 'qemu-nbd', args);
  },
};
