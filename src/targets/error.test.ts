import { test } from 'vitest';
import { targetSuite } from '../testing/target-suite.ts';
import { error } from './error.ts';

targetSuite(test, {
  type: error,
  sectors: 100,
  args: () => '1:0 whatever',
  disks: 0,
  diskSectors: 0,
  data: 'fail',
  refused: [],
});
