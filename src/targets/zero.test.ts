import { test } from 'vitest';
import { targetSuite } from '../testing/target-suite.ts';
import { zero } from './zero.ts';

targetSuite(test, {
  type: zero,
  sectors: 100,
  args: () => '',
  disks: 0,
  diskSectors: 0,
  data: 'zeroes',
  refused: [{ args: '0', text: 'No arguments required' }],
});
