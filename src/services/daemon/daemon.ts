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
import { DmError } from '../../errors.ts';
import { type Clock, systemClock } from '../../lib/clock.ts';
import type { DeviceInfo, DeviceRef, LoadOptions, TargetSpec } from '../../mapper/control.ts';
import { type Assembly, assemble } from '../assembly.ts';
import { Attachments } from '../attach/attachments.ts';
import { engineCalls } from '../engine/engine.ts';
import { EngineExports } from '../engine/engine-exports.ts';
import { Engines } from '../engine/engines.ts';
import type { PeerHandlers } from '../engine/peer.ts';
import { Registry } from '../engine/registry.ts';
import type { EngineStart } from '../engine/remote-engine.ts';
import { startEngine, startThread, type Thread } from '../engine/start-engine.ts';
import { EventLog } from '../events/event-log.ts';
import type { ForkOptions, Volume } from '../fork/fork-control.ts';
import { NbdServer } from '../nbd/server.ts';
import { shareAmong } from '../nbd/serving.ts';
import { tlsDirectory } from '../nbd/tls.ts';
import type { PoolOptions, VolumeSource } from '../pool/pool-control.ts';
import { CALLS, type CallName } from './calls.ts';
import { ControlServer, type Handler, type Handlers, stops } from './control-server.ts';
import type { DaemonStatus } from './daemon-control.ts';
import { controlSocket, type Directories, ensurePrivateDirectory, nbdSocket, nbdUri } from './directories.ts';
import { AlreadyRunning, type InstanceLock, lockInstance } from './instance-lock.ts';
import { MapperExports } from './mapper-exports.ts';
import { type State, stateFault } from './state.ts';
import { StateFile } from './state-file.ts';

export interface DaemonOptions extends Directories {
  /** Of the package. */
  version: string;
  /** Serves NBD over TCP as well. */
  nbdTcp?: { host?: string; port?: number };
  /** Directory for NBD over TLS (docs/nbd.md); without it there is no access control over TCP. */
  tlsCertificates?: string;
  /** Threads for forks beside the main one, at most. */
  engines?: number;
  /** How these are made; tests have them on the same one. */
  thread?(start: EngineStart): Thread;
  clock?: Clock;
  log(line: string): void;
}

/** How long the next call, or all connections, may take to end before the devices are closed all the same. */
const PATIENCE_MS = 10_000;

const NEVER = new AbortController().signal;

export class Daemon {
  /** Settles when devices, sockets and locks are given up; the control socket has then answered all but its last call. */
  readonly ended: Promise<void>;
  readonly #options: DaemonOptions;
  readonly #locks: InstanceLock[];
  readonly #file: StateFile<State>;
  readonly #started = Date.now();
  readonly #major: number;
  readonly #registry: Registry;
  readonly #engines: Engines;
  /** Of the engine on this thread. */
  readonly #local: Assembly;
  readonly #attachments: Attachments;
  readonly #nbd: NbdServer;
  readonly #control: ControlServer;
  readonly #running = new Set<Promise<unknown>>();
  readonly #stopping = new AbortController();
  #nbdTcp: DaemonStatus['nbdTcp'];
  /** Those who wait for events. */
  #watchers = 0;
  #fault: string | undefined;
  /** The devices are being closed: what is told of them is no longer what a restart must find. */
  #sealed = false;
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
    const { log, engines = 0, thread = startThread } = options;
    const { major } = state;
    const events = new EventLog();
    this.#major = major;
    this.#registry = new Registry(major, (name, engine) => this.#named(name, engine));
    this.#local = assemble({
      major,
      events,
      claims: this.#registry.claimsOf(0),
      changed: () => this.#save(),
      save: () => this.#saveNow(),
      uri: (name) => nbdUri(socket, name),
      users: (name) => this.#usersOf(name),
      log,
    });
    const calls: PeerHandlers = {
      ...engineCalls(this.#local),
      share: ([threads]) => shareAmong(threads, this.#nbd),
    };
    this.#engines = new Engines({
      major,
      registry: this.#registry,
      max: engines,
      local: {
        call: async <T>(call: string, args: readonly unknown[], signal = NEVER) =>
          (await calls[call](args as readonly never[], signal)) as T,
        state: async () => this.#local.forks.state(),
      },
      start: (number, part) =>
        startEngine(
          thread({ major, nbdSocket: socket, version: options.version }),
          {
            claims: this.#registry.claimsOf(number),
            emit: events.emit,
            log,
            save: () => this.#saveNow(),
            users: (name) => this.#usersOf(name),
          },
          { state: part, watchers: this.#watchers },
        ),
    });
    this.#attachments = new Attachments({
      directory: options.run,
      nbdSocket: socket,
      daemon: randomUUID(),
      info: (device) => this.#engines.call<DeviceInfo>(device, 'info', [device]),
      nameOf: (device) => this.#registry.find(device)?.storedName,
      log: options.log,
    });
    const exports = new EngineExports(this.#engines, this.#registry, new MapperExports(this.#local.mapper));
    this.#nbd = new NbdServer(exports, {
      log: options.log,
      tls: options.tlsCertificates === undefined ? undefined : tlsDirectory(options.tlsCertificates),
    });
    this.#control = new ControlServer(this.#handlers(), { log: options.log });
  }

  async #begin(state: State): Promise<void> {
    const { log, run, nbdTcp, tlsCertificates, version } = this.#options;
    try {
      const lines = await this.#engines.restore(state).catch((error: Error) => {
        throw this.#file.corrupt(error.message);
      });
      for (const line of lines) log(line);
      await this.#save();
      await this.#engines.each('begin', []);
      await this.#nbd.listenUnix(nbdSocket(run));
      if (nbdTcp) {
        const { host = '127.0.0.1' } = nbdTcp;
        const port = await this.#nbd.listenTcp({ host, port: nbdTcp.port });
        this.#nbdTcp = { host, port, tls: tlsCertificates !== undefined };
      }
      await this.#control.listen(controlSocket(run));
    } catch (error) {
      await this.#nbd.stop();
      await this.#engines.close().catch(() => {});
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
    const { log } = this.#options;
    const attempt = (what: string, work: Promise<unknown>) =>
      work.catch((error) => log(`stopping: ${what}: ${error instanceof Error ? error.message : error}`));
    log('stopping');
    this.#stopping.abort();
    // Many may wait for one disk, each for those before.
    while (this.#running.size > 0) {
      const next = Promise.race(this.#running).catch(() => {});
      if (!(await this.#inTime(next))) break;
    }
    await this.#inTime(this.#engines.stop());
    for (const { name, path } of await this.#attachments.detachAll()) log(`${name} stays attached as ${path}, dead`);
    const nbdStopped = attempt('NBD', this.#nbd.stop());
    await this.#inTime(nbdStopped);
    await attempt('state', this.#save());
    this.#sealed = true;
    await attempt('devices', this.#engines.close());
    await nbdStopped;
    // The file is the next daemon's when the locks are released.
    await this.#file.idle();
    // Before the next daemon may listen there.
    await attempt('control socket', this.#control.hide());
    // The other way round than they were taken: who gets the first one gets the second.
    for (const lock of this.#locks.reverse()) lock.release();
    log('stopped');
    this.#ended();
  }

  /** False: `work` takes longer than anybody has patience for. */
  async #inTime(work: Promise<unknown>): Promise<boolean> {
    const { clock = systemClock } = this.#options;
    let cancel = () => {};
    const late = new Promise<false>((resolve) => {
      cancel = clock.after(PATIENCE_MS, () => resolve(false));
    });
    try {
      return await Promise.race([work.then(() => true), late]);
    } finally {
      cancel();
    }
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
      if (!this.#sealed) this.#options.log(this.#fault);
      throw error;
    }
  }

  async #state(): Promise<State> {
    const state = { major: this.#major, ...(await this.#engines.state()) };
    // Looked at last: the devices may have been closed since the save was asked for.
    if (this.#sealed) throw stops();
    return state;
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
      devices: (await this.#engines.list('list', [])).length,
      threads: this.#engines.all.length,
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
    const engines = this.#engines;
    const attachments = this.#attachments;
    // Most calls go to the engine of the device that they name first.
    const direct = (Object.keys(CALLS) as CallName[]).map((call) => [
      call,
      (args: unknown[], signal: AbortSignal) => engines.call(args[0] as DeviceRef, call, args, signal),
    ]);
    const local = (call: string) => () => engines.all[0].call(call, []);
    const ofFork =
      (call: string): Handler =>
      (args, signal) =>
        engines.ofFork(args[0] as string, call, args, signal);
    const special: Partial<Handlers> = {
      version: local('version'),
      targets: local('targets'),
      list: (args) => engines.list('list', args),
      removeAll: (args) => engines.each('removeAll', args),
      // Nothing is begun that a crash would lose.
      create: async (args) => {
        await this.#file.probe(() => this.#state());
        const [name, { table = [], load } = {}] = args as [string, { table?: TargetSpec[]; load?: LoadOptions }?];
        return engines.load(name, table, load?.directory, 'create', args);
      },
      load: (args) => {
        const [device, table, options] = args as [DeviceRef, TargetSpec[], LoadOptions?];
        return engines.load(device, table, options?.directory, 'load', args);
      },
      resume: async (args, signal) => {
        const device = args[0] as DeviceRef;
        if ((await engines.call<DeviceInfo>(device, 'info', [device])).inactive)
          await this.#file.probe(() => this.#state());
        return engines.call(device, 'resume', args, signal);
      },
      remove: (args) => this.#naming(args[0] as DeviceRef, engines.call(args[0] as DeviceRef, 'remove', args)),
      fork: (args) => {
        const [image, name, options] = args as [string, string, ForkOptions?];
        return engines.fork(image, name, options ?? {}, args);
      },
      createPool: (args) => engines.pool(args[0] as string, (args[1] ?? {}) as PoolOptions, 'createPool', args),
      openPool: (args) => engines.pool(args[0] as string, (args[1] ?? {}) as PoolOptions, 'openPool', args),
      extendPool: (args) => engines.call({ name: args[0] as string }, 'extendPool', args),
      createVolume: (args) => {
        const [pool, name, source] = args as [string, string, VolumeSource];
        return engines.volume(pool, name, source, args);
      },
      volumes: () => this.#volumes(),
      diff: ofFork('diff'),
      drop: (args) => this.#naming({ name: args[0] as string }, engines.ofFork(args[0] as string, 'drop', args)),
      merge: ofFork('merge'),
      mergeProgress: ofFork('mergeProgress'),
      events: ([after], signal) => this.#events(after as number | undefined, signal),
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
        const result = await call;
        // Nobody had the patience: what it has done may not be kept.
        if (this.#sealed) throw stops();
        return result;
      } catch (error) {
        // Whoever waits has not ended the wait, and is told who has.
        if (this.#stopping.signal.aborted && error instanceof DmError && error.code === 'INTERRUPTED') throw stops();
        throw error;
      } finally {
        this.#running.delete(call);
      }
    };
  }

  async #volumes() {
    const [volumes, attachments] = await Promise.all([
      this.#engines.list<Volume>('volumes', []),
      this.#attachments.attachments(),
    ]);
    for (const volume of volumes) {
      const attachment = attachments.find(({ name }) => name === volume.name);
      if (attachment) volume.attached = attachment.alive ? attachment.path : `${attachment.path} (dead)`;
    }
    return volumes;
  }

  /** While somebody waits, every engine looks at its devices now and then. */
  async #events(after: number | undefined, signal: AbortSignal) {
    const count = async (more: number) => {
      this.#watchers += more;
      await Promise.all(this.#engines.started.map((engine) => engine.call('watched', [this.#watchers])));
    };
    await count(1);
    try {
      return await this.#local.monitor.events(after, signal);
    } finally {
      await count(-1);
    }
  }

  /** The other engines may know of a merge of a fork of that name. */
  #named(name: string, engine: number): void {
    for (const [number, other] of this.#engines.all.entries())
      if (number !== engine) void other.call('named', [name]).catch(() => {});
  }

  /** Stored name; '' without such a device. */
  #nameOf(device: DeviceRef): string {
    return this.#registry.find(device)?.storedName ?? '';
  }

  /** Adds to EBUSY who has the device open. */
  async #naming<T>(device: DeviceRef, work: Promise<T>): Promise<T> {
    try {
      return await work;
    } catch (error) {
      if (!(error instanceof DmError) || error.code !== 'DEVICE_OPEN') throw error;
      const name = this.#nameOf(device);
      const users = await this.#usersOf(name, `, or use dmkit dmsetup remove --deferred ${name}`);
      if (users === undefined) throw error;
      throw new DmError(error.code, error.errno, error.message, { hint: users, cause: error });
    }
  }

  /** Who has a device open, and how to end that. `instead`: what can be done instead of ending connections. */
  async #usersOf(name: string, instead = ''): Promise<string | undefined> {
    const attachment = (await this.#attachments.attachments()).find((entry) => entry.name === name);
    if (attachment) return `it is attached as ${attachment.path}: dmkit detach ${name}`;
    const connections = this.#registry.find({ name })?.connections ?? 0;
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
