/** dmkit without its daemon: `dmkit-server.js SOCKET 'NAME START LENGTH TARGET ARGUMENT...'...`, each an export. */
import { Disks } from '../../src/device/open.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { NbdServer } from '../../src/services/nbd/server.ts';

const [socket, ...tables] = process.argv.slice(2);
const mapper = new Mapper({ opener: new Disks() });
for (const table of tables) {
  const [name, start, length, type, ...args] = table.split(' ');
  await mapper.create(name);
  await mapper.load({ name }, [{ start: Number(start), length: Number(length), type, args: args.join(' ') }]);
  await mapper.resume({ name });
}

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
