/**
 * dmkit without its daemon: `dmkit-server.js SOCKET WORDS...`, tables, each of which is an export, and messages. Further words may
 * come from who has forked it, who is told how many milliseconds they took.
 */
import { Disks } from '../../src/device/open.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { NbdServer } from '../../src/services/nbd/server.ts';
import { carryOut } from './thin-pool.ts';

const [socket, ...tables] = process.argv.slice(2);
const mapper = new Mapper({ opener: new Disks() });
for (const words of tables) await carryOut(mapper, words);

const server = new NbdServer({
  list: async () => (await mapper.list()).map(({ name }) => ({ name })),
  async open(name) {
    const { device, close } = mapper.open({ name });
    return { device, readOnly: false, close };
  },
});
process.on('message', async (words: string) => {
  const from = performance.now();
  await carryOut(mapper, words);
  process.send!(performance.now() - from);
});
process.once('SIGTERM', async () => {
  await server.stop();
  await mapper.removeAll();
  process.disconnect?.();
});
await server.listenUnix(socket);
