import type { Control } from '../../mapper/control.ts';
import type { AttachControl } from '../attach/attach-control.ts';
import type { EventControl } from '../events/event.ts';
import type { ForkControl } from '../fork/fork-control.ts';
import type { PoolControl } from '../pool/pool-control.ts';

export interface DaemonStatus {
  pid: number;
  /** Of the package. */
  version: string;
  /** Unix time, milliseconds. */
  started: number;
  run: string;
  state: string;
  nbdSocket: string;
  /** Where NBD is served over TCP. */
  nbdTcp?: { host: string; port: number; tls: boolean };
  devices: number;
  /** That serve devices: the main one, and those of forks that share nothing with others. */
  threads: number;
  /** NBD connections. */
  connections: number;
  /** Calls on the control socket that have no answer yet, this one not counted. */
  calls: number;
  /** The state could not be saved; a restart would bring back an older one. */
  fault?: string;
}

/** Everything the control socket offers. */
export interface DaemonControl extends Control, ForkControl, PoolControl, AttachControl, EventControl {
  /** ESHUTDOWN (DAEMON_STOPS) when it is stopping, as from every call but `down`. */
  daemon(): Promise<DaemonStatus>;
  /** Settles when the devices are flushed and closed and another daemon may start. EBUSY while devices are attached, unless forced. */
  down(options?: { force?: boolean }): Promise<DaemonStatus>;
}
