import { SECTOR } from '../../units.ts';

/** Of a COW store, in bytes. */
export interface Fill {
  readonly allocated: number;
  readonly metadata: number;
  readonly total: number;
}

/** Out of the status line of a snapshot or a merge; undefined where it has no numbers. */
export function fillOf(text: string): Fill | undefined {
  const numbers = /^(\d+)\/(\d+) (\d+)$/.exec(text);
  if (!numbers) return undefined;
  const [allocated, total, metadata] = numbers.slice(1).map((sectors) => Number(sectors) * SECTOR);
  return { allocated, total, metadata };
}

/** How full a store is, as LVM counts it. */
export function percentOf({ allocated, total, metadata }: Fill): number {
  if (allocated === metadata) return 0;
  return Math.min(100, (100 * allocated) / total);
}
