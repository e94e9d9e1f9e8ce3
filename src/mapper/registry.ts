/** Every target type, newest first, as `dmsetup targets` prints them. A new type is one line here. */
import { delay } from '../targets/delay.ts';
import { error } from '../targets/error.ts';
import { flakey } from '../targets/flakey.ts';
import { linear } from '../targets/linear.ts';
import { logWrites } from '../targets/log-writes.ts';
import { snapshotMerge } from '../targets/snapshot/merge.ts';
import { snapshotOrigin } from '../targets/snapshot/origin.ts';
import { snapshot } from '../targets/snapshot/snapshot.ts';
import { striped } from '../targets/striped.ts';
import type { TargetType } from '../targets/target.ts';
import { thinPool } from '../targets/thin/pool-target.ts';
import { thin } from '../targets/thin/thin.ts';
import { zero } from '../targets/zero.ts';

export const targetTypes: readonly TargetType[] = [
  thin,
  thinPool,
  logWrites,
  flakey,
  delay,
  zero,
  snapshotMerge,
  snapshotOrigin,
  snapshot,
  striped,
  linear,
  error,
];
