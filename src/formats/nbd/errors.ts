import type { Errno } from '../../errors.ts';

/** "Error values": the only numbers that may be on the wire. They are Linux's. */
const WIRE = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  EOPNOTSUPP: 95,
  ESHUTDOWN: 108,
} as const satisfies Partial<Record<Errno, number>>;

const NEAREST: Partial<Record<Errno, keyof typeof WIRE>> = {
  EACCES: 'EPERM',
  EROFS: 'EPERM',
  EFBIG: 'ENOSPC',
};

/** The number a reply carries; EIO where the protocol has no word for it. */
export function toWire(errno: Errno): number {
  const name = NEAREST[errno] ?? errno;
  return name in WIRE ? WIRE[name as keyof typeof WIRE] : WIRE.EIO;
}

/** What a server's number means; "unknown values are to be treated as EINVAL". */
export function fromWire(error: number): Errno {
  for (const name of Object.keys(WIRE) as (keyof typeof WIRE)[]) if (WIRE[name] === error) return name;
  return 'EINVAL';
}
