/**
 * The daemon: one mapper, its state on disk, the NBD socket and the control socket.
 *
 *     start   lock, load the state, bring the devices back, serve NBD, and last the control socket: ready
 *     change  the mapper calls back, the state is durable, then the call is answered
 *     end     no new calls, running ones end, connections are drained, devices flushed and closed, sockets removed,
 *             the lock released
 *
 * Killed at any moment, the next start finds the state of the last acknowledged call.
 */
import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { DmError } from '../../errors.ts';
import type { Mapper } from '../../mapper/mapper.ts';
import { assemble } from '../assembly.ts';
import { Attachments } from '../attach/attachments.ts';
import type { Monitor } from '../events/monitor.ts';
import type { Forks } from '../fork/forks.ts';
import { NbdServer } from '../nbd/server.ts';
import { tlsDirectory } from '../nbd/tls.ts';
import { CALLS, type CallName } from './calls.ts';
import { ControlServer, type Handler, type Handlers, stops } from './control-server.ts';
import type { DaemonStatus } from './daemon-control.ts';
import { controlSocket, type Directories, ensurePrivateDirectory, nbdSocket, nbdUri } from './directories.ts';
import { AlreadyRunning, type InstanceLock, lockInstance } from './instance-lock.ts';
import { MapperExports } from './mapper-exports.ts';
import { unlinkSocket } from './private-socket.ts';
import { type State, stateFault } from './state.ts';
import { StateFile } from './state-file.ts';

export interface DaemonOptions extends Directories {
  /** Of the package. */
  version: string;
  /** Serves NBD over TCP as well. */
  nbdTcp?: { host?: string; port?: number };
  /** Directory for NBD over TLS (docs/nbd.md); without it there is no access control over TCP. */
  tlsCertificates?: string;
  log(line: string): void;
}

/** How long calls and connections may take to end before the devices are closed all the same. */
const PATIENCE_MS = 10_000;

export class Daemon {
  /** Settles when devices, sockets and locks are given up; the control socket has then answered all but its last call. */
  readonly ended: Promise<void>;
  readonly #options: DaemonOptions;
  readonly #locks: InstanceLock[];
  readonly #file: StateFile<State>;
  readonly #started = Date.now();
  readonly #mapper: Mapper;
  readonly #forks: Forks;
  readonly #monitor: Monitor;
  readonly #attachments: Attachments;
  readonly #exports: MapperExports;
  readonly #nbd: NbdServer;
  readonly #control: ControlServer;
  readonly #running = new Set<Promise<unknown>>();
  readonly #stopping = new AbortController();
  #nbdTcp: DaemonStatus['nbdTcp'];
  #fault: string | undefined;
  #ending: Promise<void> | undefined;
  #ended = () => {};

  /**
   * Throws AlreadyRunning or STATE_IN_USE (EBUSY) while another daemon has one of the directories, STATE_CORRUPT when the state cannot
   * be read, and what the sockets throw. Devices that cannot be brought back are there without a table.
   */
  static async start(options: DaemonOptions): Promise<Daemon> {
    ensurePrivateDirectory(options.run);
    ensurePrivateDirectory(options.state);
    const locks: InstanceLock[] = [];
    try {
      locks.push(lockInstance(options.run));
      if (options.state !== options.run) locks.push(lockState(options));
      const file = new StateFile<State>(options.state);
      const state = (await file.load()) ?? { major: freeMajor(), devices: [], forks: [] };
      const fault = stateFault(state);
      if (fault !== undefined) throw file.corrupt(fault);
      const daemon = new Daemon(options, locks, file, state);
      await daemon.#begin(state);
      return daemon;
    } catch (error) {
      for (const lock of locks.reverse()) lock.release();
      throw error;
    }
  }

  private constructor(options: DaemonOptions, locks: InstanceLock[], file: StateFile<State>, state: State) {
    this.#options = options;
    this.#locks = locks;
    this.#file = file;
    this.ended = new Promise((resolve) => (this.#ended = resolve));
    const socket = nbdSocket(options.run);
    const { mapper, forks, monitor } = assemble({
      major: state.major,
      changed: () => this.#save(),
      records: state.forks,
      save: () => this.#saveNow(),
      uri: (name) => nbdUri(socket, name),
      users: (name) => this.#usersOf(name),
      log: options.log,
    });
    this.#mapper = mapper;
    this.#forks = forks;
    this.#monitor = monitor;
    this.#attachments = new Attachments({
      directory: options.run,
      nbdSocket: socket,
      daemon: randomUUID(),
      info: (device) => this.#mapper.info(device),
      log: options.log,
    });
    this.#exports = new MapperExports(this.#mapper);
    this.#nbd = new NbdServer(this.#exports, {
      log: options.log,
      tls: options.tlsCertificates === undefined ? undefined : tlsDirectory(options.tlsCertificates),
    });
    this.#control = new ControlServer(this.#handlers(), { log: options.log });
  }

  async #begin(state: State): Promise<void> {
    const { log, run, nbdTcp, tlsCertificates, version } = this.#options;
    try {
      await this.#mapper.restore(state.devices).catch((error: Error) => {
        throw this.#file.corrupt(error.message);
      });
      for (const line of await this.#forks.recover(state.devices)) log(line);
      for (const { name, note } of await this.#mapper.list()) if (note) log(`${name}: ${note}`);
      await this.#save();
      this.#monitor.begin();
      await this.#nbd.listenUnix(nbdSocket(run));
      if (nbdTcp) {
        const { host = '127.0.0.1' } = nbdTcp;
        const port = await this.#nbd.listenTcp({ host, port: nbdTcp.port });
        this.#nbdTcp = { host, port, tls: tlsCertificates !== undefined };
      }
      await this.#control.listen(controlSocket(run));
    } catch (error) {
      await this.#nbd.stop();
      await this.#mapper.close().catch(() => {});
      throw error;
    }
    log(`dmkit ${version} serves ${state.devices.length} devices in ${run} (pid ${process.pid})`);
  }

  /** Ends everything in order. Idempotent. */
  end(): Promise<void> {
    this.#ending ??= this.#end();
    return this.#ending;
  }

  /** Settles when the last call has its answer. To be called after `ended`. */
  closeControl(): Promise<void> {
    return this.#control.close();
  }

  async #end(): Promise<void> {
    const { log, run } = this.#options;
    const attempt = (what: string, work: Promise<unknown>) =>
      work.catch((error) => log(`stopping: ${what}: ${error instanceof Error ? error.message : error}`));
    log('stopping');
    this.#stopping.abort();
    await Promise.race([Promise.allSettled(this.#running), delay(PATIENCE_MS, undefined, { ref: false })]);
    await Promise.race([this.#forks.stop(), delay(PATIENCE_MS, undefined, { ref: false })]);
    this.#monitor.close();
    for (const { name, path } of await this.#attachments.detachAll()) log(`${name} stays attached as ${path}, dead`);
    const nbdStopped = attempt('NBD', this.#nbd.stop());
    await Promise.race([nbdStopped, delay(PATIENCE_MS, undefined, { ref: false })]);
    await attempt('state', this.#save());
    await attempt('devices', this.#mapper.close());
    await nbdStopped;
    await attempt('control socket', unlinkSocket(controlSocket(run)));
    // The other way round than they were taken: who gets the first one gets the second.
    for (const lock of this.#locks.reverse()) lock.release();
    log('stopped');
    this.#ended();
  }

  /** A failure is told to whoever asks for the status, and tried again at the next change: the devices go on. */
  #save(): Promise<void> {
    return this.#saveNow().catch(() => {});
  }

  async #saveNow(): Promise<void> {
    try {
      await this.#file.save(() => this.#state());
      this.#fault = undefined;
    } catch (error) {
      this.#fault = (error as Error).message;
      this.#options.log(this.#fault);
      throw error;
    }
  }

  async #state(): Promise<State> {
    return { major: this.#mapper.major, ...(await this.#forks.state()) };
  }

  async #status(): Promise<DaemonStatus> {
    const { run, state, version } = this.#options;
    return {
      pid: process.pid,
      version,
      started: this.#started,
      run,
      state,
      nbdSocket: nbdSocket(run),
      nbdTcp: this.#nbdTcp,
      devices: (await this.#mapper.list()).length,
      connections: this.#nbd.connectionCount,
      calls: this.#running.size,
      fault: this.#fault,
    };
  }

  async #down({ force = false }: { force?: boolean } = {}): Promise<DaemonStatus> {
    const alive = (await this.#attachments.attachments()).filter((attachment) => attachment.alive);
    if (alive.length > 0 && !force)
      throw new DmError(
        'DAEMON_ATTACHED',
        'EBUSY',
        `Cannot stop the daemon: ${alive.map(({ name, path }) => `${name} is attached as ${path}`).join(', ')}`,
        { hint: `first: ${alive.map(({ name }) => `dmkit detach ${name}`).join('; ')}. Or: dmkit down --force` },
      );
    const status = await this.#status();
    await this.end();
    return status;
  }

  #handlers(): Handlers {
    const mapper = this.#mapper as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>;
    const direct = Object.keys(CALLS).map((call) => [call, (args: unknown[]) => mapper[call](...args)]);
    const forks = this.#forks;
    const attachments = this.#attachments;
    const special: Partial<Handlers> = {
      // Nothing is begun that a crash would lose.
      create: async ([name, options]) => {
        await this.#file.probe(() => this.#state());
        return this.#mapper.create(name as string, options as object);
      },
      // These can block for long; they end when the client goes.
      wait: ([device, event], signal) => this.#mapper.wait(device as never, event as number, signal),
      suspend: ([device, options], signal) => this.#mapper.suspend(device as never, { ...(options as object), signal }),
      resume: async ([device, options], signal) => {
        if ((await this.#mapper.info(device as never)).inactive) await this.#file.probe(() => this.#state());
        return this.#mapper.resume(device as never, { ...(options as object), signal });
      },
      remove: ([device, options]) => this.#naming(device, this.#mapper.remove(device as never, options as object)),
      revert: ([device]) => forks.revert(device as never),
      fork: ([image, name, options]) => forks.fork(image as string, name as string, options as object),
      volumes: () => this.#volumes(),
      diff: ([name, options]) => forks.diff(name as string, options as object),
      drop: ([name, options]) => this.#naming({ name }, forks.drop(name as string, options as object)),
      merge: ([name, options]) => forks.merge(name as string, options as object),
      mergeProgress: ([name, options], signal) => forks.mergeProgress(name as string, options as object, signal),
      events: ([after], signal) => this.#monitor.events(after as number | undefined, signal),
      attach: ([name]) => attachments.attach(name as string),
      detach: ([name]) => attachments.detach(name as string),
      attachments: () => attachments.attachments(),
    };
    const handlers = { ...Object.fromEntries(direct), ...special } as Handlers;
    for (const call of Object.keys(handlers) as CallName[]) handlers[call] = this.#tracked(handlers[call]);
    // Not counted among those that run.
    handlers.daemon = async () => {
      if (this.#stopping.signal.aborted) throw stops();
      return this.#status();
    };
    // Waits for all the others to end, and is not waited for.
    handlers.down = ([options]) => this.#down(options as object);
    return handlers;
  }

  #tracked(handler: Handler): Handler {
    return async (args, signal) => {
      if (this.#stopping.signal.aborted) throw stops();
      const call = handler(args, AbortSignal.any([signal, this.#stopping.signal]));
      this.#running.add(call);
      try {
        return await call;
      } finally {
        this.#running.delete(call);
      }
    };
  }

  async #volumes() {
    const [volumes, attachments] = await Promise.all([this.#forks.volumes(), this.#attachments.attachments()]);
    for (const volume of volumes) {
      const attachment = attachments.find(({ name }) => name === volume.name);
      if (attachment) volume.attached = attachment.alive ? attachment.path : `${attachment.path} (dead)`;
    }
    return volumes;
  }

  /** Adds to EBUSY who has the device open. */
  async #naming<T>(device: unknown, work: Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      if (!(error instanceof DmError) || error.code !== 'DEVICE_OPEN') throw error;
      const name = this.#mapper.device(device as never).storedName;
      const users = await this.#usersOf(name, `, or use dmkit dmsetup remove --deferred ${name}`);
      if (users === undefined) throw error;
      throw new DmError(error.code, error.errno, error.message, { hint: users, cause: error });
    }
  }

  /** Who has a device open, and how to end that. `instead`: what can be done instead of ending connections. */
  async #usersOf(name: string, instead = ''): Promise<string | undefined> {
    const attachment = (await this.#attachments.attachments()).find((entry) => entry.name === name);
    if (attachment) return `it is attached as ${attachment.path}: dmkit detach ${name}`;
    const connections = this.#exports.connectionsOf(this.#mapper.device({ name }));
    if (connections === 0) return undefined;
    return `it has ${connections} NBD connection${connections === 1 ? '' : 's'}: end the clients${instead}`;
  }
}

/** The holder has another run directory, as that was locked first: unlike there, nothing is gained by waiting for it. */
function lockState({ run, state }: Directories): InstanceLock {
  try {
    return lockInstance(state);
  } catch (error) {
    if (!(error instanceof AlreadyRunning)) throw error;
    throw new DmError('STATE_IN_USE', 'EBUSY', `${error.message}, and with another directory than ${run}`, {
      hint: 'give a state directory of its own in DMKIT_STATE, or use that daemon: set DMKIT_DIR as it was started with',
    });
  }
}

/** The highest number up to 254 that no block driver of this machine has: Linux takes 254 downwards for those without one of their own. */
function freeMajor(): number {
  let taken: Set<number>;
  try {
    const [, blocks = ''] = readFileSync('/proc/devices', 'utf8').split('Block devices:');
    taken = new Set(Array.from(blocks.matchAll(/^\s*(\d+) /gm), ([, number]) => Number(number)));
  } catch {
    taken = new Set();
  }
  let major = 254;
  while (major > 1 && taken.has(major)) major--;
  return major;
}
