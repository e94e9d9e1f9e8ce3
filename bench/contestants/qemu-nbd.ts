import { execFileSync } from 'node:child_process';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { CHUNK, type Contestant, nbd, start } from './contestant.ts';

const version = () => execFileSync('qemu-nbd', ['--version'], { encoding: 'utf8' }).split('\n')[0].trim();

function serve(folder: string, file: string) {
  const socket = join(folder, 's');
  const args = ['--socket', socket, '--format', 'qcow2', '--persistent', '--shared', '0', file];
  return start(socket, [nbd(socket)], 'qemu-nbd', args);
}

const NEW = ['create', '-q', '-f', 'qcow2', '-o', `cluster_size=${CHUNK}`];

export function createOverlay(file: string, below: { path: string; format: 'raw' | 'qcow2' }): void {
  execFileSync('qemu-img', [...NEW, '-F', below.format, '-b', below.path, file]);
}

export const qemuNbd: Contestant = {
  name: 'qemu-nbd + qcow2',
  describe: `qemu-nbd + qcow2: an overlay with ${CHUNK / 1024} KiB clusters`,
  copiesOnWrite: true,
  version,
  async serve(image, folder) {
    const file = join(folder, 'overlay.qcow2');
    createOverlay(file, { path: image, format: 'raw' });
    return serve(folder, file);
  },
};

/** No image below. */
export const qemuAlone: Contestant = {
  ...qemuNbd,
  describe: 'qemu-nbd + qcow2 without an image: a new file, without preallocation',
  async serve(image, folder) {
    const file = join(folder, 'new.qcow2');
    execFileSync('qemu-img', [...NEW, file, String(statSync(image).size)]);
    return serve(folder, file);
  },
};

/** A file that holds the image, and has a snapshot: all clusters are shared with it. */
export const qemuSnapshot: Contestant = {
  ...qemuNbd,
  describe: 'qemu-nbd + qcow2, snapshot: a file that holds all of the image, after `qemu-img snapshot -c`',
  async serve(image, folder) {
    const file = join(folder, 'full.qcow2');
    const options = ['-f', 'raw', '-O', 'qcow2', '-o', `cluster_size=${CHUNK}`];
    execFileSync('qemu-img', ['convert', ...options, image, file]);
    execFileSync('qemu-img', ['snapshot', '-c', 'before', file]);
    return serve(folder, file);
  },
};

/** So many overlays one over the other. Each holds as many chunks. */
export const qemuChain = (depth: number): Contestant => ({
  ...qemuNbd,
  name: `qemu-nbd + qcow2, depth ${depth}`,
  describe: 'qemu-nbd + qcow2, depth N: N overlays, one over the other, the first over the image',
  async serve(image, folder) {
    const chunks = statSync(image).size / CHUNK;
    const file = (level: number) => join(folder, `level${level}.qcow2`);
    for (let level = 1; level <= depth; level++) {
      const below = level === 1 ? image : file(level - 1);
      createOverlay(file(level), { path: below, format: level === 1 ? 'raw' : 'qcow2' });
      const own = Array.from({ length: chunks }, (_, chunk) => chunk).filter((chunk) => chunk % (depth + 1) === level);
      const input = own.map((chunk) => `write -q -P ${level} ${chunk * CHUNK} ${CHUNK}\n`).join('');
      execFileSync('qemu-io', ['-f', 'qcow2', file(level)], { input, stdio: ['pipe', 'ignore', 'inherit'] });
    }
    return serve(folder, file(depth));
  },
});
