/** Plays a scenario (lines as `Session` of test/support explains them) in a real kernel; the log comes out alike. */
import { pattern } from '../unit/golden.ts';
import type { Kernel, KernelDisk } from './vm/vm.ts';

/** Sectors of the patterns `b` and `c` that the guest has. */
export const PATTERN_SECTORS = 4096 + 256;

/**
 * The words of a scenario, for the guest's bash. Beyond those of `Session`: `keep NAME N` leaves a copy of `/dev/loopN` as
 * `/job/NAME.img`, `below NAME N` waits until a merge has left no more than N sectors allocated, `poll NAME` logs a status line, `mark NAME`
 * tells `onMark`.
 */
const WORDS = `
set -u
cd /tmp
run() {
  local status=0 text="$*"
  echo "$ $text"
  "$@" 2>why || status=$?
  [ $status -eq 0 ] || { cat why >&2; echo "[exit $status]"; }
}
put() {
  local failed="" from="bs=$(($5 * 512)) count=1 skip=$(($3 * 512)) iflag=skip_bytes"
  dd if="$1" of="/dev/mapper/$2" $from seek=$(($4 * 512)) oflag=direct,seek_bytes conv=notrunc,fsync 2>why ||
    failed=" [failed: $(sed -n 's/^dd: .*: //p' why | head -1)]"
  echo "put $1 /dev/mapper/$2 $3 $4 $5$failed"
}
state() {
  dmsetup table >tables
  dmsetup status >statuses
  echo "# state $1"
  for name in $(dmsetup ls | cut -f1 | sort); do
    sed -n "s/^$name: /table &/p" tables
    sed -n "s/^$name: /status &/p" statuses
  done
}
sum() {
  local sum
  sum=$(sha256sum "/dev/mapper/$2" 2>why) || sum=$(sed 's/.*: \\(.*\\)/[failed: \\1]/' why)
  echo "sha256 $1 \${sum%%  *}"
}
progress() { dmsetup status "$1" | sed -nE 's|.* ([0-9]+)/[0-9]+ ([0-9]+)$|\\1 \\2|p'; }
below() {
  local allocated metadata
  while read -r allocated metadata < <(progress "$1") && [ $allocated -gt $2 ] && [ $allocated != $metadata ]; do :; done
}
merged() {
  local allocated metadata
  while read -r allocated metadata < <(progress "$1") && [ $allocated != $metadata ]; do sleep 0.1; done
  echo "merged $1"
}
mark() { echo "mark $1" >&3; }
poll() { echo "poll $(dmsetup status "$1")"; }
keep() { blockdev --flushbufs "/dev/loop$2"; cat "/dev/loop$2" >"/job/$1.img"; echo "keep $1.img"; }
`;

/** Once after each boot. */
export async function sharePatterns(kernel: Kernel): Promise<void> {
  for (const tag of ['b', 'c'] as const) kernel.share(tag, pattern(tag, 0, PATTERN_SECTORS));
  await kernel.run('cp /job/b /job/c /tmp');
}

/** Disk N is `/dev/loopN` while the scenario plays; afterwards no device is left and all is on the disks. */
export async function play(
  kernel: Kernel,
  disks: readonly KernelDisk[],
  scenario: readonly string[],
  onMark?: (name: string) => void,
): Promise<string[]> {
  const attach = disks.map((disk, number) => `${disk.attach(number)} || exit 1`);
  const detach = disks.map((_, number) => `losetup -d /dev/loop${number} || exit 1`);
  const clean = ['for i in 1 2 3; do dmsetup remove_all; done', '[ "$(dmsetup ls)" = "No devices found" ] || exit 1'];
  const output = await kernel.run([WORDS, ...attach, ...scenario, ...clean, ...detach].join('\n'), onMark);
  return output.split('\n').slice(0, -1);
}
