import type { Socket } from 'node:net';
import type { BlockDevice, ChangedExtent, Maybe } from '../../device/block-device.ts';
import type { Bytes } from '../../units.ts';
import type { Session } from './handshake.ts';

/** What a server offers under a name. */
export interface ExportEntry {
  name: string;
  description?: string;
}

/**
 * The devices an NBD server offers. `open` is asked at every handshake and rejects with a DmError whose message the
 * client is shown: ENXIO or ENOENT for a name that does not exist, EACCES or EPERM for one that is not to be had.
 */
export interface Exports {
  list(): Promise<ExportEntry[]>;
  open(name: string): Promise<OpenExport>;
}

/**
 * One opener of a device: as long as it is not closed, `remove` finds the device busy. All openers of a device must be
 * given the same device object, so that a flush over one connection covers the writes of all (CAN_MULTI_CONN).
 */
export interface OpenExport {
  readonly device: BlockDevice;
  readonly readOnly: boolean;
  /** The second line of `dmsetup`-like listings; sent to clients that ask. */
  readonly description?: string;
  /** Present on a snapshot: what differs from the origin, offered as `dmkit:changed`. */
  changed?(at: Bytes, length: number): Maybe<ChangedExtent[]>;
  /** Present where the device lives on another thread: the connection goes there from its first request on. */
  serve?(stream: Socket, session: Session, rest: Buffer, log: (line: string) => void): Served;
  /** Called once, after the last operation of the connection has completed. */
  close(): Promise<void>;
}

/** A connection in the transmission phase. */
export interface Served {
  /** Takes no further request; ends the connection when those in flight are answered. */
  drain(): void;
  cut(): void;
  /** Settles when the socket is closed and the device has completed every operation. Never rejects. */
  readonly done: Promise<void>;
}
