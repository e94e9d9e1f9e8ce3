/** The NBD server: listeners, connections, and what each connection may cost. */
import { chmod, mkdtemp, rename, rm } from 'node:fs/promises';
import { type AddressInfo, BlockList, connect, createServer, isIPv6, type Server, type Socket } from 'node:net';
import { dirname, join } from 'node:path';
import { DmError, fromSystem } from '../../errors.ts';
import { NBD_PORT } from '../../formats/nbd/constants.ts';
import { printable } from '../../formats/nbd/handshake.ts';
import { SOCKET_PATH_MAX } from '../../formats/nbd/uri.ts';
import { detach } from './adopt.ts';
import type { Exports, Served } from './exports.ts';
import { type ListenerTls, type Negotiated, negotiate, type Session } from './handshake.ts';
import { LIMITS, type Limits } from './limits.ts';
import { Serving } from './serving.ts';
import { checkTls, type TlsOptions } from './tls.ts';

export interface NbdServerOptions {
  /** One line for each connection that broke the protocol or was refused, and for each failed handshake. */
  log?: (line: string) => void;
  limits?: Partial<Limits>;
  /** Without it there is no TLS. */
  tls?: TlsOptions;
}

interface Connection {
  readonly socket: Socket;
  /** In the transmission phase. */
  served: Served | undefined;
  readonly done: Promise<void>;
}

export class NbdServer {
  readonly #exports: Exports;
  readonly #log: (line: string) => void;
  readonly #limits: Limits;
  readonly #tls: TlsOptions | undefined;
  readonly #serving: Serving;
  readonly #connections = new Set<Connection>();
  readonly #listeners = new Map<Server, string | undefined>();
  #accepted = 0;
  #stopped = false;

  constructor(exports: Exports, { log = () => {}, limits = {}, tls }: NbdServerOptions = {}) {
    this.#exports = exports;
    this.#log = log;
    this.#limits = { ...LIMITS, ...limits };
    this.#tls = tls;
    this.#serving = new Serving(this.#limits);
  }

  /** Connections at this moment. */
  get connectionCount(): number {
    return this.#connections.size;
  }

  /** Bytes that payloads and replies of all connections take at this moment, but of those that are served elsewhere. */
  get heldBytes(): number {
    return this.#serving.heldBytes;
  }

  /** See `Serving`. */
  share(threads: number): void {
    this.#serving.share(threads);
  }

  /**
   * Listens on a Unix socket that only its owner may use (mode 0600). A socket left behind by a server that died is
   * replaced; NBD_LISTEN if a living one has it.
   */
  async listenUnix(path: string): Promise<void> {
    const attempted = `Cannot listen on ${path}`;
    const length = Buffer.byteLength(path);
    if (length > SOCKET_PATH_MAX) {
      throw new DmError(
        'NBD_LISTEN',
        'EINVAL',
        `${attempted}: the path has ${length} bytes, and ${SOCKET_PATH_MAX} is the most a socket can have`,
        { hint: 'choose a directory with a shorter name' },
      );
    }
    if (await answers(path)) {
      throw new DmError('NBD_LISTEN', 'EBUSY', `${attempted}: another server listens there`, {
        hint: 'stop it first, or choose another path',
      });
    }
    // Bound where nobody else can reach it, then moved: at no moment can another user connect. Changing the umask would
    // do too, but it belongs to the whole process and a worker thread may not touch it.
    let nursery: string | undefined;
    try {
      // In the same directory, hence on the same file system; `join` would drop the slash.
      nursery = await mkdtemp(`${dirname(path)}/`);
      const born = join(nursery, 's');
      if (Buffer.byteLength(born) > SOCKET_PATH_MAX) throw new Error('the path is too long for a socket');
      const server = await this.#listen(
        { path: born },
        attempted,
        this.#tls && { options: this.#tls, required: false },
      );
      await chmod(born, 0o600);
      await rename(born, path);
      this.#listeners.set(server, path);
    } catch (error) {
      throw fromSystem(error, attempted);
    } finally {
      if (nursery) await rm(nursery, { recursive: true, force: true });
    }
  }

  /**
   * Listens on TCP, loopback unless told otherwise. Without TLS there is no access control, and the log says so where other
   * machines can connect. Resolves with the port. Rejects with NBD_TLS when the certificates cannot be used.
   */
  async listenTcp({ host = '127.0.0.1', port = NBD_PORT }: { host?: string; port?: number } = {}): Promise<number> {
    const tls = this.#tls && { options: this.#tls, required: this.#tls.required ?? true };
    const server = await this.#listen({ host, port }, `Cannot listen on ${host} port ${port}`, tls);
    this.#listeners.set(server, undefined);
    const address = server.address() as AddressInfo;
    if (!tls?.required && !isLoopback(address.address)) {
      this.#log(
        `NBD on ${address.address} port ${address.port} is served without TLS: whoever reaches it can read and write every export`,
      );
    }
    return address.port;
  }

  /**
   * Closes the listeners, answers the requests in flight and ends the connections. A connection whose client does not
   * take its replies or leave within `drainMs` is cut off. Resolves when every device operation has completed and every
   * export is closed.
   */
  async stop({ drainMs = 5000 }: { drainMs?: number } = {}): Promise<void> {
    this.#stopped = true;
    const closed = [...this.#listeners].map(async ([server, path]) => {
      if (path) await rm(path, { force: true });
      await new Promise<void>((resolve) => server.close(() => resolve()));
    });
    this.#listeners.clear();
    const connections = [...this.#connections];
    for (const { served, socket } of connections) {
      if (served) served.drain();
      else socket.destroy();
    }
    const cut = setTimeout(() => {
      for (const { served, socket } of connections) {
        served?.cut();
        socket.destroy();
      }
    }, drainMs);
    await Promise.all([...closed, ...connections.map(({ done }) => done)]);
    clearTimeout(cut);
  }

  async #listen(
    where: { path: string } | { host: string; port: number },
    attempted: string,
    tls: ListenerTls | undefined,
  ): Promise<Server> {
    if (tls) await checkTls(tls.options);
    // Half-open: a client may shut down its side behind its last request and still be answered.
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (socket) =>
      this.#accept(socket, tls),
    );
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => reject(fromSystem(error, attempted)));
      server.listen({ ...where, backlog: 511 }, resolve);
    });
    server.on('error', (error) => this.#log(`NBD listener: ${error.message}`));
    return server;
  }

  #accept(socket: Socket, tls: ListenerTls | undefined): void {
    const number = ++this.#accepted;
    const log = (line: string) => this.#log(`NBD connection ${number}: ${printable(Buffer.from(line))}`);
    // A reset connection ends with 'close' too; that is where it is handled.
    socket.on('error', () => {});
    if (this.#stopped || this.#connections.size >= this.#limits.connections) {
      if (!this.#stopped) log(`refused, ${this.#limits.connections} connections are open`);
      socket.destroy();
      return;
    }
    const connection: Connection = { socket, served: undefined, done: Promise.resolve() };
    this.#connections.add(connection);
    Object.assign(connection, {
      done: this.#serve(socket, connection, tls, log)
        .catch((error) => log(error instanceof DmError ? error.message : String(error?.stack ?? error)))
        .finally(() => {
          socket.destroy();
          this.#connections.delete(connection);
        }),
    });
  }

  async #serve(
    socket: Socket,
    connection: Connection,
    tls: ListenerTls | undefined,
    log: (line: string) => void,
  ): Promise<void> {
    const tooSlow = setTimeout(() => {
      log(`the handshake took longer than ${this.#limits.handshakeMs} ms`);
      socket.destroy();
    }, this.#limits.handshakeMs);
    let negotiated: Negotiated;
    try {
      negotiated = await negotiate(socket, this.#exports, this.#limits, tls);
    } finally {
      clearTimeout(tooSlow);
    }
    const { stream, session, rest } = negotiated;
    if (!session) {
      // The last reply is sent before the socket goes.
      if (!stream.destroyed) await new Promise<void>((resolve) => stream.end(() => resolve()).once('close', resolve));
      return;
    }
    const { open } = session;
    try {
      const served = open.serve?.(stream, session, rest, log) ?? this.#begin(stream, session, rest, log);
      connection.served = served;
      if (this.#stopped) served.drain();
      await served.done;
    } finally {
      await open.close();
    }
  }

  #begin(stream: Socket, session: Session, rest: Buffer, log: (line: string) => void): Served {
    const detached = session.secure ? undefined : detach(stream);
    const transmission = this.#serving.transmission(detached?.fd ?? stream, session, log);
    transmission.start(detached ? Buffer.concat([rest, detached.rest]) : rest);
    return transmission;
  }
}

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet('127.0.0.0', 8);
LOOPBACK.addAddress('::1', 'ipv6');

/** Mapped IPv4 addresses included. */
const isLoopback = (address: string): boolean => LOOPBACK.check(address, isIPv6(address) ? 'ipv6' : 'ipv4');

/** True if something accepts connections there. */
function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(path);
    probe.once('connect', () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
}
