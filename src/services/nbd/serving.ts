/** The transmission phase of connections that share memory and buffers: those of one thread. */
import type { Duplex } from 'node:stream';
import type { BlockDevice } from '../../device/block-device.ts';
import { ByteAccess } from '../../device/byte-access.ts';
import { sharePool } from '../../device/thread-share.ts';
import type { Session } from './handshake.ts';
import type { Limits } from './limits.ts';
import { Memory } from './memory.ts';
import { ReplyBuffers } from './reply-buffers.ts';
import { Transmission } from './transmission.ts';

/** What the connections of one thread may hold together, in bytes, however many threads there are. */
const SHARE_MIN = 64 * 1024 * 1024;

/**
 * From now on memory and the threads that wait for disks, which are the process's, belong to so many threads with
 * connections.
 */
export function shareAmong(threads: number, serving: Pick<Serving, 'share'>): void {
  sharePool(threads);
  serving.share(threads);
}

export class Serving {
  readonly #limits: Limits;
  readonly #buffers = new ReplyBuffers();
  readonly #memory: Memory;
  /** All connections to a device write through the same one. */
  readonly #access = new WeakMap<BlockDevice, ByteAccess>();

  constructor(limits: Limits) {
    this.#limits = limits;
    this.#memory = new Memory(limits.memoryBytes, limits.stallMs);
  }

  /** Bytes that payloads and replies of all connections take at this moment. */
  get heldBytes(): number {
    return this.#memory.held;
  }

  /** There are so many threads with connections, which share what all may hold together. */
  share(threads: number): void {
    this.#memory.limit = Math.max(SHARE_MIN, Math.floor(this.#limits.memoryBytes / threads));
  }

  /** To be started. Over a stream, or over a connected socket's descriptor, which it closes in the end. */
  transmission(line: Duplex | number, session: Session, log: (line: string) => void): Transmission {
    const { device } = session.open;
    let access = this.#access.get(device);
    if (!access) this.#access.set(device, (access = new ByteAccess(device, 512)));
    return new Transmission(line, session, access, this.#buffers, this.#memory, this.#limits, log);
  }
}
