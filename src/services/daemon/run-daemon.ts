/** The process that is the daemon: from its start to its exit status. */
import { spawn } from 'node:child_process';
import { closeSync, fstatSync, writeSync } from 'node:fs';
import { DmError } from '../../errors.ts';
import { enginesMax } from '../engine/engines-max.ts';
import { Daemon } from './daemon.ts';
import { type Directories, ensurePrivateDirectory } from './directories.ts';
import { LogFile } from './log-file.ts';
import { toWire } from './wire-error.ts';

export interface RunOptions extends Directories {
  version: string;
  nbdTcp?: { host?: string; port?: number };
  tlsCertificates?: string;
  /** Started by a command that waits on this descriptor for `ready` or an error; logs to a file. Else to stderr. */
  readyFd?: number;
}

/** Resolves with the exit status when the daemon has ended. SIGTERM and SIGINT end it in order, a second one at once. */
export async function runDaemon({ readyFd, ...options }: RunOptions): Promise<number> {
  const background = readyFd !== undefined;
  // What `ps`, and whoever finds one of our locks, shows.
  process.title = 'dmkit';
  process.umask(0o077);
  const tell = (text: string): void => {
    if (readyFd === undefined) return;
    try {
      writeSync(readyFd, text);
      closeSync(readyFd);
    } catch {
      // Whoever waited has gone.
    }
  };
  let log = (line: string): void => {
    process.stderr.write(`${line}\n`);
  };
  let daemon: Daemon;
  try {
    if (background) {
      fstatSync(readyFd);
      ensurePrivateDirectory(options.state);
      const file = new LogFile(options.state);
      log = (line) => file.write(line);
      process.chdir('/');
    }
    const engines = enginesMax(process.env, { tls: options.tlsCertificates !== undefined });
    daemon = await Daemon.start({ ...options, engines, log });
  } catch (error) {
    if (!(error instanceof DmError) || error.code !== 'DAEMON_RUNS')
      log(error instanceof Error ? error.message : String(error));
    tell(`${JSON.stringify(toWire(error))}\n`);
    if (background) return 1;
    throw error;
  }

  let signals = 0;
  const onSignal = (signal: NodeJS.Signals) => {
    log(`${signal}${signals === 0 ? '' : ' again: ends at once'}`);
    if (signals++ > 0) process.exit(1);
    void daemon.end();
  };
  process.on('SIGTERM', onSignal);
  process.on('SIGINT', onSignal);
  // The terminal that the daemon was started from closes.
  process.on('SIGHUP', () => {});
  // Something nobody awaited: better told than fatal to every device. What is thrown past every handler is fatal.
  process.on('unhandledRejection', (reason) =>
    log(`unhandled rejection: ${reason instanceof Error ? reason.stack : reason}`),
  );
  process.on('uncaughtExceptionMonitor', (error) => log(`fatal: ${error.stack}`));
  tell('ready\n');
  if (!background && process.env.NOTIFY_SOCKET) notifySystemd(log);
  await daemon.ended;
  await daemon.closeControl();
  return 0;
}

/** sd_notify(3) for `Type=notify`. Node has no datagram sockets of that kind; systemd brings a program that does it. */
function notifySystemd(log: (line: string) => void): void {
  const child = spawn('systemd-notify', ['--ready'], { stdio: 'ignore' });
  child.on('error', (error) => log(`systemd is not told that dmkit is ready: ${error.message}`));
}
