import { spawn } from 'node:child_process';

export interface Outcome {
  /** -1: the program could not be started (not installed). */
  status: number;
  stdout: string;
  stderr: string;
}

const OUTPUT_MAX = 65536;

/** Runs a program to its end. Never through a shell. Does not reject. */
export function run(program: string, args: readonly string[]): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    const outcome: Outcome = { status: -1, stdout: '', stderr: '' };
    child.stdout.on('data', (part) => (outcome.stdout = (outcome.stdout + part).slice(-OUTPUT_MAX)));
    child.stderr.on('data', (part) => (outcome.stderr = (outcome.stderr + part).slice(-OUTPUT_MAX)));
    child.on('error', (error) => resolve({ ...outcome, stderr: error.message }));
    child.on('close', (status) => resolve({ ...outcome, status: status ?? 1 }));
  });
}
