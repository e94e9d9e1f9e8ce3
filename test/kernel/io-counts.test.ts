/** What a write to an origin, and thin volumes, cost the disks below, counted here and in a real kernel. */
import { afterAll, beforeAll } from 'vitest';
import type { CountsOf } from '../support/io-counts.ts';
import { ioCountsSuite } from '../support/io-counts-suite.ts';
import type { ThinCounts } from '../support/thin-io-counts.ts';
import { thinIoCountsSuite } from '../support/thin-io-counts-suite.ts';
import { countThere } from './io-counts.ts';
import { countThinThere } from './thin-io-counts.ts';
import { Kernel } from './vm/vm.ts';

let kernel: Kernel;
let counts: CountsOf[];
let thin: ThinCounts[];
beforeAll(async () => {
  kernel = await Kernel.boot();
  counts = await countThere(kernel);
  thin = await countThinThere(kernel);
});
afterAll(() => kernel?.close());

ioCountsSuite(() => counts);
thinIoCountsSuite(() => thin);
