/** TLS on the client (doc/proto.md, "TLS"), with the files that libnbd and nbdkit look for. */
import { readFile } from 'node:fs/promises';
import { isIP, type Socket } from 'node:net';
import { join } from 'node:path';
import { type ConnectionOptions, checkServerIdentity, connect, type TLSSocket } from 'node:tls';
import { DmError, fromSystem } from '../errors.ts';
import type { NbdAddress } from '../formats/nbd/uri.ts';

const HINT =
  'check tls-certificates: ca-cert.pem must have signed the certificate of the server, and client-cert.pem be one that it takes';

/** Of a handshake, or of the alert that the server answers the first bytes with. */
export const tlsFailed = (error: Error) =>
  new DmError('NBD_TLS', 'EACCES', `the TLS handshake failed: ${error.message}`, { hint: HINT, cause: error });

/** Rejects with NBD_TLS when the server cannot be trusted or does not take the certificate. */
export async function connectTls(socket: Socket, address: NbdAddress): Promise<TLSSocket> {
  const { certificates, hostname } = address.tls ?? {};
  // A Unix socket has no name to compare with; that the authority signed the certificate is checked all the same.
  const name = hostname ?? (address.kind === 'tcp' ? address.host : undefined);
  const options: ConnectionOptions = {
    ...(certificates === undefined ? {} : await credentials(certificates)),
    socket,
    servername: name === undefined || isIP(name) ? undefined : name,
    checkServerIdentity: (_host, certificate) =>
      name === undefined ? undefined : checkServerIdentity(name, certificate),
  };
  return new Promise((resolve, reject) => {
    const fail = (error: Error) => reject(tlsFailed(error));
    const onClose = () => fail(new Error('the server closed the connection'));
    // It may have ended while the files were read.
    if (socket.destroyed) return onClose();
    let secure: TLSSocket;
    try {
      secure = connect(options);
    } catch (error) {
      return fail(error as Error);
    }
    secure.once('error', fail).once('close', onClose);
    // An end that came before shows only to who reads.
    socket.read(0);
    secure.once('secureConnect', () => {
      secure.off('error', fail).off('close', onClose);
      // Whoever reads learns of an error; between two readers it must not be thrown.
      secure.on('error', () => {});
      resolve(secure);
    });
  });
}

/** The certificate and the key are optional, but not one without the other. */
async function credentials(directory: string) {
  const read = async (name: string, optional: boolean): Promise<Buffer | undefined> => {
    try {
      return await readFile(join(directory, name));
    } catch (error) {
      const { errno, message } = fromSystem(error, `cannot read ${join(directory, name)}`);
      if (optional && errno === 'ENOENT') return undefined;
      const hint =
        'tls-certificates names a directory with ca-cert.pem and, for servers that ask, client-cert.pem and client-key.pem';
      throw new DmError('NBD_TLS', errno, message, { hint, cause: error });
    }
  };
  const ca = await read('ca-cert.pem', false);
  const cert = await read('client-cert.pem', true);
  return { ca, cert, key: await read('client-key.pem', cert === undefined) };
}
