import { readFileSync } from 'node:fs';

/** One command line, and what the real dmsetup made of it. */
export interface Step {
  argv: string[];
  stdin?: string;
  env?: Record<string, string>;
  status: number;
  stdout: string;
  stderr: string;
}

const file = new URL('../fixtures/dmsetup/transcript.json', import.meta.url);

/** What the real dmsetup printed on a real kernel (test/fixtures/dmsetup/README.md). */
export const cases: { title: string; steps: Step[] }[] = JSON.parse(readFileSync(file, 'utf8'));
