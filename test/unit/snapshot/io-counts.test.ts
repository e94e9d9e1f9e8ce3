/** What a write to an origin costs the disks below, counted here and, once, in a real kernel (test/fixtures/kernel). */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ioCountsSuite } from '../../support/io-counts-suite.ts';
import { FIXTURES } from '../golden.ts';

const { counts } = JSON.parse(readFileSync(join(FIXTURES, 'io-counts.json'), 'utf8'));

ioCountsSuite(() => counts);
