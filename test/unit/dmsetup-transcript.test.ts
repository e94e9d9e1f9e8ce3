import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { Rig, withoutReasons } from './dmsetup-support.ts';

interface Step {
  argv: string[];
  stdin?: string;
  env?: Record<string, string>;
  status: number;
  stdout: string;
  stderr: string;
}

const path = new URL('../fixtures/dmsetup/transcript.json', import.meta.url);
const cases: { title: string; steps: Step[] }[] = JSON.parse(readFileSync(path, 'utf8'));

/** The help has our wording; the rest of what is printed is the real one's. */
const withoutHelp = (stderr: string) =>
  stderr
    .replace(/Usage:\n\ndmsetup[\s\S]*?\n\n(?=Mapped Device Name Fields|Command failed\.|$)/, '<usage>\n')
    .replace(/Mapped Device Name Fields\n[\s\S]*?Special Fields\n[\s\S]*?\n \n/, '<fields>\n')
    .replace(/Selection operands\n[\s\S]*?grouping\n\n/, '<selection>\n');

describe('dmsetup prints what the real one printed', () => {
  for (const { title, steps } of cases)
    test(title, async () => {
      const rig = new Rig();
      for (const { argv, stdin, env, ...expected } of steps) {
        const outcome = await rig.run(argv, { stdin, env });
        expect(
          { argv, ...outcome, stderr: withoutReasons(withoutHelp(outcome.stderr)) },
          `dmsetup ${argv.join(' ')}`,
        ).toEqual({ argv, ...expected });
      }
    });
});
