/**
 * TLS on the server (doc/proto.md, "TLS"): begun by STARTTLS over a connection that is already there. Certificates are read
 * at every handshake, so that renewed ones count from the next connection on.
 */
import { statSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import type { Socket } from 'node:net';
import { join } from 'node:path';
import { createSecureContext, createServer, type TLSSocket } from 'node:tls';
import { DmError, fromSystem } from '../../errors.ts';

/** Paths of PEM files. */
export interface TlsOptions {
  cert: string;
  key: string;
  /** With it, clients must show a certificate that this authority signed. */
  ca?: string;
  /** Over TCP only TLS is served unless this is false. Over a Unix socket, which has a mode, it is offered. */
  required?: boolean;
}

/** The files that nbdkit looks for in a directory; clients must show a certificate if ca-cert.pem is among them. */
export function tlsDirectory(directory: string): TlsOptions {
  const ca = join(directory, 'ca-cert.pem');
  return {
    cert: join(directory, 'server-cert.pem'),
    key: join(directory, 'server-key.pem'),
    // One that is there and cannot be read is an error, or anyone could connect.
    ca: isMissing(ca) ? undefined : ca,
  };
}

function isMissing(path: string): boolean {
  try {
    statSync(path);
    return false;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ENOENT';
  }
}

async function credentials({ cert, key, ca }: TlsOptions) {
  const [certData, keyData, caData] = await Promise.all([cert, key, ca].map((path) => path && pem(path)));
  const found = { cert: certData, key: keyData, ca: caData };
  try {
    createSecureContext(found);
  } catch (error) {
    throw new DmError('NBD_TLS', 'EINVAL', `Cannot use the certificate ${cert}: ${(error as Error).message}`, {
      hint: `check that ${key} is its key, that both are PEM, and that the key has no passphrase`,
      cause: error,
    });
  }
  return found;
}

async function pem(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    const { errno, message } = fromSystem(error, `Cannot read ${path}`);
    const hint = 'TLS needs the certificate and the key of the server, and an authority for those of clients';
    throw new DmError('NBD_TLS', errno, message, { hint, cause: error });
  }
}

/** Rejects with NBD_TLS when no handshake could succeed. */
export async function checkTls(options: TlsOptions): Promise<void> {
  await credentials(options);
}

/**
 * The server's side of a handshake on a socket that nobody reads. Rejects when it fails, and when the client has not the
 * certificate that is demanded; the socket is then destroyed.
 */
export async function serveTls(socket: Socket, options: TlsOptions): Promise<TLSSocket> {
  const demands = options.ca !== undefined;
  // A server that does not listen is Node's documented way to do this on a connection that exists; it is also what checks
  // the client's certificate. One for each connection: no session of one can be resumed by another.
  const server = createServer({
    ...(await credentials(options)),
    requestCert: demands,
    rejectUnauthorized: demands,
  });
  return new Promise((resolve, reject) => {
    const fail = (error?: Error | null) => {
      socket.destroy();
      const state = error ? `the TLS handshake failed: ${error.message}` : 'disconnected during the TLS handshake';
      reject(new DmError('NBD_TLS', 'EACCES', state, { cause: error ?? undefined }));
    };
    // An error that has a reason comes right behind 'close'.
    const onClose = () => setImmediate(fail);
    server.once('secureConnection', (secure) => {
      socket.off('close', onClose);
      // A reset connection ends with 'close' too; that is where it is handled.
      secure.on('error', () => {});
      // As over TCP: a client may end its side behind its last request and still be answered.
      secure.allowHalfOpen = true;
      resolve(secure);
    });
    server.once('tlsClientError', (error, secure) => fail(secure.authorizationError ?? error));
    socket.once('close', onClose);
    if (socket.destroyed) return onClose();
    // In the middle of the handshake the client's end is the end.
    socket.allowHalfOpen = false;
    server.emit('connection', socket);
    // An end that came before shows only to who reads.
    socket.read(0);
  });
}
