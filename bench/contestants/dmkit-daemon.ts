import { execFile, spawn } from 'node:child_process';
import { copyFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { CHUNK, type Contestant, nbd, serving } from './contestant.ts';

const PROGRAM = resolve('bin/dmkit');

/** Forks of so many images, served by a daemon that may put them on so many threads beside its main one. */
export const forks = (volumes: number, engines: number): Contestant => ({
  name: `${volumes === 1 ? '1 volume' : `${volumes} volumes`}, ${engines === 0 ? 'main thread only' : `${engines} engines`}`,
  describe: 'volumes that share nothing: dmkit with its daemon, forks of images of their own',
  copiesOnWrite: true,
  async serve(image, folder) {
    const run = join(folder, 'run');
    const environment = { DMKIT_DIR: run, DMKIT_STATE: join(folder, 'state'), DMKIT_ENGINES: String(engines) };
    const env = { ...process.env, ...environment };
    const child = spawn(process.execPath, [PROGRAM, 'up', '--foreground'], {
      stdio: ['ignore', 'ignore', 'pipe'],
      env,
    });
    const socket = join(run, 'nbd.sock');
    const server = await serving(child, `${PROGRAM} up`, socket);
    const names = Array.from({ length: volumes }, (_, i) => `volume${i}`);
    for (const name of names) {
      const copy = join(folder, `${name}.raw`);
      copyFileSync(image, copy);
      const args = [PROGRAM, 'fork', copy, name, '--chunk', String(CHUNK), '--cow', join(folder, `${name}.cow`)];
      await promisify(execFile)(process.execPath, args, { env });
    }
    return { ...server, volumes: names.map((name) => nbd(socket, name)), flush: 'fsync' };
  },
});
