import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceMapper, type Disk, directories, runningDaemon, startDaemon } from '../../api/index.ts';
import { run } from '../run.ts';
import { define, type ShortIo } from './command.ts';
import { fatImage } from './demo-image.ts';

const MIB = 1024 * 1024;

export const command = define({
  name: 'demo',
  operands: '',
  summary: 'Forks an image, changes both sides over NBD, and checks everything it claims. Leaves nothing behind.',
  help: 'Works in a directory of its own, with a daemon of its own. Exit status 1 if a claim does not hold.',
  async run({ io }) {
    // Asked for before anything is made, so that Ctrl-C can no longer end us without cleaning up.
    const { signal } = io;
    const demo = new Demo(io);
    try {
      await demo.play(signal);
    } catch (error) {
      if (signal?.aborted) return 130;
      if (!(error instanceof Failure)) throw error;
      io.stdout.write(`\nFAILED: ${error.message}\n`);
      return 1;
    } finally {
      await demo.cleanUp();
    }
    io.stdout.write(`\nAll ${demo.checks} claims hold. Nothing is left behind.\n`);
  },
});

/** A claim did not hold. */
class Failure extends Error {}

class Demo {
  checks = 0;
  readonly #io: ShortIo;
  readonly #directory = mkdtempSync(join(tmpdir(), 'dmkit-demo-'));
  readonly #env: Record<string, string | undefined>;
  #signal: AbortSignal | undefined;

  constructor(io: ShortIo) {
    this.#io = io;
    this.#env = { ...io.env, DMKIT_DIR: join(this.#directory, 'run'), DMKIT_STATE: join(this.#directory, 'state') };
  }

  async play(signal: AbortSignal | undefined): Promise<void> {
    this.#signal = signal;
    const image = join(this.#directory, 'disk.img');
    this.#say(`A disk image with ${this.#makeImage(image)}:`);
    const before = digest(readFileSync(image));
    const size = statSync(image).size;

    this.#say('\nFork it. Nothing is copied:');
    await this.#run('fork', 'disk.img', 'dev');
    const cow = statSync(join(this.#directory, 'dev.cow'));
    this.#check(
      `the COW file takes ${cow.blocks / 2} KiB on disk, the image ${size / 1024} KiB`,
      cow.blocks * 512 < size / 4,
    );
    this.#check('the image is as it was', digest(readFileSync(image)) === before);

    this.#say('\nBoth sides are served over NBD. Write to both, through sockets as any client would:');
    const mapper = await DeviceMapper.connect(directories(this.#env));
    const fork = await mapper.device('dev');
    const origin = await mapper.device('disk');
    try {
      await this.#change(fork, origin, before, size);
      this.#say('\nTo a Linux administrator it is a snapshot:');
      const status = await this.#run('dmsetup', 'status');
      // Two chunks of 32 sectors beside header and area: one changed on either side.
      this.#check('2 exceptions of 16 KiB are in the store', /^dev: 0 \d+ snapshot 128\/\d+ 64$/m.test(status));

      this.#say('\nWhat differs, to the sector:');
      await this.#run('diff', 'dev');
      const { differingBytes } = await mapper.diff('dev');
      this.#check('4096 bytes of the fork and 4096 of the origin', differingBytes === 8192);

      this.#say('\nThrow the changes away, with all connections open:');
      await this.#run('revert', 'dev');
      const [ours, theirs] = await Promise.all([fork.read(0, size), origin.read(0, size)]);
      this.#check('the fork equals its origin', ours.equals(theirs));
    } finally {
      await fork.close();
      await origin.close();
    }

    this.#say('\nAnd drop it:');
    await this.#run('drop', 'dev');
    this.#check('no device is left', (await mapper.list()).length === 0);
    this.#check('no COW file is left', !readdirSync(this.#directory).includes('dev.cow'));
    const after = readFileSync(image);
    this.#check('the image holds what was written to the origin', after.subarray(size - 4096).equals(filled('origin')));
    this.#check('and nothing of what was written to the fork', !after.includes('fork fork fork'));
  }

  async #change(fork: Disk, origin: Disk, before: string, size: number): Promise<void> {
    const same = digest(await fork.read(0, size)) === before;
    this.#check('the fork reads as the image', same);
    const middle = Math.floor(size / 2 / 4096) * 4096;
    const untouched = await origin.read(middle, 4096);
    const old = await fork.read(size - 4096, 4096);
    await fork.write(middle, filled('fork'));
    await fork.flush();
    await origin.write(size - 4096, filled('origin'));
    await origin.flush();
    this.#check('the fork holds what was written to it', (await fork.read(middle, 4096)).equals(filled('fork')));
    this.#check('the origin shows nothing of it', (await origin.read(middle, 4096)).equals(untouched));
    this.#check(
      'the origin holds what was written to it',
      (await origin.read(size - 4096, 4096)).equals(filled('origin')),
    );
    this.#check('the fork shows nothing of it', (await fork.read(size - 4096, 4096)).equals(old));
  }

  /** Ends the daemon and deletes everything. Never throws. */
  async cleanUp(): Promise<void> {
    try {
      await (await runningDaemon(directories(this.#env)))?.down({ force: true });
    } catch (error) {
      this.#io.stderr.write(`dmkit demo: ${(error as Error).message}\n`);
    }
    rmSync(this.#directory, { recursive: true, force: true });
  }

  /** What is on it, in words. */
  #makeImage(path: string): string {
    writeFileSync(path, '');
    truncateSync(path, 32 * MIB);
    // Debian keeps the administrator's programs out of a user's PATH.
    const env = { ...this.#io.env, PATH: `${this.#io.env.PATH ?? ''}:/usr/sbin:/sbin` };
    const made = spawnSync('mkfs.ext4', ['-q', '-F', path], { env, stdio: 'ignore' });
    if (made.status === 0) return 'an ext4 file system, 32 MiB';
    writeFileSync(path, fatImage('README  TXT', 'Hello from the image.\n'));
    return 'a FAT file system, 1.4 MiB';
  }

  #say(text: string): void {
    if (this.#signal?.aborted) throw new Failure('interrupted');
    this.#io.stdout.write(`${text}\n`);
  }

  #check(claim: string, holds: boolean): void {
    if (this.#signal?.aborted) throw new Failure('interrupted');
    if (!holds) throw new Failure(claim);
    this.checks++;
    this.#io.stdout.write(`  ok: ${claim}\n`);
  }

  /** Shows a command and its output, as the reader would see them. */
  async #run(...argv: string[]): Promise<string> {
    this.#say(`  $ dmkit ${argv.join(' ')}`);
    let output = '';
    const write = (text: string) => {
      output += text;
    };
    const daemon = () => startDaemon(directories(this.#env));
    const status = await run('dmkit', argv, {
      ...this.#io,
      env: this.#env,
      cwd: this.#directory,
      stdout: { write },
      stderr: { write },
      columns: undefined,
      progress: false,
      control: daemon,
      existing: daemon,
    });
    this.#io.stdout.write(output.replace(/^(?=.)/gm, '    '));
    if (status !== 0) throw new Failure(`dmkit ${argv.join(' ')} ended with status ${status}`);
    return output;
  }
}

const filled = (word: string) => Buffer.alloc(4096, `${word} `);
const digest = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
