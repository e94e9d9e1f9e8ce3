/** dmkit without its daemon: a snapshot and its origin as two exports. `dmkit-server.js IMAGE COW SOCKET` */
import { closeSync, ftruncateSync, openSync, statSync } from 'node:fs';
import { Disks } from '../../src/device/open.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { NbdServer } from '../../src/services/nbd/server.ts';
import { SECTOR } from '../../src/units.ts';
import { CHUNK } from './contestant.ts';

const [image, cow, socket] = process.argv.slice(2);
const size = statSync(image).size;
const sectors = size / SECTOR;
const chunks = size / CHUNK;
// A header, the areas and every chunk once: such a store never overflows.
const file = openSync(cow, 'w');
ftruncateSync(file, CHUNK * (2 + chunks + Math.ceil(chunks / (CHUNK / 16))));
closeSync(file);

const mapper = new Mapper({ opener: new Disks() });
const add = async (name: string, type: string, args: string) => {
  await mapper.create(name);
  await mapper.load({ name }, [{ start: 0, length: sectors, type, args }]);
  await mapper.resume({ name });
};
await add('snapshot', 'snapshot', `${image} ${cow} P ${CHUNK / SECTOR}`);
await add('origin', 'snapshot-origin', image);

const server = new NbdServer({
  list: async () => (await mapper.list()).map(({ name }) => ({ name })),
  async open(name) {
    const { device, close } = mapper.open({ name });
    return { device, readOnly: false, close };
  },
});
process.once('SIGTERM', async () => {
  await server.stop();
  await mapper.removeAll();
});
await server.listenUnix(socket);
