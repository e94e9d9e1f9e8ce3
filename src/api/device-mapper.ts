import type { Control } from '../mapper/control.ts';
import { controlClient } from '../services/daemon/control-client.ts';
import type { DaemonControl } from '../services/daemon/daemon-control.ts';
import { controlSocket, type Directories, directories, nbdSocket, nbdUri } from '../services/daemon/directories.ts';
import { startDaemon } from '../services/daemon/start.ts';
import { type EventControl, type WatchEvent, watchEvents } from '../services/events/event.ts';
import type { ForkControl } from '../services/fork/fork-control.ts';
import type { Inspection } from '../services/fork/inspect.ts';
import type { TlsOptions } from '../services/nbd/tls.ts';
import type { PoolControl } from '../services/pool/pool-control.ts';
import type { Disk } from './disk.ts';

/** Of a mapper in this process. */
export interface OpenOptions {
  /** Of all mapped devices in `deps` and `MAJ:MIN` arguments; 254 unless given. */
  major?: number;
}

/** Which daemon: that of `$DMKIT_DIR` and `$DMKIT_STATE`, or of this user's own places, unless given. */
export interface ConnectOptions extends Partial<Directories> {
  /** Start the daemon if it does not run. Else the first call rejects with DAEMON_DOWN. */
  start?: boolean;
}

/**
 * A Unix socket of mode 0600, or TCP: loopback and NBD's own port 10809 unless given, port 0 takes a free one. TCP has no
 * access control but what `tls` demands.
 */
export type ServeOptions = ({ socket: string } | { host?: string; port?: number }) & {
  log?: (line: string) => void;
  tls?: TlsOptions;
};

/** Where devices are served now. */
export interface Served {
  /** TCP only. */
  readonly port?: number;
  /** The NBD URI of a device. */
  uri(name: string): string;
}

interface Common extends Control, ForkControl, PoolControl, EventControl {
  /**
   * What happens to the devices from now on, as it comes (docs/events.md). Ends when `signal` fires, and with the loop that
   * reads it.
   */
  watch(options?: { signal?: AbortSignal }): AsyncIterableIterator<WatchEvent>;
  /** Opens a device that has a live table, for I/O at any byte. ENXIO if there is none. */
  device(name: string): Promise<Disk>;
  /** Says what a file or block device holds, and what is wrong with it if it is a COW store. */
  inspect(path: string, options?: { originSize?: number }): Promise<Inspection>;
}

/** Mapped devices of this process. They end with it; COW files stay, and forking with one opens it again. */
export interface DeviceMapper extends Common {
  /** Every device with a live table is the NBD export of its name. */
  serve(where: ServeOptions): Promise<Served>;
  /** Ends connections, flushes and closes every device. */
  close(): Promise<void>;
}

/** Mapped devices of the daemon. Nothing to close: every call has a connection of its own. */
export interface RemoteMapper extends Common, DaemonControl {
  /** The NBD URI of a device. */
  uri(name: string): string;
}

/** The two ways to mapped devices. Every call rejects with a DmError. */
export const DeviceMapper = {
  /** In this process, without a daemon. */
  async open(options: OpenOptions = {}): Promise<DeviceMapper> {
    const { openLocal } = await import('./local.ts');
    return openLocal(options);
  },

  /** To the daemon of `$DMKIT_DIR`, or its place for this user. */
  async connect({ start = false, ...given }: ConnectOptions = {}): Promise<RemoteMapper> {
    const where = { ...directories(), ...given };
    const control = start ? await startDaemon(where) : controlClient(controlSocket(where.run));
    const uri = (name: string) => nbdUri(nbdSocket(where.run), name);
    return {
      ...control,
      watch: (options) => watchEvents(control, options),
      uri,
      async device(name) {
        const [{ NbdDevice }, { diskOf }] = await Promise.all([import('../device/nbd.ts'), import('./disk.ts')]);
        const device = await NbdDevice.open(uri(name));
        return diskOf(device, () => device.close());
      },
      async inspect(path, options) {
        const { inspectFile } = await import('../services/fork/inspect.ts');
        return inspectFile(path, options);
      },
    };
  },
};
