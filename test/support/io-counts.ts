/**
 * What a write to an origin with snapshots costs the disks below: its I/Os and flushes, counted. The work is the same for
 * dmkit (here) and for the kernel (test/kernel/io-counts.ts): 4 KiB to the start of each of some chunks, which lie
 * scattered, `depth` writes at a time; a flush; the same again, as rewrites; a flush.
 */
import { Mapper } from '../../src/mapper/mapper.ts';
import { FakeDisks } from '../../src/testing/fake-disks.ts';
import { SlowDevice } from '../../src/testing/slow-device.ts';
import { bytes, SECTOR } from '../../src/units.ts';

/** Snapshots of the origin. */
export const SNAPSHOTS = [0, 1, 4, 16];
/** Writes under way at once. The next ones begin when all of these have ended. */
export const DEPTHS = [1, 16];
export const WRITES = 64;
export const WRITE_BYTES = 4096;
/** Sectors of a chunk. */
export const CHUNK = 128;
/** Sectors: so many chunks that no two of the first 871 that are written are neighbours. */
export const ORIGIN = 8191 * CHUNK;

/** Sector of write `i`. */
export const placeOf = (i: number) => ((i * 5003) % 8191) * CHUNK;

/** What all disks together were asked, the flush at the end included. */
export interface Counts {
  reads: number;
  writes: number;
  flushes: number;
}

export interface CountsOf {
  snapshots: number;
  depth: number;
  /** Each chunk is written for the first time since the snapshots were taken. */
  first: Counts;
  rewrites: Counts;
}

export const iosOf = ({ reads, writes }: Counts) => reads + writes;

/** On disks that answer in a later turn, as real ones do. */
export async function countHere(snapshots: number, depth: number, writes = WRITES): Promise<CountsOf> {
  const opener = new FakeDisks();
  const cow = 2 * writes * CHUNK;
  const below = Array.from({ length: 1 + snapshots }, (_, i) => {
    const disk = new SlowDevice(opener.ram(i, i === 0 ? ORIGIN : cow));
    opener.add(disk, `/dev/ram${i}`);
    return disk;
  });
  const mapper = new Mapper({ opener });
  const create = async (name: string, type: string, args: string) => {
    await mapper.create(name);
    await mapper.load({ name }, [{ start: 0, length: ORIGIN, type, args }]);
    await mapper.resume({ name });
  };
  for (let i = 1; i <= snapshots; i++) await create(`snap${i}`, 'snapshot', `/dev/ram0 /dev/ram${i} P ${CHUNK}`);
  await create('origin', 'snapshot-origin', '/dev/ram0');

  const device = mapper.device({ name: 'origin' });
  const data = new Uint8Array(WRITE_BYTES).fill(1);
  const count = async (): Promise<Counts> => {
    for (const disk of below) disk.seen.length = 0;
    for (let i = 0; i < writes; i += depth)
      await Promise.all(
        Array.from({ length: depth }, (_, k) => device.write(bytes(placeOf(i + k) * SECTOR), data, 0, WRITE_BYTES)),
      );
    await device.flush();
    const asked = below.flatMap(({ seen }) => seen.map(({ operation }) => operation));
    const reads = asked.filter((operation) => operation === 'read').length;
    const flushes = asked.filter((operation) => operation === 'flush').length;
    return { reads, writes: asked.length - reads - flushes, flushes };
  };
  const counts = { snapshots, depth, first: await count(), rewrites: await count() };
  await mapper.removeAll();
  return counts;
}
