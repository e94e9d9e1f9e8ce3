import { closeSync, copyFileSync, ftruncateSync, openSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { SECTOR } from '../../src/units.ts';
import { CHUNK, type Contestant, nbd, start } from './contestant.ts';

const SERVER = join(import.meta.dirname, 'dmkit-server.js');

/** As in the daemon. */
const THREADS = { UV_THREADPOOL_SIZE: '64' };

/** A server with these devices. */
export const serveTables = (socket: string, volumes: string[][], words: string[]) =>
  start(socket, volumes, process.execPath, [SERVER, socket, ...words], THREADS);

/** The target and arguments of a table line over all of the image. `cow` makes a store, `copy` an image that may be written. */
type Tables = (image: string, cow: () => string, copy: () => string) => Record<string, string>;

/** dmkit with these devices, of which `volumes` are measured, and `others` may be busy meanwhile. */
function tables(name: string, describe: string, volumes: string[], lines: Tables, others: string[] = []): Contestant {
  return {
    name,
    describe,
    copiesOnWrite: true,
    async serve(image, folder) {
      const { size } = statSync(image);
      const socket = join(folder, 's');
      let stores = 0;
      const cow = () => sparse(join(folder, `${stores++}.cow`), size);
      const copy = () => {
        copyFileSync(image, join(folder, 'image.raw'));
        return join(folder, 'image.raw');
      };
      const words = Object.entries(lines(image, cow, copy)).map(([name, line]) => `${name} 0 ${size / SECTOR} ${line}`);
      const clients = (names: string[]) => names.map((name) => nbd(socket, name));
      const served = await serveTables(socket, clients(volumes), words);
      return { ...served, others: clients(others) };
    },
  };
}

/** A header, the areas and every chunk once: such a store never overflows. A file takes only the space that is used. */
function sparse(path: string, size: number): string {
  const chunks = size / CHUNK;
  const file = openSync(path, 'w');
  ftruncateSync(file, CHUNK * (2 + chunks + Math.ceil(chunks / (CHUNK / 16))));
  closeSync(file);
  return path;
}

const CHUNK_SECTORS = CHUNK / SECTOR;
const count = (n: number, noun: string) => `${n} ${noun}${n === 1 ? '' : 's'}`;
const each = (n: number, name: string) => Array.from({ length: n }, (_, i) => `${name}${i}`);

/** So many snapshots of the image. */
export const snapshots = (n: number): Contestant =>
  tables(
    n === 1 ? 'dmkit' : count(n, 'volume'),
    `dmkit: snapshot target, persistent, ${CHUNK / 1024} KiB chunks`,
    each(n, 'snapshot'),
    (image, cow) =>
      Object.fromEntries(each(n, 'snapshot').map((name) => [name, `snapshot ${image} ${cow()} P ${CHUNK_SECTORS}`])),
  );

export const dmkit = snapshots(1);

/** The origin of so many snapshots. */
export const origin = (n: number): Contestant =>
  tables(
    count(n, 'snapshot'),
    "origin: dmkit's snapshot-origin target; each snapshot keeps the old content of every chunk written",
    ['origin'],
    (_, cow, copy) => {
      const image = copy();
      const lines = each(n, 'snapshot').map((name) => [name, `snapshot ${image} ${cow()} P ${CHUNK_SECTORS}`]);
      return { ...Object.fromEntries(lines), origin: `snapshot-origin ${image}` };
    },
  );

/** A snapshot of the image, and one of a disk that takes `delayMs` for everything. */
export const besideSlow = (delayMs: number): Contestant =>
  tables(
    'fast beside slow',
    `beside a slow one: a snapshot of dmkit in the same process as one whose origin is a delay target of ${delayMs} ms`,
    ['fast'],
    (image, cow, copy) => ({
      'slow-disk': `delay ${copy()} 0 ${delayMs}`,
      fast: `snapshot ${image} ${cow()} P ${CHUNK_SECTORS}`,
      slow: `snapshot slow-disk ${cow()} P ${CHUNK_SECTORS}`,
    }),
    ['slow'],
  );
