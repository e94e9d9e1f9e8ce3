import { ioError } from '../errors.ts';
import type { TargetType } from './target.ts';

const fail = (): never => {
  throw ioError('Cannot reach the data: an error target stands in its place');
};

/** `error`: every request fails with EIO, a flush succeeds. Arguments are ignored and forgotten (Linux `dm-target.c`). */
export const error: TargetType = {
  name: 'error',
  version: [1, 5, 0],
  wildcard: true,
  async create() {
    return {
      ranges: [],
      canDiscard: false,
      read: fail,
      write: fail,
      flush() {},
      discard: fail,
      writeZeroes: fail,
      extents: fail,
      status: () => '',
      close: async () => {},
    };
  },
};
