/**
 * Connections by their descriptor. Node allocates 64 KiB for whatever a socket receives, and several objects for whatever
 * it sends; a socket made anew from the descriptor receives into buffers that are there already, and system calls
 * send without it. Nor is it bound to the thread that accepted the connection.
 */
import { closeSync } from 'node:fs';
import { type OnReadOpts, Socket, type SocketConstructorOpts } from 'node:net';
import { TLSSocket } from 'node:tls';
import { system } from '../../lib/system.ts';

/** Whoever has it closes it, which `attach` does in the end. */
export interface Detached {
  fd: number;
  /** Received and not read. */
  rest: Buffer;
}

/** Where an attached socket receives. */
export interface Receiver {
  /**
   * Asked for once at the start and after each `received`: the memory belongs to the socket until it has received
   * again, or is closed.
   */
  place(): Uint8Array;
  /** So many bytes lie at the start of the place. */
  received(count: number): void;
}

const EMPTY = Buffer.alloc(0);

/**
 * Takes the connection away from a paused socket, which is destroyed, and keeps it open. Undefined where that cannot be
 * done (TLS, no system calls, no descriptor left): the socket is as it was.
 */
export function detach(socket: Socket): Detached | undefined {
  const sys = system();
  // Node has no other name for it.
  const { _handle: handle } = socket as unknown as { _handle?: { fd?: number } };
  const shared = handle?.fd ?? -1;
  if (!sys || shared < 0 || socket instanceof TLSSocket || socket.destroyed || socket.writableLength > 0)
    return undefined;
  let fd: number;
  try {
    fd = sys.duplicate(shared);
  } catch {
    return undefined;
  }
  const rest: Buffer = socket.read() ?? EMPTY;
  socket.destroy();
  return { fd, rest };
}

/** A socket for a connected descriptor, which is closed with it, also when this throws. It begins to receive at once. */
export function attach(fd: number, receiver: Receiver): Socket {
  const options: SocketConstructorOpts & { onread: OnReadOpts } = {
    fd,
    readable: true,
    writable: true,
    // A client may shut down its side behind its last request and still be answered.
    allowHalfOpen: true,
    onread: {
      buffer: () => receiver.place(),
      callback(count) {
        receiver.received(count);
        return true;
      },
    },
  };
  try {
    return new Socket(options);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}
