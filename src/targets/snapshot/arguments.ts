/** The words of a snapshot table (dm-snapshot `snapshot_ctr`, `dm_exception_store_create`). */
import type { BlockDevice, Mode } from '../../device/block-device.ts';
import { chunkSizeFault } from '../../formats/exception-store.ts';
import { type Sector, sector } from '../../units.ts';
import { openArgument, parseNumber, refuse } from '../arguments.ts';
import type { TableLine } from '../target.ts';

export interface Features {
  /** `discard_zeroes_cow`: a mapped chunk that is discarded whole reads as zeroes. */
  readonly zeroesCow: boolean;
  /** `discard_passdown_origin`: discards go to the origin too. */
  readonly passDown: boolean;
}

export interface SnapshotArguments {
  readonly origin: BlockDevice;
  readonly cow: BlockDevice;
  readonly features: Features;
  readonly persistent: boolean;
  readonly overflow: boolean;
  /** As given; see `parseChunkSize`. */
  readonly chunkSize: Sector;
}

/** `<origin> <COW device> <P|PO|N> <chunk sectors> [<#features> <feature>…]`, checked and opened in the kernel's order. */
export async function readArguments(type: string, line: TableLine, originMode: Mode): Promise<SnapshotArguments> {
  const { args } = line;
  if (args.length < 4) throw refuse(type, 'requires 4 or more arguments');
  const features = parseFeatures(type, args.slice(4));
  const origin = await openArgument(line, type, args[0], originMode, 'Cannot get origin device');
  const cow = await openArgument(line, type, args[1], 'rw', 'Cannot get COW device');
  if (cow === origin) throw refuse(type, 'COW device cannot be the same as origin device');
  const { persistent, overflow } = parseStore(type, args[2]);
  const chunkSize = parseChunkSize(type, args[3], persistent, [cow.blockSize, origin.blockSize]);
  return { origin, cow, features, persistent, overflow, chunkSize };
}

function parseFeatures(type: string, words: readonly string[]): Features {
  if (words.length === 0) return { zeroesCow: false, passDown: false };
  const count = parseNumber(words[0]);
  if (count === undefined || count > 2 || count > words.length - 1)
    throw refuse(type, 'Invalid number of feature args');
  const features = words.slice(1, 1 + count).map((word) => word.toLowerCase());
  for (const feature of features)
    if (feature !== 'discard_zeroes_cow' && feature !== 'discard_passdown_origin')
      throw refuse(type, `Unrecognised feature requested: ${feature}`);
  const zeroesCow = features.includes('discard_zeroes_cow');
  const passDown = features.includes('discard_passdown_origin');
  if (passDown && !zeroesCow) throw refuse(type, 'discard_passdown_origin feature depends on discard_zeroes_cow');
  return { zeroesCow, passDown };
}

/** `P…` and `N…` in either case; the second letter of a `P` must be `O` if there is one. */
function parseStore(type: string, word: string): { persistent: boolean; overflow: boolean } {
  const kind = word[0]?.toUpperCase();
  if (kind === 'N') return { persistent: false, overflow: false };
  if (kind !== 'P') throw refuse(type, `Exception store type "${word}" is not P, PO or N`);
  if (word.length > 1 && word[1].toUpperCase() !== 'O')
    throw refuse(type, `Unsupported persistent store option "${word.slice(1)}"`);
  return { persistent: true, overflow: word.length > 1 };
}

/** Sectors; 0 stands for what is on disk, or the default. `blockSizes` in bytes: of the COW device and the origin. */
function parseChunkSize(type: string, word: string, persistent: boolean, blockSizes: number[]): Sector {
  const value = parseNumber(word);
  if (value === undefined || value > 0xffffffff) throw refuse(type, `Invalid chunk size "${word}"`);
  if (value === 0) {
    if (!persistent) throw refuse(type, 'Chunk size not set');
    return sector(0);
  }
  const fault = chunkSizeFault(value, blockSizes);
  if (fault) throw refuse(type, `${fault}: ${value} sectors`);
  return sector(value);
}
