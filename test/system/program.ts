/** The program `bin/dmkit` in a world of its own: a directory for images, a daemon that no other test shares. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export const PROGRAM = join(import.meta.dirname, '../../bin/dmkit');

export interface Result {
  status: number;
  stdout: string;
  stderr: string;
}

export class World {
  readonly directory = mkdtempSync(join(tmpdir(), 'dmkit-system-'));
  readonly run = join(this.directory, 'run');
  readonly state = join(this.directory, 'state');
  readonly env: NodeJS.ProcessEnv = { ...process.env, DMKIT_DIR: this.run, DMKIT_STATE: this.state };
  readonly #children = new Set<ChildProcess>();

  path(...names: string[]): string {
    return join(this.directory, ...names);
  }

  /** Runs a program in the directory, to its end. */
  exec(program: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Result> {
    return new Promise((resolve, reject) => {
      const child = spawn(program, args, {
        cwd: this.directory,
        env: { ...this.env, ...env },
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      const result: Result = { status: 0, stdout: '', stderr: '' };
      child.stdout.on('data', (part) => (result.stdout += part));
      child.stderr.on('data', (part) => (result.stderr += part));
      child.on('error', reject);
      child.on('close', (status) => resolve({ ...result, status: status ?? 128 }));
    });
  }

  dmkit(...argv: string[]): Promise<Result> {
    return this.exec(PROGRAM, argv);
  }

  /** Runs a program that must succeed, and resolves with what it printed. */
  async ok(program: string, ...args: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.exec(program === 'dmkit' ? PROGRAM : program, args);
    if (status !== 0) throw new Error(`${program} ${args.join(' ')} ended with ${status}: ${stdout}${stderr}`);
    return stdout;
  }

  /** A daemon in the foreground, when it has said that it serves. */
  async foreground(
    ...args: string[]
  ): Promise<{ child: ChildProcess; ended: Promise<number | string>; log: () => string }> {
    const child = spawn(PROGRAM, ['up', '--foreground', ...args], {
      cwd: this.directory,
      env: this.env,
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#children.add(child);
    let log = '';
    const ended = new Promise<number | string>((done) =>
      child.on('close', (status, signal) => done(signal ?? status ?? -1)),
    );
    await new Promise<void>((ready, failed) => {
      child.stderr?.on('data', (part) => {
        log += part;
        if (/ serves \d+ devices/.test(log)) ready();
      });
      child.on('close', () => failed(new Error(`the daemon ended: ${log}`)));
    });
    return { child, ended, log: () => log };
  }

  /** Of the daemon that holds, or held last, the directory. */
  get pid(): number {
    return this.pidIn(this.run);
  }

  pidIn(run: string): number {
    return Number.parseInt(readFileSync(join(run, 'daemon.lock'), 'utf8'), 10);
  }

  /** As a crash would. Resolves when the process is gone. */
  async kill(): Promise<void> {
    const { pid } = this;
    process.kill(pid, 'SIGKILL');
    // No child of ours: /proc is where its end shows.
    while (isRunning(pid)) await new Promise((turn) => setImmediate(turn));
  }

  /** Ends everything that was started and deletes the directory. */
  async close(): Promise<void> {
    for (const { path } of JSON.parse((await this.attachments()) || '[]')) await this.exec('umount', [path]);
    await this.dmkit('down', '--force');
    for (const child of this.#children) child.kill('SIGKILL');
    rmSync(this.directory, { recursive: true });
  }

  private async attachments(): Promise<string> {
    const file = join(this.run, 'attachments.json');
    return existsSync(file) ? readFileSync(file, 'utf8') : '';
  }
}

export function isRunning(pid: number): boolean {
  try {
    // A zombie has ended, whoever forgets to ask for its status.
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return !/^Z/.test(stat.slice(stat.lastIndexOf(')') + 2));
  } catch {
    return false;
  }
}
