import { resolve } from 'node:path';
import {
  type DaemonStatus,
  DmError,
  directories,
  READY_FD,
  runDaemon,
  runningDaemon,
  startDaemon,
} from '../../api/index.ts';
import { version } from '../version.ts';
import { define, printJson, UsageError } from './command.ts';

export const command = define({
  name: 'up',
  operands: '',
  summary: 'Starts the daemon and brings back every device it had. Any command that needs it does so by itself.',
  help: `Sockets: control.sock and nbd.sock in $DMKIT_DIR, else /run/dmkit (root), else $XDG_RUNTIME_DIR/dmkit.
Tables and log: $DMKIT_STATE, else /var/lib/dmkit (root), else ~/.local/state/dmkit.`,
  options: {
    foreground: { help: 'stay, and log to stderr: for service managers' },
    'nbd-tcp': {
      value: '[HOST:]PORT',
      help: 'serve NBD over TCP too, on loopback unless told otherwise; without TLS there is no access control',
    },
    'tls-certificates': {
      value: 'DIR',
      help: 'TLS with server-cert.pem and server-key.pem; with ca-cert.pem, for clients that it signed only',
    },
    json: { help: 'print the status as JSON' },
  },
  async run({ options, io }) {
    const where = directories(io.env);
    const nbdTcp = parseAddress(options['nbd-tcp']);
    const tlsCertificates =
      options['tls-certificates'] === undefined ? undefined : resolve(options['tls-certificates']);
    if (tlsCertificates !== undefined && !nbdTcp) throw new UsageError('--tls-certificates needs --nbd-tcp');
    if (options.foreground !== undefined) {
      const readyFd = io.env[READY_FD] === undefined ? undefined : Number(io.env[READY_FD]);
      return runDaemon({ ...where, version: version(), nbdTcp, tlsCertificates, readyFd });
    }
    const before = await runningDaemon(where);
    const args = nbdTcp ? [`--nbd-tcp=${options['nbd-tcp']}`] : [];
    if (tlsCertificates !== undefined) args.push(`--tls-certificates=${tlsCertificates}`);
    const daemon = before ?? (await startDaemon(where, args));
    const status = await daemon.daemon();
    const isAsked = status.nbdTcp?.port === nbdTcp?.port && status.nbdTcp?.tls === (tlsCertificates !== undefined);
    if (before && nbdTcp && !isAsked)
      throw new DmError(
        'DAEMON_RUNS',
        'EBUSY',
        `Cannot serve NBD over TCP like this: the daemon with pid ${status.pid} runs already, ${tcpOf(status)}`,
        {
          hint: `dmkit down; dmkit up ${args.join(' ')}`,
        },
      );
    if (options.json !== undefined) printJson(io, status);
    else io.stdout.write(describe(status, before !== undefined));
  },
});

function describe({ pid, run, state, devices, nbdTcp }: DaemonStatus, before: boolean): string {
  const tcp = nbdTcp ? `  TCP    ${nbdTcp.host} port ${nbdTcp.port}${nbdTcp.tls ? ', TLS' : ''}\n` : '';
  return `the daemon ${before ? 'runs already' : 'runs'} (pid ${pid}) with ${devices} devices\n  run    ${run}\n  state  ${state}\n${tcp}`;
}

const tcpOf = ({ nbdTcp }: DaemonStatus) =>
  nbdTcp ? `with TCP port ${nbdTcp.port} and ${nbdTcp.tls ? '' : 'no '}TLS` : 'without TCP';

/** Throws UsageError. */
function parseAddress(text: string | undefined): { host?: string; port: number } | undefined {
  if (text === undefined) return undefined;
  const match = /^(?:(.+):)?(\d{1,5})$/.exec(text);
  const port = Number(match?.[2]);
  if (!match || port > 65535) throw new UsageError(`--nbd-tcp is ${JSON.stringify(text)}, not [HOST:]PORT`);
  return { host: match[1]?.replace(/^\[(.*)\]$/, '$1'), port };
}
