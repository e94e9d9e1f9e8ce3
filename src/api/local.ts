/** A mapper in this process, without a daemon. Loaded when it is first asked for. */
import { resolve } from 'node:path';
import { printNbdUri } from '../formats/nbd/uri.ts';
import type { Control } from '../mapper/control.ts';
import { assemble } from '../services/assembly.ts';
import { nbdUri } from '../services/daemon/directories.ts';
import { MapperExports } from '../services/daemon/mapper-exports.ts';
import { watchEvents } from '../services/events/event.ts';
import { inspectFile } from '../services/fork/inspect.ts';
import { NbdServer } from '../services/nbd/server.ts';
import type { DeviceMapper, OpenOptions } from './device-mapper.ts';
import { diskOf } from './disk.ts';

/** Calls that go straight to the mapper. */
const DIRECT = [
  'version',
  'targets',
  'list',
  'info',
  'create',
  'load',
  'clear',
  'suspend',
  'resume',
  'remove',
  'removeAll',
  'rename',
  'setUuid',
  'message',
  'table',
  'status',
  'measure',
  'wait',
  'setGeometry',
] as const satisfies (keyof Control)[];

export function openLocal({ major }: OpenOptions): DeviceMapper {
  const servers: NbdServer[] = [];
  let socket: string | undefined;
  const uri = (name: string) => (socket === undefined ? undefined : nbdUri(socket, name));
  const { mapper, forks, monitor } = assemble({ major, uri });
  const control = Object.fromEntries(DIRECT.map((call) => [call, mapper[call].bind(mapper)])) as unknown as Control;
  return {
    ...control,
    fork: (image, name, options) => forks.fork(image, name, options),
    revert: (ref) => forks.revert(ref),
    createPool: (data, options) => forks.createPool(data, options),
    openPool: (data, options) => forks.openPool(data, options),
    extendPool: (name, size) => forks.extendPool(name, size),
    createVolume: (pool, name, source) => forks.createVolume(pool, name, source),
    volumes: () => forks.volumes(),
    diff: (name, options) => forks.diff(name, options),
    drop: (name, options) => forks.drop(name, options),
    merge: (name, options) => forks.merge(name, options),
    mergeProgress: (name, options, signal) => forks.mergeProgress(name, options, signal),
    events: (after, signal) => monitor.events(after, signal),
    watch: (options) => watchEvents(monitor, options),
    inspect: inspectFile,

    async device(name) {
      const open = mapper.open({ name });
      return diskOf(open.device, () => open.close());
    },

    async serve({ log, tls, ...where }) {
      const server = new NbdServer(new MapperExports(mapper), { log, tls });
      if ('socket' in where) {
        const path = resolve(where.socket);
        await server.listenUnix(path);
        servers.push(server);
        socket ??= path;
        return { uri: (name) => nbdUri(path, name) };
      }
      const { host = '127.0.0.1' } = where;
      const port = await server.listenTcp({ host, port: where.port });
      servers.push(server);
      return { port, uri: (name) => printNbdUri({ kind: 'tcp', host, port, exportName: name, tls: tls && {} }) };
    },

    async close() {
      await Promise.all(servers.map((server) => server.stop()));
      await forks.stop();
      monitor.close();
      await mapper.close();
    },
  };
}
