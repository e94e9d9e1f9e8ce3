import type { Control } from '../api/index.ts';

/** All that a command touches of the world outside, so that a test can be that world. */
export interface CommandIo {
  readonly stdout: { write(text: string): void };
  readonly stderr: { write(text: string): void };
  /** All of standard input, to its end. */
  stdin(): Promise<string>;
  readonly env: Record<string, string | undefined>;
  /** Absolute; relative paths in a table start here. */
  readonly cwd: string;
  /** The mapper, its daemon started if it does not run yet. */
  control(): Promise<Control>;
  /** The mapper if its daemon runs; nothing is started. */
  existing(): Promise<Control | undefined>;
  /** Runs a program to its end with our standard streams and resolves with its exit status. Never through a shell. */
  exec?(argv: readonly string[]): Promise<number>;
  /** Width of the terminal that stdout is; absent when it is none. */
  readonly columns?: number;
  /** Aborted by Ctrl-C. */
  readonly signal?: AbortSignal;
}
