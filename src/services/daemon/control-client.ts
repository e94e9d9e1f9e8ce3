import { request as httpRequest } from 'node:http';
import { DmError } from '../../errors.ts';
import { bodyOf, CALLS, type CallName } from './calls.ts';
import type { DaemonControl } from './daemon-control.ts';
import { fromWire } from './wire-error.ts';

/** How often a connection is tried for which the daemon has no room, and the time between. */
const BUSY_TRIES = 250;
const BUSY_MS = 20;

/** What calls reject with when there is no daemon, or it goes away; those that wait for something are interrupted then. */
const GONE = new Set(['DAEMON_DOWN', 'DAEMON_LOST', 'DAEMON_STOPS', 'INTERRUPTED']);

export const isDaemonGone = (error: unknown): error is DmError => error instanceof DmError && GONE.has(error.code);

/**
 * Every call of the daemon that listens on `socketPath`, each over a connection of its own. Rejects with the daemon's
 * DmError; with DAEMON_DOWN when nobody listens; with DAEMON_LOST when it went away before it answered.
 */
export function controlClient(socketPath: string): DaemonControl {
  const methods = (Object.keys(CALLS) as CallName[]).map((call) => {
    const parameters = Object.keys(CALLS[call]).length;
    const method = (...args: unknown[]) => {
      const signal = args[parameters];
      return post(socketPath, call, bodyOf(call, args), signal instanceof AbortSignal ? signal : undefined);
    };
    return [call, method];
  });
  return Object.fromEntries(methods) as unknown as DaemonControl;
}

function post(
  socketPath: string,
  call: CallName,
  body: unknown,
  signal?: AbortSignal,
  tries = BUSY_TRIES,
): Promise<unknown> {
  const bytes = Buffer.from(JSON.stringify(body));
  return new Promise((resolve, reject) => {
    const request = httpRequest(
      {
        socketPath,
        path: `/v1/${call}`,
        method: 'POST',
        agent: false,
        signal,
        headers: { Host: 'dmkit', 'Content-Type': 'application/json', 'Content-Length': bytes.length },
      },
      (response) => {
        const parts: Buffer[] = [];
        response.on('data', (part: Buffer) => parts.push(part));
        response.on('error', (error) => reject(connectionError(error, socketPath, call)));
        response.on('end', () => {
          try {
            const answer = JSON.parse(Buffer.concat(parts).toString('utf8'));
            if (answer.error) reject(fromWire(answer.error));
            else resolve(answer.result ?? undefined);
          } catch {
            reject(
              new DmError('PROTOCOL', 'EIO', `What listens on ${socketPath} is not a dmkit daemon`, {
                hint: 'give a directory of its own in DMKIT_DIR',
              }),
            );
          }
        });
      },
    );
    request.on('error', (error: NodeJS.ErrnoException) => {
      // Many connect at once: it lives, and nothing was sent.
      if (error.syscall === 'connect' && error.code === 'EAGAIN' && tries > 1)
        setTimeout(() => post(socketPath, call, body, signal, tries - 1).then(resolve, reject), BUSY_MS);
      else reject(connectionError(error, socketPath, call));
    });
    request.end(bytes);
  });
}

function connectionError(error: Error, socketPath: string, call: string): DmError {
  const { code, syscall } = error as NodeJS.ErrnoException;
  if (error.name === 'AbortError') return new DmError('INTERRUPTED', 'EINTR', `The call ${call} was interrupted`);
  if (syscall === 'connect' && (code === 'ENOENT' || code === 'ENOTDIR' || code === 'ECONNREFUSED'))
    return new DmError('DAEMON_DOWN', 'ECONNREFUSED', `No daemon listens on ${socketPath}`, {
      hint: 'start it: dmkit up',
      cause: error,
    });
  if (syscall === 'connect' && (code === 'EACCES' || code === 'EPERM'))
    return new DmError('DAEMON_DENIED', 'EACCES', `Cannot open ${socketPath}: it belongs to another user`, {
      hint: 'run as that user, or give your own directory in DMKIT_DIR',
      cause: error,
    });
  return new DmError('DAEMON_LOST', 'EIO', `The daemon went away before it answered ${call}: ${error.message}`, {
    hint: 'see dmkit.log in the state directory; the next command starts it again',
    cause: error,
  });
}
