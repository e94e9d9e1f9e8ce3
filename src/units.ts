/** Lengths and addresses whose units must not be mixed. Casts live here and in `formats/`. */
declare const unit: unique symbol;
type Unit<U extends string> = number & { readonly [unit]: U };

export type Bytes = Unit<'bytes'>;
/** An address or length of 512-byte sectors, as in a table line, whatever the device's logical block size. */
export type Sector = Unit<'sector'>;
/** The index of a snapshot chunk, on the origin or on the COW device. */
export type Chunk = Unit<'chunk'>;

export const SECTOR = 512;

export const bytes = (n: number) => n as Bytes;
export const sector = (n: number) => n as Sector;
export const chunk = (n: number) => n as Chunk;
export const toBytes = (s: Sector) => (s * SECTOR) as Bytes;
/** Whole sectors in `b` bytes; a partial one at the end does not count. */
export const toSectors = (b: Bytes) => Math.floor(b / SECTOR) as Sector;
