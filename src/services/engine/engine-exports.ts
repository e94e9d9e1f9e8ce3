/** The exports of all engines, for the one server that accepts connections and makes the handshake. */
import type { Socket } from 'node:net';
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import type { DeviceInfo } from '../../mapper/control.ts';
import { type Bytes, bytes } from '../../units.ts';
import type { MapperExports } from '../daemon/mapper-exports.ts';
import { detach } from '../nbd/adopt.ts';
import type { ExportEntry, Exports, OpenExport, Served } from '../nbd/exports.ts';
import type { Session } from '../nbd/handshake.ts';
import type { ExportFacts, HandedOver } from './engine-thread.ts';
import type { Engines } from './engines.ts';
import type { Registry } from './registry.ts';
import { RemoteEngine } from './remote-engine.ts';

export class EngineExports implements Exports {
  readonly #engines: Engines;
  readonly #registry: Registry;
  readonly #local: MapperExports;

  /** `local`: the exports of the engine on this thread. */
  constructor(engines: Engines, registry: Registry, local: MapperExports) {
    this.#engines = engines;
    this.#registry = registry;
    this.#local = local;
  }

  async list(): Promise<ExportEntry[]> {
    const live = (await this.#engines.list<DeviceInfo>('list', [])).filter((info) => info.live);
    return live.map(({ name, uuid }) => ({ name, description: uuid || undefined }));
  }

  /** Between the look for its engine and the open nothing moves. */
  open(name: string): Promise<OpenExport> {
    return this.#engines.during(async () => {
      const engine = this.#engines.of({ name });
      const placed = this.#registry.find({ name });
      const open = engine instanceof RemoteEngine ? await openRemote(engine, name) : await this.#local.open(name);
      if (placed) placed.connections++;
      return {
        ...open,
        close: () => {
          if (placed) placed.connections--;
          return open.close();
        },
      };
    });
  }
}

async function openRemote(engine: RemoteEngine, name: string): Promise<OpenExport> {
  const facts = await engine.call<ExportFacts>('openExport', [name]);
  const { number, readOnly, description, hasOrigin } = facts;
  return {
    device: new Elsewhere(name, facts),
    readOnly,
    description,
    changed: hasOrigin ? () => [] : undefined,
    close: () => engine.call('closeExport', [number]),
    serve: (stream, session, rest, log) => handOver(engine, number, stream, session, rest, log),
  };
}

/** The engine gets a descriptor of its own for the socket; this one is closed, and what was received with it goes along. */
function handOver(
  engine: RemoteEngine,
  number: number,
  stream: Socket,
  { name, structured, contexts, secure }: Session,
  rest: Buffer,
  log: (line: string) => void,
): Served {
  const detached = detach(stream);
  if (!detached && !stream.destroyed) log('cannot be given to the thread of its device');
  if (!detached) return { drain() {}, cut() {}, done: Promise.resolve() };
  const handed: HandedOver = {
    fd: detached.fd,
    rest: Buffer.concat([rest, detached.rest]),
    session: { name, structured, contexts, secure },
  };
  const served = engine.call<void>('serve', [number, handed]).catch((error: Error) => log(error.message));
  return {
    drain: () => engine.peer.tell('drain', [number]),
    cut: () => engine.peer.tell('cut', [number]),
    done: engine.logging(number, log, served),
  };
}

/** What the handshake needs to know of a device. */
class Elsewhere implements BlockDevice {
  readonly name: string;
  readonly size: Bytes;
  readonly blockSize: number;
  readonly readOnly: boolean;
  readonly canDiscard: boolean;

  constructor(name: string, { size, blockSize, readOnly, canDiscard }: ExportFacts) {
    this.name = name;
    this.size = bytes(size);
    this.blockSize = blockSize;
    this.readOnly = readOnly;
    this.canDiscard = canDiscard;
  }

  read = elsewhere;
  write = elsewhere;
  flush = elsewhere;
  discard = elsewhere;
  writeZeroes = elsewhere;
  extents = elsewhere;
  async close(): Promise<void> {}
}

function elsewhere(): never {
  throw new DmError('INTERNAL', 'EIO', 'The device is on another thread');
}
