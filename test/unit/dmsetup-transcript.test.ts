import { describe, expect, test } from 'vitest';
import { cases } from '../support/transcript.ts';
import { Rig, withoutReasons } from './dmsetup-support.ts';

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
