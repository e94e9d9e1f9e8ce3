/** What thin volumes cost the disks below, counted here and, once, in a real kernel (test/fixtures/kernel). */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { thinIoCountsSuite } from '../../support/thin-io-counts-suite.ts';
import { FIXTURES } from '../golden.ts';

const { thin } = JSON.parse(readFileSync(join(FIXTURES, 'io-counts.json'), 'utf8'));

thinIoCountsSuite(() => thin);
