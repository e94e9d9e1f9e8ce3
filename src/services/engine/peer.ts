/**
 * Calls between two threads, over a message port. Both sides call and answer; messages arrive in the order they were sent, so what is
 * told before an answer is known when the answer comes. Arguments and results survive structured cloning, errors are
 * those of the control socket.
 */
import type { MessagePort, Worker } from 'node:worker_threads';
import { DmError } from '../../errors.ts';
import { fromWire, toWire, type WireError } from '../daemon/wire-error.ts';

/** `signal` fires when the caller waits no longer. */
export type PeerHandler = (args: readonly never[], signal: AbortSignal) => unknown;
export type PeerHandlers = Readonly<Record<string, PeerHandler>>;

/** `id` 0: nobody waits for an answer. */
type Message =
  | { kind: 'call'; id: number; call: string; args: readonly unknown[] }
  | { kind: 'abort'; id: number }
  | { kind: 'answer'; id: number; result: unknown }
  | { kind: 'failure'; id: number; error: WireError };

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

export class Peer {
  readonly #port: MessagePort | Worker;
  readonly #handlers: PeerHandlers;
  readonly #pending = new Map<number, Pending>();
  readonly #running = new Map<number, AbortController>();
  #calls = 0;
  #ended: DmError | undefined;

  constructor(port: MessagePort | Worker, handlers: PeerHandlers) {
    this.#port = port;
    this.#handlers = handlers;
    // Both have `on`, of different types.
    (port as MessagePort).on('message', (message: Message) => this.#onMessage(message));
  }

  /** Rejects with the DmError that the other side threw. */
  call<T>(call: string, args: readonly unknown[], signal?: AbortSignal): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.#ended) return reject(this.#ended);
      const id = ++this.#calls;
      const abort = () => this.#post({ kind: 'abort', id });
      const settled = () => {
        this.#pending.delete(id);
        signal?.removeEventListener('abort', abort);
      };
      this.#pending.set(id, {
        resolve(value) {
          settled();
          resolve(value as T);
        },
        reject(error) {
          settled();
          reject(error);
        },
      });
      this.#post({ kind: 'call', id, call, args });
      if (signal?.aborted) abort();
      else signal?.addEventListener('abort', abort, { once: true });
    });
  }

  /** As `call`, for what has no answer and does not fail. */
  tell(call: string, args: readonly unknown[]): void {
    if (!this.#ended) this.#post({ kind: 'call', id: 0, call, args });
  }

  /** The other side is gone, or soon will be: calls without an answer reject. */
  end(why: string): void {
    this.#ended = new DmError('DAEMON_STOPS', 'ESHUTDOWN', why);
    for (const { reject } of [...this.#pending.values()]) reject(this.#ended);
  }

  #post(message: Message): void {
    this.#port.postMessage(message);
  }

  #onMessage(message: Message): void {
    if (message.kind === 'call') void this.#answer(message);
    else if (message.kind === 'abort') this.#running.get(message.id)?.abort();
    else if (message.kind === 'answer') this.#pending.get(message.id)?.resolve(message.result);
    else this.#pending.get(message.id)?.reject(fromWire(message.error));
  }

  async #answer({ id, call, args }: Message & { kind: 'call' }): Promise<void> {
    const abort = new AbortController();
    if (id !== 0) this.#running.set(id, abort);
    try {
      const result = await this.#handlers[call](args as readonly never[], abort.signal);
      if (id !== 0) this.#post({ kind: 'answer', id, result });
    } catch (error) {
      // Whoever tells does not hear of it: a fault of ours, and nobody's to handle.
      if (id === 0) throw error;
      this.#post({ kind: 'failure', id, error: toWire(error) });
    } finally {
      this.#running.delete(id);
    }
  }
}
