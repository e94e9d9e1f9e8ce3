import type { Maybe } from '../../src/device/block-device.ts';
import type { PoolMetadata } from '../../src/stores/thin/pool-metadata.ts';

/** One data block. Throws as `allocateRun`. */
export function allocateBlock(pool: PoolMetadata): Maybe<number> {
  const run = pool.allocateRun(1);
  if (run instanceof Promise) return run.then(({ begin }) => begin);
  return run?.begin;
}
