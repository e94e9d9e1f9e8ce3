/** The kernel's part of test/support/thin-io-counts.ts: the same lines, as words of its shell. */
import { placeOf, WRITE_BYTES } from '../support/io-counts.ts';
import { DATA, lines, METADATA, PLACES, POOL, type ThinCounts, thinCounts, VOLUME } from '../support/thin-io-counts.ts';
import { ASKED, countsOf } from './io-counts.ts';
import type { Kernel } from './vm/vm.ts';

/**
 * Each volume has a `scatter` over it, as in io-counts.ts. Its flush would be one for each of its lines, so that the volume is asked
 * for it. All of a line counts, with its flushes, which are writes too for the block layer.
 */
const WORDS = `
${ASKED}
disks="loop0 loop1"
message() { dmsetup message pool 0 "$*"; }
activate() {
  dmsetup create "t$1" --table "${VOLUME('/dev/mapper/pool', '$1')}"
  sed "s|VOLUME|/dev/mapper/t$1|" /job/scatter-thin | dmsetup create "s$1"
}
deactivate() { dmsetup remove "s$1" "t$1"; }
suspend() { dmsetup suspend "t$1"; }
resume() { dmsetup resume "t$1"; }
flush() { dd if=/dev/null of="/dev/mapper/t$1" conv=notrunc,fsync status=none; }
put() {
  dd if=/dev/zero of="/dev/mapper/s$1" bs=$((${WRITE_BYTES} * $4)) count=$(($3 / $4)) seek=$((${WRITE_BYTES} * $2)) \
    oflag=direct,seek_bytes conv=notrunc status=none
}
writes() { put "$@"; flush "$1"; }
flushed() {
  local i
  for ((i = $2; i < $2 + $3; i++)); do put "$1" $i 1 1; flush "$1"; done
}
reads() {
  dd if="/dev/mapper/s$1" of=/dev/null bs=$((${WRITE_BYTES} * $4)) count=$(($3 / $4)) skip=$((${WRITE_BYTES} * $2)) \
    iflag=direct,skip_bytes status=none
}
counted() {
  local r w f
  asked
  r=$reads w=$writes f=$flushes
  "$@"
  asked
  echo "$((reads - r)) $((writes - w - (flushes - f))) $((flushes - f))"
}
`;

export async function countThinThere(kernel: Kernel): Promise<ThinCounts[]> {
  const disks = [kernel.disk(METADATA), kernel.disk(DATA)];
  const block = WRITE_BYTES / 512;
  const scatter = Array.from({ length: PLACES }, (_, i) => `${i * block} ${block} linear VOLUME ${placeOf(i)}`);
  kernel.share('scatter-thin', `${scatter.join('\n')}\n`);
  const script = [
    WORDS,
    ...disks.map((disk, i) => disk.attach(i)),
    `dmsetup create pool --table "${POOL('/dev/loop0', '/dev/loop1')}"`,
    ...lines.map(({ text, operation }) => (operation === undefined ? text : `counted ${text}`)),
    'dmsetup remove pool',
    ...disks.map((_, i) => `losetup -d /dev/loop${i}`),
  ];
  return thinCounts((await kernel.run(script.join('\n'))).trim().split('\n').map(countsOf));
}
