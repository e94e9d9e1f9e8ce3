/** The kernel's part of test/support/io-counts.ts: the same writes through its `snapshot-origin`. */
import {
  CHUNK,
  COW,
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

/**
 * Each target's disk is a loop device of its own, with a volatile cache, so that flushes reach it. Its `stat` counts below
 * the target what the block layer has left after joining neighbours: reads, writes and flushes are the numbers 1, 5 and 16, and a flush without
 * data is a write too, which is why writes are counted before the flush at the end.
 *
 * `scatter` turns one write of consecutive blocks into as many writes to scattered chunks, all submitted before one is
 * waited for: the depth is how much dd writes at once.
 */
const WORDS = `
set -eu
asked() {
  local disk s
  reads=0 writes=0 flushes=0
  for disk in $disks; do
    read -ra s <"/sys/block/\${disk#/dev/}/stat"
    reads=$((reads + s[0])) writes=$((writes + s[4])) flushes=$((flushes + s[15]))
  done
}
count() {
  asked
  local r=$reads w=$writes f=$flushes
  dd if=/dev/zero of=/dev/mapper/scatter bs=$((${WRITE_BYTES} * $1)) count=$((${WRITES} / $1)) oflag=direct conv=notrunc status=none
  asked
  r=$((reads - r)) w=$((writes - w))
  dd if=/dev/null of=/dev/mapper/origin conv=notrunc,fsync status=none
  asked
  echo "$r $w $((flushes - f))"
}
`;

export async function countThere(kernel: Kernel): Promise<CountsOf[]> {
  const most = Math.max(...SNAPSHOTS);
  const disks = Array.from({ length: 1 + most }, (_, i) => kernel.disk(i === 0 ? ORIGIN : COW));
  const block = WRITE_BYTES / 512;
  const scatter = Array.from(
    { length: WRITES },
    (_, i) => `${i * block} ${block} linear /dev/mapper/origin ${placeOf(i)}`,
  );
  kernel.share('scatter', `${scatter.join('\n')}\n`);
  const runs = SNAPSHOTS.flatMap((snapshots) => DEPTHS.map((depth) => ({ snapshots, depth })));
  const script = [
    WORDS,
    ...disks.map((disk, i) => disk.attach(i)),
    `disks="${disks.map((_, i) => `/dev/loop${i}`).join(' ')}"`,
    ...runs.flatMap(({ snapshots, depth }) => {
      const loops = Array.from({ length: snapshots }, (_, i) => i + 1);
      return [
        // Its first sector wiped, a store is made anew.
        ...loops.flatMap((i) => [
          `dd if=/dev/zero of=/dev/loop${i} bs=4k count=1 oflag=direct conv=notrunc status=none`,
          `dmsetup create snap${i} --table "0 ${ORIGIN} snapshot /dev/loop0 /dev/loop${i} P ${CHUNK}"`,
        ]),
        `dmsetup create origin --table "0 ${ORIGIN} snapshot-origin /dev/loop0"`,
        'dmsetup create scatter /job/scatter',
        `count ${depth}`,
        `count ${depth}`,
        'dmsetup remove scatter',
        'dmsetup remove origin',
        ...(loops.length > 0 ? [`dmsetup remove ${loops.map((i) => `snap${i}`).join(' ')}`] : []),
      ];
    }),
    ...disks.map((_, i) => `losetup -d /dev/loop${i}`),
  ];
  const found = (await kernel.run(script.join('\n'))).trim().split('\n').map(countsOf);
  return runs.map((run, i) => ({ ...run, first: found[2 * i], rewrites: found[2 * i + 1] }));
}

/** Of each count the lowest of three runs: at depth 16 it varies how many writes the block layer can join. As JSON. */
export async function recordCounts(kernel: Kernel): Promise<string> {
  const runs = [await countThere(kernel), await countThere(kernel), await countThere(kernel)];
  const lowest = (pick: (run: CountsOf[]) => Counts): Counts => {
    const counts = runs.map(pick);
    const least = (name: keyof Counts) => Math.min(...counts.map((count) => count[name]));
    return { reads: least('reads'), writes: least('writes'), flushes: least('flushes') };
  };
  const rows = runs[0].map(({ snapshots, depth }, i) => ({
    snapshots,
    depth,
    first: lowest((run) => run[i].first),
    rewrites: lowest((run) => run[i].rewrites),
  }));
  const release = (await kernel.run('uname -r')).trim();
  const body = rows.map((row) => `    ${JSON.stringify(row)}`).join(',\n');
  return `{\n  "kernel": "Linux ${release}",\n  "writes": ${WRITES},\n  "counts": [\n${body}\n  ]\n}\n`;
}

function countsOf(line: string): Counts {
  const [reads, writes, flushes] = line.split(' ').map(Number);
  return { reads, writes, flushes };
}
