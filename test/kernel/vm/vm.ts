/**
 * A real Linux kernel with device-mapper, in a virtual machine that is emulated in software: it needs no KVM and no
 * root. One boot (about 10 s) serves any number of scripts, and both sides see the same disk bytes between scripts.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

/** Scripts run from the checkout's root, as npm and vitest do; the compiled recorder lies elsewhere. */
const BUILD = join(process.cwd(), 'test/kernel/vm/build.sh');
/** The scratch disk is sparse: only what is written takes space. */
const SCRATCH = 16 * 2 ** 30;
const ALIGN = 2 ** 20;
const BOOT_LIMIT = 180_000;

/** A stretch of the scratch disk, which the guest can have as a loop device of exactly this size. */
export class KernelDisk {
  readonly sectors: number;
  readonly #fd: number;
  readonly #offset: number;

  constructor(fd: number, sectors: number, offset: number) {
    this.#fd = fd;
    this.sectors = sectors;
    this.#offset = offset;
  }

  /** The shell command that makes it `/dev/loopN`. The guest's caches end when it is detached. */
  attach(number: number): string {
    const where = `--offset ${this.#offset} --sizelimit ${this.sectors * 512}`;
    return `losetup --direct-io=on ${where} /dev/loop${number} /dev/vda`;
  }

  /** Only while it is not attached, as `read`, or while the machine stands still. */
  write(content: Uint8Array): void {
    if (content.length !== this.sectors * 512) throw new Error(`The disk takes ${this.sectors * 512} bytes`);
    writeSync(this.#fd, content, 0, content.length, this.#offset);
  }

  read(): Buffer {
    const content = Buffer.alloc(this.sectors * 512);
    readSync(this.#fd, content, 0, content.length, this.#offset);
    return content;
  }
}

export interface BootOptions {
  /** More qemu arguments, e.g. `-drive` for `/dev/vdb`, or a network. */
  qemu?: string[];
}

export class Kernel {
  readonly #folder: string;
  readonly #process: ChildProcess;
  readonly #scratch: number;
  readonly #waiting = new Map<string, (status: number) => void>();
  #onMark: ((name: string) => void) | undefined;
  #exited: string | undefined;
  #fail: (error: Error) => void = () => {};
  #used = 0;
  #jobs = 0;

  private constructor(folder: string, scratch: number, process: ChildProcess) {
    this.#folder = folder;
    this.#scratch = scratch;
    this.#process = process;
  }

  /** Builds the machine first where it is missing. Throws with the console's text when the guest does not come up. */
  static async boot({ qemu = [] }: BootOptions = {}): Promise<Kernel> {
    const cache = execFileSync(BUILD, { encoding: 'utf8' }).trim();
    const folder = mkdtempSync(join(tmpdir(), 'dmkit-kernel-'));
    const disk = join(folder, 'scratch.img');
    const scratch = openSync(disk, 'w+');
    ftruncateSync(scratch, SCRATCH);
    const machine = ['-accel', 'tcg,thread=multi', '-cpu', 'max', '-m', '1024', '-smp', '2', '-display', 'none'];
    const boot = ['-kernel', join(cache, 'vmlinuz'), '-initrd', join(cache, 'initrd.img'), '-no-reboot'];
    // setpriv: a test run that is killed leaves no machine behind.
    const child = spawn(
      'setpriv',
      [
        ...['--pdeathsig', 'KILL', 'qemu-system-x86_64'],
        ...[...machine, ...boot, '-append', 'console=ttyS0 quiet panic=-1 mitigations=off'],
        ...['-serial', `file:${join(folder, 'console.txt')}`, '-serial', 'stdio'],
        ...['-drive', `file=${disk},format=raw,if=virtio,cache=unsafe,discard=unmap`],
        ...['-virtfs', `local,path=${folder},mount_tag=job,security_model=none`],
        ...(qemu.includes('-netdev') ? qemu : ['-nic', 'none', ...qemu]),
      ],
      { stdio: ['pipe', 'pipe', 'pipe'] },
    );
    const kernel = new Kernel(folder, scratch, child);
    try {
      await kernel.#ready();
    } catch (error) {
      await kernel.close();
      throw error;
    }
    return kernel;
  }

  /** Zeroes, where there is no content. */
  disk(sectors: number, content?: Uint8Array): KernelDisk {
    const offset = this.#used;
    this.#used += Math.ceil((sectors * 512) / ALIGN) * ALIGN;
    if (this.#used > SCRATCH) throw new Error('The scratch disk is used up');
    const disk = new KernelDisk(this.#scratch, sectors, offset);
    if (content) disk.write(content);
    return disk;
  }

  /** Takes back the room of all disks so far, which nobody may use any more. New ones need content: old bytes are there. */
  giveUpDisks(): void {
    this.#used = 0;
  }

  /**
   * Runs a bash script as the guest's root; resolves with all it printed, rejects when its exit status is not 0. `onMark`
   * hears of `echo mark NAME >&3` while the script goes on.
   */
  async run(script: string, onMark?: (name: string) => void): Promise<string> {
    const id = `job${++this.#jobs}`;
    this.#onMark = onMark;
    writeFileSync(join(this.#folder, `${id}.sh`), script);
    const status = await new Promise<number>((resolve, reject) => {
      if (this.#exited) return reject(new Error(this.#exited));
      this.#fail = reject;
      this.#waiting.set(id, resolve);
      this.#process.stdin!.write(`${id}\n`);
    });
    const output = readFileSync(join(this.#folder, `${id}.out`), 'utf8');
    if (status !== 0) throw new Error(`The script ended with status ${status} in the kernel:\n${output}`);
    return output;
  }

  /** A file for the guest, which finds it as `/job/NAME`. */
  share(name: string, content: Uint8Array | string): void {
    writeFileSync(join(this.#folder, name), content);
  }

  /** What a script left as `/job/NAME`. */
  shared(name: string): Buffer {
    return readFileSync(join(this.#folder, name));
  }

  /** What is on disks, attached or not, if the machine loses its power now. It goes on afterwards. */
  crash(disks: readonly KernelDisk[]): Buffer[] {
    const { pid } = this.#process;
    const stopped = () =>
      readdirSync(`/proc/${pid}/task`).every((task) => {
        const stat = readFileSync(`/proc/${pid}/task/${task}/stat`, 'utf8');
        return stat.slice(stat.lastIndexOf(')') + 2).startsWith('T');
      });
    this.#process.kill('SIGSTOP');
    try {
      // A thread that is inside a write stops behind it.
      while (!stopped());
      return disks.map((disk) => disk.read());
    } finally {
      this.#process.kill('SIGCONT');
    }
  }

  async close(): Promise<void> {
    if (!this.#exited) {
      const gone = new Promise((resolve) => this.#process.once('exit', resolve));
      this.#process.kill('SIGKILL');
      await gone;
    }
    closeSync(this.#scratch);
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async #ready(): Promise<void> {
    let complaint = '';
    this.#process.stderr!.on('data', (text) => (complaint += text));
    await new Promise<void>((resolve, reject) => {
      const limit = setTimeout(() => this.#process.kill('SIGKILL'), BOOT_LIMIT);
      this.#fail = reject;
      this.#process.once('error', (error) => reject(error));
      this.#process.once('exit', (code, signal) => {
        clearTimeout(limit);
        this.#exited = `The kernel machine ended (${signal ?? code}). ${complaint}\n${this.#console()}`;
        this.#fail(new Error(this.#exited));
      });
      createInterface({ input: this.#process.stdout! }).on('line', (line) => {
        if (line.trim() === 'ready') {
          clearTimeout(limit);
          resolve();
        }
        const [id, status] = line.trim().split(' ');
        if (id === 'mark') this.#onMark?.(status);
        this.#waiting.get(id)?.(Number(status));
        this.#waiting.delete(id);
      });
    });
  }

  #console(): string {
    try {
      return readFileSync(join(this.#folder, 'console.txt'), 'utf8').slice(-4000);
    } catch {
      return '';
    }
  }
}
