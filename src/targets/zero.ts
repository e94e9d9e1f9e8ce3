import { bytes } from '../units.ts';
import { refuse } from './arguments.ts';
import type { TargetType } from './target.ts';

/** `zero`: reads as zeroes, forgets what is written (Linux `dm-zero.c`). */
export const zero: TargetType = {
  name: 'zero',
  version: [1, 1, 0],
  async create(line) {
    if (line.args.length > 0) throw refuse('zero', 'No arguments required');
    return {
      ranges: [],
      canDiscard: false,
      read(_at, into, start, length) {
        into.fill(0, start, start + length);
      },
      write() {},
      flush() {},
      discard() {},
      writeZeroes() {},
      extents: (_at, length) => [{ length: bytes(length), hole: true, zero: true }],
      status: () => '',
      close: async () => {},
    };
  },
};
