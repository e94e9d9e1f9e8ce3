/** The recorded logs are read right: a model of three lines reaches the checksums that the kernel reached. */
import { describe, expect, it } from 'vitest';
import { loadImage, loadSteps, parseSteps, pattern, sha256 } from './golden.ts';

const originOf = (sectors: number) => pattern('a', 0, sectors);

describe('recorded logs', () => {
  it('know the pattern an origin starts with', () => {
    const [fresh] = loadSteps('snapshot-8').filter((step) => step.kind === 'sha256');
    expect(sha256(originOf(32776))).toBe(fresh.hash);
  });

  it('refuse a line that the grammar does not know', () => {
    expect(() => parseSteps('# state x\ntable a: 0 1 zero\nfoo\n')).toThrow('foo');
  });

  it('keep table lines whole, exit codes and refused writes', () => {
    const steps = parseSteps(
      '$ dmsetup create s --table 0 8 snapshot a b P 8\n[exit 1]\nput b /dev/mapper/t 1 2 3 [failed: No space]\n',
    );
    expect(steps).toEqual([
      { kind: 'command', words: ['dmsetup', 'create', 's', '--table', '0 8 snapshot a b P 8'], output: [], exit: 1 },
      { kind: 'put', tag: 'b', device: 't', skip: 1, seek: 2, count: 3, failed: 'No space' },
    ]);
  });

  it.each([
    ['snapshot-8', 32776],
    ['snapshot-16', 32768],
    ['snapshot-128', 32768],
  ])('%s: writes to either side of a copy give the recorded sums and origin images', (folder, sectors) => {
    const base = originOf(sectors);
    const snap = originOf(sectors);
    let sums = 0;
    for (const step of loadSteps(folder)) {
      if (step.kind === 'put') {
        const side = step.device === 'base' ? base : snap;
        side.set(pattern(step.tag, step.skip, step.count), step.seek * 512);
      } else if (step.kind === 'sha256') {
        sums++;
        expect(sha256(step.label === 'base' ? base : snap), step.label).toBe(step.hash);
      } else if (step.kind === 'keep' && step.image.startsWith('origin'))
        expect(sha256(loadImage(folder, step.image))).toBe(sha256(base));
    }
    expect(sums).toBe(6);
  });
});
