/** NBD URIs (NetworkBlockDevice/nbd, doc/uri.md): where an export is. */
import { DmError } from '../../errors.ts';
import { NBD_PORT, STRING_MAX } from './constants.ts';

export type NbdAddress =
  | { kind: 'tcp'; host: string; port: number; exportName: string }
  | { kind: 'unix'; socket: string; exportName: string };

/** `sockaddr_un` has room for 108 bytes with the final NUL; a longer path would be cut off silently. */
export const SOCKET_PATH_MAX = 107;

/** True for anything that is meant as an NBD URI, right or wrong. */
export const isNbdUri = (text: string): boolean => /^nbds?(\+[a-z]+)?:/i.test(text);

const HINT = 'write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=/PATH';

/**
 * Takes `nbd://host[:port]/export` and `nbd+unix:///export?socket=path`.
 * Throws NBD_URI for anything else, and NBD_TLS for the schemes that demand TLS.
 */
export function parseNbdUri(text: string): NbdAddress {
  const fail = (state: string) => new DmError('NBD_URI', 'EINVAL', `Cannot use "${text}": ${state}`, { hint: HINT });
  const match = /^([a-z+]+):\/\/([^/?#]*)([^?#]*)(?:\?([^#]*))?$/i.exec(text);
  if (!match) throw fail('it is no NBD URI');
  const scheme = match[1].toLowerCase();
  const [authority, path, query] = [match[2], match[3], match[4] ?? ''];
  if (scheme === 'nbds' || scheme === 'nbds+unix') {
    throw new DmError('NBD_TLS', 'EOPNOTSUPP', `Cannot use "${text}": connections with TLS are not supported`, {
      hint: 'put a TLS tunnel in front of the server (stunnel, ssh -L) and use its nbd:// address',
    });
  }
  if (scheme !== 'nbd' && scheme !== 'nbd+unix') throw fail(`its scheme is "${scheme}"`);

  const decode = (part: string) => {
    try {
      return decodeURIComponent(part);
    } catch {
      throw fail(`"${part}" has a bad percent escape`);
    }
  };
  const exportName = decode(path.slice(1));
  if (exportName.includes('\0')) throw fail('the export name has a NUL character');
  if (Buffer.byteLength(exportName) > STRING_MAX) throw fail(`the export name is longer than ${STRING_MAX} bytes`);

  let socket: string | undefined;
  for (const parameter of query.split('&').filter((word) => word !== '')) {
    const [key, value = ''] = [parameter.split('=', 1)[0], parameter.slice(parameter.indexOf('=') + 1)];
    if (key !== 'socket' || scheme === 'nbd') throw fail(`the parameter "${decode(key)}" is not known for ${scheme}`);
    if (socket !== undefined) throw fail('it has two sockets');
    socket = decode(value);
  }
  if (scheme === 'nbd+unix') {
    if (authority !== '') throw fail(`a Unix socket has no host, and this one has "${authority}"`);
    if (!socket) throw fail('it names no socket');
    if (socket.includes('\0')) throw fail('the socket path has a NUL character');
    const length = Buffer.byteLength(socket);
    if (length > SOCKET_PATH_MAX) {
      throw fail(`the socket path has ${length} bytes, and ${SOCKET_PATH_MAX} is the most the system takes`);
    }
    return { kind: 'unix', socket, exportName };
  }

  const host = /^(\[[0-9a-f:.]+(?:%25[\w.~-]+)?\]|[^@:[\]]*)(?::(\d*))?$/i.exec(authority);
  if (!host) throw fail(`"${authority}" is no host and port`);
  const port = host[2] ? Number(host[2]) : NBD_PORT;
  if (port < 1 || port > 65535) throw fail(`the port ${host[2]} is not between 1 and 65535`);
  const name = decode(host[1].replace(/^\[(.*)\]$/, '$1')).toLowerCase();
  if (/[\s/?#@\0]/.test(name)) throw fail(`"${authority}" is no host and port`);
  return { kind: 'tcp', host: name || 'localhost', port, exportName };
}

/** The same place always prints alike; parsing it gives the same address. */
export function printNbdUri(address: NbdAddress): string {
  const name = escaped(address.exportName);
  if (address.kind === 'unix') return `nbd+unix:///${name}?socket=${escaped(address.socket)}`;
  const host = address.host.includes(':') ? `[${address.host.replace('%', '%25')}]` : encodeURIComponent(address.host);
  const port = address.port === NBD_PORT ? '' : `:${address.port}`;
  return `nbd://${host}${port}/${name}`;
}

/** `/`, `:` and `@` need no escape in a path or a query and read better without. */
const escaped = (text: string): string =>
  encodeURIComponent(text).replace(/%(2F|3A|40)/g, (code) => decodeURIComponent(code));
