/** Beside crash.test.ts, so that the two run side by side. */
import { describe } from 'vitest';
import { fewSeeds } from './few-seeds.ts';

describe('75. at every power cut while a merge is about', () => fewSeeds((kind) => kind.startsWith('merge')));
