/** Words of `thin-pool` and `thin` table lines (Linux `dm-thin.c`, `pool_ctr`, `thin_ctr`). */
import { TableError } from '../../errors.ts';
import { DEVICE_MAX } from '../../formats/thin/values.ts';
import { type Sector, sector } from '../../units.ts';
import { parseNumber, refuse } from '../arguments.ts';

/** What a table asks of a pool. */
export interface Features {
  /** New blocks are zeroed before they are used in part. */
  zero: boolean;
  discard: boolean;
  /** Discards reach the data device. */
  passDown: boolean;
  readOnly: boolean;
  /** Out of space, a write fails at once instead of waiting for more. */
  errorIfNoSpace: boolean;
}

export interface PoolArguments {
  blockSize: Sector;
  /** Blocks: an event is raised when no more are free. */
  lowWater: number;
  features: Features;
}

const BLOCK_MIN = 128;
const BLOCK_MAX = 2_097_152;
/** Fewer than there are. */
const FEATURES_MAX = 4;

/** In the order of a table line. */
export const FEATURE_WORDS: readonly (readonly [
  word: string,
  on: (features: Features) => boolean,
  set: (features: Features) => void,
])[] = [
  ['skip_block_zeroing', (f) => !f.zero, (f) => void (f.zero = false)],
  ['ignore_discard', (f) => !f.discard, (f) => void (f.discard = false)],
  ['no_discard_passdown', (f) => !f.passDown, (f) => void (f.passDown = false)],
  ['read_only', (f) => f.readOnly, (f) => void (f.readOnly = true)],
  ['error_if_no_space', (f) => f.errorIfNoSpace, (f) => void (f.errorIfNoSpace = true)],
];

/** The words before the devices are opened. */
export function readFeatures(args: readonly string[]): Features {
  if (args.length < 4) throw refuse('thin-pool', 'Invalid argument count');
  if (args[0] === args[1]) throw refuse('thin-pool', 'Error setting metadata or data device');
  const features: Features = { zero: true, discard: true, passDown: true, readOnly: false, errorIfNoSpace: false };
  const words = args.slice(4);
  if (words.length === 0) return features;
  const count = parseNumber(words[0]);
  if (count === undefined || count > FEATURES_MAX || count > words.length - 1)
    throw refuse('thin-pool', 'Invalid number of pool feature arguments');
  for (const word of words.slice(1, 1 + count)) {
    const feature = FEATURE_WORDS.find(([name]) => name === word.toLowerCase());
    if (!feature) throw refuse('thin-pool', 'Unrecognised pool feature requested');
    feature[2](features);
  }
  return features;
}

/** Sizes, which are looked at after the devices. */
export function readSizes(args: readonly string[]): { blockSize: Sector; lowWater: number } {
  const blockSize = parseNumber(args[2]);
  if (blockSize === undefined || blockSize < BLOCK_MIN || blockSize > BLOCK_MAX || blockSize % BLOCK_MIN !== 0)
    throw refuse('thin-pool', 'Invalid block size');
  const lowWater = parseLowWater(args[3]);
  if (lowWater === undefined) throw refuse('thin-pool', 'Invalid low water mark');
  return { blockSize: sector(blockSize), lowWater };
}

/** 64 bits, beyond 2^53 as near as a number comes: nobody has so many blocks. */
function parseLowWater(word: string): number | undefined {
  if (!/^\+?[0-9]+$/.test(word) || BigInt(word.replace('+', '')) >= 2n ** 64n) return undefined;
  return Number(word);
}

/** A device's number in a table line or a message; undefined for anything but a decimal of 24 bits. */
export function parseDevice(word: string): number | undefined {
  const id = parseNumber(word);
  return id === undefined || id > DEVICE_MAX ? undefined : id;
}

export const thinRefused = (errno: 'EINVAL' | 'ENODATA' | 'EBUSY', text: string) =>
  new TableError('TABLE_ARGUMENT', errno, `thin: ${text}`);
