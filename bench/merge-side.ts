/**
 * dmkit's side of the merge benchmark, without its daemon: `merge-side.js TASK IMAGE COW CHUNK [SOCKET]`.
 *
 *     serve    the snapshot and its origin as two NBD exports; whoever started it says `merge` to make the origin merge
 *              the snapshot meanwhile, and `progress` to hear how many sectors of data are left
 *     merge    merges, and ends
 */
import { closeSync, existsSync, ftruncateSync, openSync, statSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { Disks } from '../src/device/open.ts';
import { Mapper } from '../src/mapper/mapper.ts';
import { NbdServer } from '../src/services/nbd/server.ts';
import { SECTOR } from '../src/units.ts';

const [task, image, cow, chunkWord, socket] = process.argv.slice(2);
const chunk = Number(chunkWord);
const size = statSync(image).size;
const mapper = new Mapper({ opener: new Disks() });
const lines = {
  snapshot: `${image} ${cow} P ${chunk / SECTOR}`,
  'snapshot-merge': `${image} ${cow} P ${chunk / SECTOR}`,
  'snapshot-origin': image,
};

async function load(name: string, type: keyof typeof lines): Promise<void> {
  await mapper.load({ name }, [{ start: 0, length: size / SECTOR, type, args: lines[type] }]);
}

async function create(name: string, type: keyof typeof lines): Promise<void> {
  await mapper.create(name);
  await load(name, type);
  await mapper.resume({ name });
}

/** Sectors of data in the store. */
async function left(): Promise<number> {
  const [{ text }] = await mapper.status({ name: 'origin' });
  const [, allocated, metadata] = /^(\d+)\/\d+ (\d+)$/.exec(text) ?? [];
  if (allocated === undefined) throw new Error(`The merge cannot end: ${text}`);
  return Number(allocated) - Number(metadata);
}

async function serve(): Promise<void> {
  if (!existsSync(cow)) {
    const chunks = size / chunk;
    const file = openSync(cow, 'w');
    // A header, the areas and every chunk once: such a store never overflows. A file takes only the space that is used.
    ftruncateSync(file, chunk * (2 + chunks + Math.ceil(chunks / (chunk / 16))));
    closeSync(file);
  }
  await create('snapshot', 'snapshot');
  await create('origin', 'snapshot-origin');
  const server = new NbdServer({
    list: async () => (await mapper.list()).map(({ name }) => ({ name })),
    async open(name) {
      const { device, close } = mapper.open({ name });
      return { device, readOnly: false, close };
    },
  });
  process.on('message', async (word) => {
    if (word === 'merge') {
      await load('origin', 'snapshot-merge');
      await mapper.suspend({ name: 'origin' });
      await mapper.suspend({ name: 'snapshot' });
      await mapper.resume({ name: 'origin' });
    }
    process.send!(word === 'merge' ? 0 : await left());
  });
  process.once('SIGTERM', async () => {
    await server.stop();
    await mapper.removeAll();
    process.disconnect?.();
  });
  await server.listenUnix(socket);
}

if (task === 'serve') await serve();
else {
  await create('origin', 'snapshot-merge');
  while ((await left()) > 0) await pause(10);
  await mapper.removeAll();
}
