import { describe } from 'vitest';
import { fewSeeds } from './few-seeds.ts';

describe('75. at every power cut', () => fewSeeds((kind) => !kind.startsWith('merge')));
