/** Every target type, newest first, as `dmsetup targets` prints them. A new type is one line here. */
import { error } from '../targets/error.ts';
import { linear } from '../targets/linear.ts';
import type { TargetType } from '../targets/target.ts';
import { zero } from '../targets/zero.ts';

export const targetTypes: readonly TargetType[] = [zero, linear, error];
