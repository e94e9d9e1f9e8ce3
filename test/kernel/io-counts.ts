/** The kernel's part of test/support/io-counts.ts: the same writes through its `snapshot-origin`. */
import {
  CHUNK,
  type Counts,
  type CountsOf,
  DEPTHS,
  ORIGIN,
  placeOf,
  SNAPSHOTS,
  WRITE_BYTES,
  WRITES,
} from '../support/io-counts.ts';
import type { Kernel } from './vm/vm.ts';

/** What `disks` have been asked so far. */
export const ASKED = `
set -eu
asked() {
  local disk s
  reads=0 writes=0 flushes=0
  for disk in $disks; do
    read -ra s <"/sys/block/$disk/stat"
    reads=$((reads + s[0])) writes=$((writes + s[4])) flushes=$((flushes + s[15]))
  done
}
`;

/**
 * Each target's disk is a loop device of its own, with a volatile cache, so that flushes reach it. Its `stat` counts below
 * the target what the block layer has left after joining neighbours: reads, writes and flushes are the numbers 1, 5 and
 * 16, and a flush without data is a write too, which is why writes are counted before the flush at the end.
 *
 * `scatter` turns a write of consecutive blocks into as many writes to scattered chunks, all submitted before one is
 * waited for: the depth is how many blocks dd writes at once.
 */
const WORDS = `
${ASKED}
count() {
  local from=$1 depth=$2 r w f
  asked
  r=$reads w=$writes f=$flushes
  dd if=/dev/zero of=/dev/mapper/scatter bs=$((${WRITE_BYTES} * depth)) count=$((${WRITES} / depth)) \
    seek=$((${WRITE_BYTES} * from)) oflag=direct,seek_bytes conv=notrunc status=none
  asked
  r=$((reads - r)) w=$((writes - w))
  dd if=/dev/null of=/dev/mapper/origin conv=notrunc,fsync status=none
  asked
  echo "$r $w $((flushes - f))"
}
`;

export async function countThere(kernel: Kernel): Promise<CountsOf[]> {
  const runs = SNAPSHOTS.flatMap((snapshots) => DEPTHS.map((depth) => ({ snapshots, depth })));
  const writes = runs.length * WRITES;
  const disks = Array.from({ length: 1 + SNAPSHOTS.at(-1)! }, (_, i) =>
    kernel.disk(i === 0 ? ORIGIN : 2 * writes * CHUNK),
  );
  const block = WRITE_BYTES / 512;
  const scatter = Array.from(
    { length: writes },
    (_, i) => `${i * block} ${block} linear /dev/mapper/origin ${placeOf(i)}`,
  );
  kernel.share('scatter', `${scatter.join('\n')}\n`);
  const script = [
    WORDS,
    `disks="${disks.map((_, i) => `loop${i}`).join(' ')}"`,
    ...disks.map((disk, i) => disk.attach(i)),
    `dmsetup create origin --table "0 ${ORIGIN} snapshot-origin /dev/loop0"`,
    'dmsetup create scatter /job/scatter',
  ];
  // Snapshots are added as the runs go on; each run has chunks that nobody has written before.
  let taken = 0;
  for (const [i, { snapshots, depth }] of runs.entries()) {
    while (taken < snapshots) {
      taken++;
      script.push(`dmsetup create snap${taken} --table "0 ${ORIGIN} snapshot /dev/loop0 /dev/loop${taken} P ${CHUNK}"`);
    }
    script.push(`count ${i * WRITES} ${depth}`, `count ${i * WRITES} ${depth}`);
  }
  script.push(
    `dmsetup remove scatter origin ${Array.from({ length: taken }, (_, i) => `snap${i + 1}`).join(' ')}`,
    ...disks.map((_, i) => `losetup -d /dev/loop${i}`),
  );
  const found = (await kernel.run(script.join('\n'))).trim().split('\n').map(countsOf);
  return runs.map((run, i) => ({ ...run, first: found[2 * i], rewrites: found[2 * i + 1] }));
}

export function countsOf(line: string): Counts {
  const [reads, writes, flushes] = line.split(' ').map(Number);
  return { reads, writes, flushes };
}
