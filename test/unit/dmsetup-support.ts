/** dmsetup in this process, over a mapper of its own with the disks A, B, C: 1:0, 1:1, 1:2. */
import { dmsetup } from '../../src/cli/dmsetup/dmsetup.ts';
import type { MemoryDevice } from '../../src/device/memory.ts';
import { Mapper } from '../../src/mapper/mapper.ts';
import { FakeDisks } from '../../src/testing/fake-disks.ts';

export interface Outcome {
  status: number;
  stdout: string;
  stderr: string;
}

export interface RunOptions {
  stdin?: string;
  env?: Record<string, string>;
  columns?: number;
  signal?: AbortSignal;
  cwd?: string;
}

export class Rig {
  readonly disks = new FakeDisks();
  readonly a: MemoryDevice = this.disks.ram(0);
  readonly b: MemoryDevice = this.disks.ram(1);
  readonly c: MemoryDevice = this.disks.ram(2);
  readonly mapper = new Mapper({ opener: this.disks, major: 254 });
  /** What ls --exec ran. */
  readonly executed: (readonly string[])[] = [];
  /** Milliseconds that commands slept. */
  slept = 0;
  /** How often a command asked for the mapper. */
  asked = 0;
  /** Runs when a command sleeps. */
  whileAsleep: () => void | Promise<void> = () => {};

  async run(argv: readonly string[], options: RunOptions = {}): Promise<Outcome> {
    let [stdout, stderr] = ['', ''];
    const control = async () => {
      this.asked++;
      return this.mapper;
    };
    const status = await dmsetup(
      argv,
      {
        stdout: { write: (text) => void (stdout += text) },
        stderr: { write: (text) => void (stderr += text) },
        stdin: async () => options.stdin ?? '',
        env: options.env ?? {},
        cwd: options.cwd ?? '/',
        columns: options.columns,
        signal: options.signal,
        control,
        existing: control,
        exec: async (argv) => {
          this.executed.push(argv);
          if (argv[0] === 'nosuch') throw new Error('spawn nosuch ENOENT');
          if (argv[0] === 'echo' || argv[0] === '/bin/echo') stdout += `${argv.slice(1).join(' ')}\n`;
          return 0;
        },
      },
      async (ms) => {
        this.slept += ms;
        await this.whileAsleep();
      },
    );
    return { status, stdout, stderr };
  }

  /** Runs a command line; blanks separate words, quotes keep them together. */
  dm(line: string, options?: RunOptions): Promise<Outcome> {
    return this.run(words(line), options);
  }

  /** As `dm`, for a command that must succeed in silence on stderr. Resolves with its stdout. */
  async ok(line: string, options?: RunOptions): Promise<string> {
    const { status, stdout, stderr } = await this.dm(line, options);
    if (status !== 0 || stderr !== '') throw new Error(`dmsetup ${line}: status ${status}\n${stderr}`);
    return stdout;
  }

  /** As `dm`, for a command that must fail. Resolves with its stderr, without the reasons that only dmkit gives. */
  async fails(line: string, options?: RunOptions): Promise<string> {
    const { status, stderr } = await this.dm(line, options);
    if (status !== 1) throw new Error(`dmsetup ${line}: status ${status}, not 1\n${stderr}`);
    return withoutReasons(stderr);
  }
}

export const withoutReasons = (stderr: string) => stderr.replace(/^ {2}(?:reason|hint): .*\n/gm, '');

/** Words as a shell would have them: '…' and "…" as they are, \n in $'…'. */
export function words(line: string): string[] {
  return [...line.matchAll(/(?:\$'[^']*'|'[^']*'|"[^"]*"|[^\s'"])+/g)].map(([word]) =>
    word.replace(/\$'([^']*)'|'([^']*)'|"([^"]*)"/g, (_, dollar?: string, single?: string, double?: string) =>
      dollar !== undefined ? dollar.replaceAll('\\n', '\n') : (single ?? double ?? ''),
    ),
  );
}
