/**
 * The blocks of Linux's persistent-data library, 4096 bytes each (`drivers/md/persistent-data`):
 *
 *      0      4       8             16
 *     +------+-------+-------------+-----------
 *     | csum |       | blocknr u64 | ...
 *     +------+-------+-------------+-----------
 *
 * The checksum covers all that follows it. What kind of block it is, is written nowhere: each kind has a salt of its own in
 * the checksum.
 */
import { crc32c } from '../../lib/crc32c.ts';
import { u64 } from '../struct.ts';

export const BLOCK_BYTES = 4096;

/** Memory of a block. */
export interface BlockData {
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

export interface Kind {
  readonly name: string;
  readonly salt: number;
  /** What is wrong with a block whose checksum is right. */
  fault?(block: BlockData): string | undefined;
}

/** The index of the space map of metadata. */
export const INDEX: Kind = { name: 'space map index', salt: 160478 };
export const BITMAP: Kind = { name: 'space map bitmap', salt: 240779 };

const AT_NUMBER = 8;

export function blockData(): BlockData {
  const buffer = new ArrayBuffer(BLOCK_BYTES);
  return { bytes: new Uint8Array(buffer), view: new DataView(buffer) };
}

const checksum = (bytes: Uint8Array, { salt }: Kind): number =>
  (crc32c(0xffffffff, bytes, 4, BLOCK_BYTES) ^ salt) >>> 0;

/** Fills in number and checksum, as the last thing before a block is written. */
export function seal({ bytes, view }: BlockData, number: number, kind: Kind): void {
  u64.set(view, AT_NUMBER, number);
  view.setUint32(0, checksum(bytes, kind), true);
}

/** The number that a block bears. */
export const numberOf = ({ view }: BlockData): number => u64.get(view, AT_NUMBER);

export const isSealed = ({ bytes, view }: BlockData, kind: Kind): boolean =>
  view.getUint32(0, true) === checksum(bytes, kind);
