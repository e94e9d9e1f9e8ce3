/**
 * The control socket: HTTP and JSON over a Unix socket that only its owner can open. A request that is malformed, too
 * large, cut off or slow costs itself and nothing else.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { addAbortSignal } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { DmError } from '../../errors.ts';
import { argumentsOf, type CallName, isCall } from './calls.ts';
import { listenPrivately, unlinkSocket } from './private-socket.ts';
import { httpStatus, toWire, type WireError } from './wire-error.ts';

/** A table of 100,000 lines has about 5 MB. */
const BODY_MAX = 64 * 1024 * 1024;

/**
 * How long a stop waits for a client that has connected and says nothing, or does not read its answer. It waits with the directory given
 * up, so that only such a client could mind; one that is merely slow must not hear that the daemon went away.
 */
const PATIENCE_MS = 10_000;

export const stops = () =>
  new DmError('DAEMON_STOPS', 'ESHUTDOWN', 'The daemon is stopping', {
    hint: 'repeat the command: it starts the daemon again when this one has ended',
  });

/** Takes the arguments of a call in order. `signal` fires when the client has gone, or sends no more, or the server closes. */
export type Handler = (args: unknown[], signal: AbortSignal) => Promise<unknown>;
export type Handlers = Record<CallName, Handler>;

export interface ControlServerOptions {
  /** What clients are not told: stacks of our own faults. */
  log?: (line: string) => void;
  bodyMax?: number;
}

export class ControlServer {
  readonly #http: Server;
  readonly #handlers: Handlers;
  readonly #log: (line: string) => void;
  readonly #bodyMax: number;
  readonly #running = new Set<AbortController>();
  /** Connected, and has asked nothing yet. */
  readonly #silent = new Set<Socket>();
  #path = '';
  #closing = false;
  #idle: (() => void) | undefined;
  #answered: (() => void) | undefined;

  constructor(handlers: Handlers, { log = () => {}, bodyMax = BODY_MAX }: ControlServerOptions = {}) {
    this.#handlers = handlers;
    this.#log = log;
    this.#bodyMax = bodyMax;
    this.#http = createServer({ requestTimeout: 60_000, headersTimeout: 30_000, keepAliveTimeout: 5_000 });
    // Else the end of what a client sends is taken for the client's, and nobody answers. No type has the property.
    Object.assign(this.#http, { httpAllowHalfOpen: true });
    this.#http.on('request', (request, response) => void this.#serve(request, response));
    this.#http.on('connection', (socket: Socket) => {
      this.#silent.add(socket);
      socket.on('close', () => this.#speaks(socket));
    });
    this.#http.on('clientError', (_error, socket) => {
      if (socket.writable) socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n');
      else socket.destroy();
    });
  }

  /** A stale socket at `path` is replaced; whoever calls holds the lock that makes it stale. */
  async listen(path: string): Promise<void> {
    await listenPrivately(this.#http, path);
    this.#path = path;
  }

  /** No more clients find it. From then on the path is no longer this server's. */
  async hide(): Promise<void> {
    const path = this.#path;
    this.#path = '';
    if (path) await unlinkSocket(path);
  }

  /**
   * Carries out no more requests, ends every `wait`, and settles when the last running call has been answered. Who had
   * connected before is told DAEMON_STOPS: a connection that breaks would leave open whether the call was carried out.
   */
  async close(): Promise<void> {
    this.#closing = true;
    await this.hide();
    for (const call of this.#running) call.abort();
    if (this.#running.size > 0) await new Promise<void>((done) => (this.#idle = done));
    // Connections that nobody has accepted would end with the listener. The turn that runs now may be past accepting.
    await turn();
    await turn();
    const impatient = setTimeout(() => this.#answered?.(), PATIENCE_MS);
    if (this.#silent.size > 0) await new Promise<void>((done) => (this.#answered = done));
    clearTimeout(impatient);
    const closed = new Promise<void>((done) => this.#http.close(() => done()));
    const overdue = setTimeout(() => this.#http.closeAllConnections(), PATIENCE_MS);
    await closed;
    clearTimeout(overdue);
  }

  #speaks(socket: Socket): void {
    this.#silent.delete(socket);
    if (this.#silent.size === 0) this.#answered?.();
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const abort = new AbortController();
    this.#running.add(abort);
    const gone = () => abort.abort();
    response.on('close', gone);
    // A client that was killed looks like one that only sends no more: a call that waits ends, and is answered so.
    const { socket } = request;
    this.#speaks(socket);
    socket.on('end', gone);
    try {
      await this.#answer(request, response, abort.signal);
    } catch (error) {
      // Broken off: nothing was called, and nobody waits for an answer.
      if (!request.complete && request.destroyed) return;
      const wire = toWire(error);
      if (wire.code === 'INTERNAL')
        this.#log(`${request.url}: ${error instanceof Error ? (error.stack ?? error.message) : error}`);
      send(response, httpStatus(wire), { error: wire });
    } finally {
      socket.off('end', gone);
      this.#running.delete(abort);
      if (this.#running.size === 0) this.#idle?.();
    }
  }

  async #answer(request: IncomingMessage, response: ServerResponse, signal: AbortSignal): Promise<void> {
    const call = /^\/v1\/([A-Za-z]+)$/.exec(request.url ?? '')?.[1] ?? '';
    // The one thing a browser or `curl` without options can ask for.
    const wanted = request.method === 'GET' && call === 'status' ? 'daemon' : call;
    if (!isCall(wanted)) return refuse(response, 404, `there is no call ${JSON.stringify(request.url)}`);
    if (request.method !== 'POST' && wanted !== 'daemon')
      return refuse(response, 405, `${wanted} is asked for with POST, not ${request.method}`);

    let body: unknown = {};
    if (request.method === 'POST') {
      const bytes = await readBody(request, this.#bodyMax, signal);
      if (bytes === undefined) return refuse(response, 413, `the body has more than ${this.#bodyMax} bytes`);
      try {
        body = bytes.length === 0 ? {} : JSON.parse(bytes.toString('utf8'));
      } catch {
        return refuse(response, 400, 'the body is not JSON');
      }
    }
    if (this.#closing) throw stops();
    const result = await this.#handlers[wanted](argumentsOf(wanted, body), signal);
    send(response, 200, { result: result ?? null });
  }
}

function refuse(response: ServerResponse, status: number, why: string): void {
  const error: WireError = {
    code: 'BAD_REQUEST',
    errno: 'EINVAL',
    message: `Cannot take the request: ${why}`,
    class: 'DmError',
  };
  response.setHeader('Connection', 'close');
  send(response, status, { error });
}

function send(response: ServerResponse, status: number, body: unknown): void {
  if (response.headersSent || response.destroyed) return;
  const bytes = Buffer.from(`${JSON.stringify(body)}\n`);
  response.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': bytes.length });
  response.end(bytes);
}

/** Undefined when there are more than `max` bytes. Rejects when the client goes away half-way, or `signal` fires. */
async function readBody(request: IncomingMessage, max: number, signal: AbortSignal): Promise<Buffer | undefined> {
  addAbortSignal(signal, request);
  const parts: Buffer[] = [];
  let length = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    length += part.length;
    if (length > max) return undefined;
    parts.push(part);
  }
  return Buffer.concat(parts);
}
