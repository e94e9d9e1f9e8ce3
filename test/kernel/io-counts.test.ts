/** What a write to an origin costs the disks below, counted here and in a real kernel. */
import { afterAll, beforeAll } from 'vitest';
import type { CountsOf } from '../support/io-counts.ts';
import { ioCountsSuite } from '../support/io-counts-suite.ts';
import { countThere } from './io-counts.ts';
import { Kernel } from './vm/vm.ts';

let kernel: Kernel;
let counts: CountsOf[];
beforeAll(async () => {
  kernel = await Kernel.boot();
  counts = await countThere(kernel);
});
afterAll(() => kernel?.close());

ioCountsSuite(() => counts);
