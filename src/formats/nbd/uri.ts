/** NBD URIs (NetworkBlockDevice/nbd, doc/uri.md): where an export is. */
import { DmError } from '../../errors.ts';
import { NBD_PORT, STRING_MAX } from './constants.ts';

export type NbdAddress = ({ kind: 'tcp'; host: string; port: number } | { kind: 'unix'; socket: string }) & {
  exportName: string;
  /** Present when the connection must be encrypted. */
  tls?: NbdTls;
};

export interface NbdTls {
  /** Directory with ca-cert.pem, client-cert.pem, client-key.pem; without it, the authorities that Node trusts. */
  certificates?: string;
  /** The name in the server's certificate, where it is not the host. */
  hostname?: string;
}

/** `sockaddr_un` has room for 108 bytes with the final NUL; a longer path would be cut off silently. */
export const SOCKET_PATH_MAX = 107;

/** True for anything that is meant as an NBD URI, right or wrong. */
export const isNbdUri = (text: string): boolean => /^nbds?(\+[a-z]+)?:/i.test(text);

const HINT =
  'write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=/PATH, with TLS nbds://HOST/EXPORT?tls-certificates=/DIRECTORY';

/**
 * Takes `nbd://host[:port]/export` and `nbd+unix:///export?socket=path`, and with TLS `nbds://` and `nbds+unix://` with the
 * parameters `tls-certificates` (libnbd's) and `tls-hostname`. Throws NBD_URI for anything else.
 */
export function parseNbdUri(text: string): NbdAddress {
  const fail = (state: string) => new DmError('NBD_URI', 'EINVAL', `Cannot use "${text}": ${state}`, { hint: HINT });
  const match = /^([a-z+]+):\/\/([^/?#]*)([^?#]*)(?:\?([^#]*))?$/i.exec(text);
  if (!match) throw fail('it is no NBD URI');
  const scheme = match[1].toLowerCase();
  const [authority, path, query] = [match[2], match[3], match[4] ?? ''];
  if (!/^nbds?(\+unix)?$/.test(scheme)) throw fail(`its scheme is "${scheme}"`);
  const isUnix = scheme.endsWith('+unix');
  const isSecure = scheme.startsWith('nbds');

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

  const known = [...(isUnix ? ['socket'] : []), ...(isSecure ? ['tls-certificates', 'tls-hostname'] : [])];
  const values = new Map<string, string>();
  for (const parameter of query.split('&').filter((word) => word !== '')) {
    const key = parameter.split('=', 1)[0];
    const value = decode(parameter.slice(key.length + 1));
    if (!known.includes(key)) throw fail(`the parameter "${decode(key)}" is not known for ${scheme}`);
    if (values.has(key)) throw fail(`it has two values for "${key}"`);
    if (value === '') throw fail(`the parameter "${key}" is empty`);
    if (value.includes('\0')) throw fail(`the parameter "${key}" has a NUL character`);
    values.set(key, value);
  }
  const certificates = values.get('tls-certificates');
  const hostname = values.get('tls-hostname');
  const tls = isSecure ? { tls: { ...(certificates && { certificates }), ...(hostname && { hostname }) } } : {};
  if (isUnix) {
    if (authority !== '') throw fail(`a Unix socket has no host, and this one has "${authority}"`);
    const socket = values.get('socket');
    if (!socket) throw fail('it names no socket');
    const length = Buffer.byteLength(socket);
    if (length > SOCKET_PATH_MAX) {
      throw fail(`the socket path has ${length} bytes, and ${SOCKET_PATH_MAX} is the most the system takes`);
    }
    return { kind: 'unix', socket, exportName, ...tls };
  }

  const host = /^(\[[0-9a-f:.]+(?:%25[\w.~-]+)?\]|[^@:[\]]*)(?::(\d*))?$/i.exec(authority);
  if (!host) throw fail(`"${authority}" is no host and port`);
  const port = host[2] ? Number(host[2]) : NBD_PORT;
  if (port < 1 || port > 65535) throw fail(`the port ${host[2]} is not between 1 and 65535`);
  const name = decode(host[1].replace(/^\[(.*)\]$/, '$1')).toLowerCase();
  if (/[\s/?#@\0]/.test(name)) throw fail(`"${authority}" is no host and port`);
  return { kind: 'tcp', host: name || 'localhost', port, exportName, ...tls };
}

/** The same place always prints alike; parsing it gives the same address. */
export function printNbdUri(address: NbdAddress): string {
  const { exportName, tls } = address;
  const scheme = tls ? 'nbds' : 'nbd';
  const parameters = [
    ['socket', address.kind === 'unix' ? address.socket : undefined],
    ['tls-certificates', tls?.certificates],
    ['tls-hostname', tls?.hostname],
  ].flatMap(([key, value]) => (value === undefined ? [] : [`${key}=${escaped(value)}`]));
  const rest = `/${escaped(exportName)}${parameters.length > 0 ? '?' : ''}${parameters.join('&')}`;
  if (address.kind === 'unix') return `${scheme}+unix://${rest}`;
  const host = address.host.includes(':') ? `[${address.host.replace('%', '%25')}]` : encodeURIComponent(address.host);
  const port = address.port === NBD_PORT ? '' : `:${address.port}`;
  return `${scheme}://${host}${port}${rest}`;
}

/** `/`, `:` and `@` need no escape in a path or a query and read better without. */
const escaped = (text: string): string =>
  encodeURIComponent(text).replace(/%(2F|3A|40)/g, (code) => decodeURIComponent(code));
