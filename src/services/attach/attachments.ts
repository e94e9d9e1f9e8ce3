/**
 * Mapped devices as real block devices. Two ways, the first that the machine has:
 *
 *     nbd    kernel nbd  <- nbd-client <- nbd.sock          /dev/nbdN
 *     fuse   kernel loop <- a file of nbdfuse <- nbd.sock   /dev/loopN
 *
 * Both hold an NBD connection, so an attached device is open and cannot be removed. What is attached is written down in
 * the run directory: it outlives the daemon but no reboot, as the attachments themselves.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmdirSync, watch, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { DmError } from '../../errors.ts';
import { printNbdUri } from '../../formats/nbd/uri.ts';
import { Lock } from '../../lib/lock.ts';
import { textOf } from '../../lib/proc.ts';
import type { DeviceInfo, DeviceRef } from '../../mapper/control.ts';
import type { AttachControl, Attachment } from './attach-control.ts';
import { exists, flushBlockDevice, freeNbdDevice, hasProgram, loopFile, nbdPid, whoUses } from './block-devices.ts';
import { type Outcome, run } from './run.ts';

interface AttachmentRecord {
  /** When it was attached; the device is found by its number. */
  name: string;
  major: number;
  minor: number;
  path: string;
  way: 'nbd' | 'fuse';
  readOnly: boolean;
  /** Of the daemon whose connection feeds it: nbdfuse does not connect again. */
  daemon: string;
  /** `fuse` only: the file in the FUSE mount, and nbdfuse. */
  file?: string;
  pid?: number;
}

export interface AttachmentsOptions {
  /** Of the daemon. */
  directory: string;
  nbdSocket: string;
  /** Different in every run of the daemon. */
  daemon: string;
  info(device: DeviceRef): Promise<DeviceInfo>;
  /** The name that it has now; undefined without such a device. Asks nobody who may be at work. */
  nameOf(device: DeviceRef): string | undefined;
  log?(line: string): void;
}

export class Attachments implements AttachControl {
  readonly #options: AttachmentsOptions;
  readonly #lock = new Lock();
  readonly #children = new Map<number, ChildProcess>();
  #records: AttachmentRecord[];

  constructor(options: AttachmentsOptions) {
    this.#options = options;
    this.#records = this.#load();
  }

  async attachments(): Promise<Attachment[]> {
    return this.#records.map((record) => this.#describe(record));
  }

  attach(name: string): Promise<Attachment> {
    return this.#lock.run(async () => {
      const info = await this.#options.info({ name });
      if (!info.live)
        throw new DmError('NO_TABLE', 'ENXIO', `Cannot attach ${name}: it has no live table`, {
          hint: `look at: dmkit dmsetup info ${name}`,
        });
      if (info.suspended)
        throw new DmError('SUSPENDED', 'EBUSY', `Cannot attach ${name}: it is suspended, and reading it would block`, {
          hint: `dmkit dmsetup resume ${name}`,
        });
      const known = this.#records.find((record) => record.minor === info.minor && record.major === info.major);
      if (known)
        throw new DmError('ATTACHED', 'EBUSY', `Cannot attach ${name}: it is attached as ${known.path}`, {
          hint: `use ${known.path}, or first: dmkit detach ${name}`,
        });
      const way = await chooseWay(name);
      const record = way === 'nbd' ? await this.#attachNbd(info) : await this.#attachFuse(info);
      this.#records.push(record);
      this.#save();
      return this.#describe(record);
    });
  }

  detach(name: string): Promise<Attachment> {
    return this.#lock.run(async () => {
      const described = await this.attachments();
      const index = described.findIndex((entry) => entry.name === name || entry.path === name);
      if (index < 0)
        throw new DmError('NOT_ATTACHED', 'ENXIO', `Cannot detach ${name}: it is not attached`, {
          hint: 'look at: dmkit ls',
        });
      const record = this.#records[index];
      const attachment = described[index];
      const user = stillThere(record) ? await whoUses(record.path) : undefined;
      if (user)
        throw new DmError('ATTACHED_IN_USE', 'EBUSY', `Cannot detach ${record.path}: it is ${user}`, {
          hint: user.startsWith('mounted on') ? `first: umount ${user.slice('mounted on '.length)}` : undefined,
        });
      await this.#release(record, attachment.alive);
      this.#records.splice(index, 1);
      this.#save();
      return attachment;
    });
  }

  /** Of every device that is not in use. Resolves with those that stay. */
  async detachAll(): Promise<Attachment[]> {
    const left: Attachment[] = [];
    for (const attachment of await this.attachments())
      await this.detach(attachment.path).catch(() => left.push(attachment));
    return left;
  }

  #describe(record: AttachmentRecord): Attachment {
    const { major, minor, path, way, readOnly } = record;
    // A device that was renamed keeps its number.
    const name = this.#options.nameOf({ major, minor }) ?? record.name;
    return { name, path, way, readOnly, alive: this.#isAlive(record) };
  }

  #isAlive(record: AttachmentRecord): boolean {
    if (!stillThere(record)) return false;
    return record.way === 'nbd' || (record.daemon === this.#options.daemon && isRunning(record.pid, 'nbdfuse'));
  }

  #record(info: DeviceInfo, rest: Pick<AttachmentRecord, 'path' | 'way' | 'file' | 'pid'>): AttachmentRecord {
    const { name, major, minor, readOnly } = info;
    return { name, major, minor, readOnly, daemon: this.#options.daemon, ...rest };
  }

  async #attachNbd(info: DeviceInfo): Promise<AttachmentRecord> {
    const path = freeNbdDevice();
    if (!path)
      throw new DmError('ATTACH_FAILED', 'EBUSY', `Cannot attach ${info.name}: every /dev/nbd device is in use`, {
        hint: 'load the module with more: rmmod nbd; modprobe nbd nbds_max=64',
      });
    const args = ['-unix', this.#options.nbdSocket, path, '-name', info.name, '-block-size', '512', '-persist'];
    if (info.readOnly) args.push('-readonly');
    const outcome = await run('nbd-client', args);
    if (outcome.status !== 0) throw failed(`attach ${info.name} as ${path}`, 'nbd-client', outcome);
    return this.#record(info, { path, way: 'nbd' });
  }

  async #attachFuse(info: DeviceInfo): Promise<AttachmentRecord> {
    const mounts = join(this.#options.directory, 'attach');
    mkdirSync(mounts, { recursive: true, mode: 0o700 });
    const mount = mkdtempSync(join(mounts, `${info.minor}-`));
    const file = join(mount, info.name);
    const pid = await this.#startNbdfuse(info, file);
    const args = ['--find', '--show', '--partscan', file];
    if (info.readOnly) args.unshift('--read-only');
    const outcome = await run('losetup', args);
    const path = outcome.stdout.trim();
    if (outcome.status !== 0 || path === '') {
      await this.#stopNbdfuse(file, pid);
      throw failed(`attach ${info.name}`, 'losetup', outcome);
    }
    return this.#record(info, { path, way: 'fuse', file, pid });
  }

  /** Resolves with the pid when the file is there. */
  async #startNbdfuse(info: DeviceInfo, file: string): Promise<number> {
    const pidFile = `${dirname(file)}.pid`;
    await rm(pidFile, { force: true });
    const uri = printNbdUri({ kind: 'unix', socket: this.#options.nbdSocket, exportName: info.name });
    const args = ['--pidfile', pidFile, ...(info.readOnly ? ['--readonly'] : []), file, uri];
    const child = spawn('nbdfuse', args, { stdio: ['ignore', 'ignore', 'pipe'] });
    let stderr = '';
    child.stderr?.on('data', (part) => (stderr = (stderr + part).slice(-4096)));
    try {
      await new Promise<void>((resolve, reject) => {
        const watcher = watch(dirname(pidFile), () => ready());
        const end = (settle: () => void) => {
          watcher.close();
          settle();
        };
        const ready = () => exists(pidFile) && end(resolve);
        const gone = (status: number) =>
          end(() => reject(failed(`attach ${info.name}`, 'nbdfuse', { status, stderr, stdout: '' })));
        child.on('error', () => gone(-1));
        child.on('exit', (status) => gone(status ?? 1));
        ready();
      });
    } finally {
      await rm(pidFile, { force: true });
    }
    const pid = child.pid!;
    this.#children.set(pid, child);
    child.on('exit', (status, signal) => {
      this.#children.delete(pid);
      this.#options.log?.(`nbdfuse of ${info.name} (pid ${pid}) ended with ${signal ?? status}: ${stderr.trim()}`);
    });
    child.unref();
    return pid;
  }

  async #release(record: AttachmentRecord, alive: boolean): Promise<void> {
    if (stillThere(record)) {
      if (alive) await flushBlockDevice(record.path);
      const [program, args] =
        record.way === 'nbd' ? ['nbd-client', ['-d', record.path]] : ['losetup', ['--detach', record.path]];
      const outcome = await run(program as string, args as string[]);
      if (outcome.status !== 0) throw failed(`detach ${record.path}`, program as string, outcome);
      // A program that looked at the device just now (udev) keeps it for a moment; there is no event for its end.
      for (let tries = 0; stillThere(record); tries++) {
        if (tries === 100)
          throw new DmError('ATTACHED_IN_USE', 'EBUSY', `Cannot detach ${record.path}: something still has it open`, {
            hint: `it goes when that is closed; then again: dmkit detach ${record.path}`,
          });
        await delay(20);
      }
    }
    if (record.file) await this.#stopNbdfuse(record.file, record.pid);
  }

  async #stopNbdfuse(file: string, pid: number | undefined): Promise<void> {
    const mount = dirname(file);
    const child = pid === undefined ? undefined : this.#children.get(pid);
    const ended = child && new Promise<void>((done) => child.once('exit', () => done()));
    const outcome = await run('umount', [mount]);
    // A mount whose nbdfuse was killed answers nothing, but lets itself be taken away.
    if (outcome.status !== 0) await run('umount', ['--lazy', mount]);
    await ended;
    try {
      rmdirSync(mount);
    } catch {
      // Still mounted in another namespace: an empty directory stays.
    }
  }

  get #path(): string {
    return join(this.#options.directory, 'attachments.json');
  }

  #load(): AttachmentRecord[] {
    try {
      const records: AttachmentRecord[] = JSON.parse(readFileSync(this.#path, 'utf8'));
      // Block devices of before a reboot, or detached by hand, are no longer ours.
      return records.filter(stillThere);
    } catch {
      return [];
    }
  }

  #save(): void {
    writeFileSync(`${this.#path}.new`, JSON.stringify(this.#records), { mode: 0o600 });
    renameSync(`${this.#path}.new`, this.#path);
  }
}

/** The block device is still the one that was attached. */
function stillThere({ way, path, file }: AttachmentRecord): boolean {
  if (way === 'nbd') return nbdPid(path) !== undefined;
  const under = loopFile(path);
  // The kernel appends ` (deleted)` when the FUSE file is gone.
  return under !== undefined && under.replace(/ \(deleted\)$/, '') === file;
}

const isRunning = (pid: number | undefined, name: string) => textOf(`/proc/${pid}/comm`) === name;

/** EPERM without root, EOPNOTSUPP when the machine has neither way; says which packages would help. */
async function chooseWay(name: string): Promise<'nbd' | 'fuse'> {
  if (process.getuid?.() !== 0)
    throw new DmError('ATTACH_ROOT', 'EPERM', `Cannot attach ${name}: making a block device needs root`, {
      hint: `run the daemon as root (sudo dmkit …), or use the device without: dmkit uri ${name}`,
    });
  const kernelNbd = exists('/sys/module/nbd') || exists('/dev/nbd0') || (await run('modprobe', ['nbd'])).status === 0;
  if (kernelNbd && hasProgram('nbd-client')) return 'nbd';
  const kernelFuse = exists('/dev/fuse') && exists('/dev/loop-control');
  const missing = ['nbdfuse', 'losetup'].filter((program) => !hasProgram(program));
  if (kernelFuse && missing.length === 0) return 'fuse';

  const packages: Record<string, string> = { nbdfuse: 'libnbd-bin fuse3', losetup: 'mount' };
  const install = kernelNbd
    ? 'nbd-client'
    : kernelFuse
      ? missing.map((program) => packages[program]).join(' ')
      : undefined;
  const state = [
    kernelNbd ? 'the kernel has nbd, but there is no nbd-client' : 'the kernel has no nbd',
    kernelFuse
      ? `it has FUSE and loop, but there is no ${missing.join(' and no ')}`
      : `and no ${['/dev/fuse', '/dev/loop-control'].filter((path) => !exists(path)).join(' and no ')}`,
  ].join('; ');
  throw new DmError('ATTACH_IMPOSSIBLE', 'EOPNOTSUPP', `Cannot attach ${name}: ${state}`, {
    hint: install
      ? `apt install ${install}`
      : `load one of the modules (modprobe nbd, or modprobe -a fuse loop), or use the device without: dmkit uri ${name}`,
  });
}

function failed(attempted: string, program: string, { status, stderr }: Outcome): DmError {
  const said = stderr.trim() || `it ended with status ${status}`;
  return new DmError('ATTACH_FAILED', 'EIO', `Cannot ${attempted}: ${program}: ${said}`);
}
