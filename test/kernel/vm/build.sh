#!/usr/bin/env bash
# Makes what test/kernel/vm/vm.ts boots: Debian's own kernel and an initramfs that runs jobs for it (see init below).
#
#   build.sh [FOLDER]      FOLDER defaults to $KERNEL_VM, else ~/.cache/dmkit-kernel; prints it
#
# Nothing happens when FOLDER is complete and was made by this version of the script. Needs no root: the programs inside
# the initramfs are copied from this machine, the kernel package is downloaded with `apt-get download` and unpacked, not
# installed. Takes about 30 s.
set -euo pipefail
self=$(realpath "$0")
folder=${1:-${KERNEL_VM:-$HOME/.cache/dmkit-kernel}}
stamp=$(sha256sum <"$self" | cut -c1-16)
mkdir -p "$folder"
exec 9>"$folder/lock"
flock 9 # one builds, the others then find it done
if [ "$(cat "$folder/stamp" 2>/dev/null)" = "$stamp" ]; then echo "$folder"; exit 0; fi

programs=(bash dmsetup mkfs.ext4 e2fsck blockdev blkdiscard losetup mount umount sha256sum dd cmp truncate modprobe
  nbd-client lvm thin_check thin_dump thin_restore)
PATH=$PATH:/usr/sbin:/sbin
missing=()
for program in "${programs[@]}" qemu-system-x86_64 busybox cpio zstd depmod dpkg-deb apt-get; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "Cannot build the kernel machine: ${missing[*]} not found." >&2
  echo "Install: apt-get install qemu-system-x86 seabios ipxe-qemu busybox-static cpio zstd kmod dmsetup lvm2 thin-provisioning-tools nbd-client e2fsprogs" >&2
  exit 1
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/dmkit-kernel.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
package=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }')
[ -n "$package" ] || { echo "Cannot build the kernel machine: apt knows no linux-image-amd64. Run: apt-get update" >&2; exit 1; }
apt-get download -qq "$package" >apt.log 2>&1 || { cat apt.log >&2; exit 1; }
dpkg-deb -x "$package"_*.deb kernel
release=$(ls kernel/lib/modules)
depmod -b kernel "$release"

mkdir -p root/{bin,proc,sys,dev,run,tmp,etc,mnt,job,var/lock,lib/modules/"$release"}
cp "$(command -v busybox)" root/bin/busybox
# Programs keep their paths; the libraries each one names come along.
for program in "${programs[@]}"; do
  path=$(command -v "$program")
  mkdir -p "root${path%/*}"
  cp -L "$path" "root$path"
  { ldd "$path" 2>/dev/null || true; } | { grep -oE '/[^ ]+' || true; } | while read -r library; do
    [ -e "root$library" ] || { mkdir -p "root${library%/*}"; cp -L "$library" "root$library"; }
  done
done
# Modules, each with those it depends on.
modules=(virtio_pci virtio_blk virtio_net 9pnet_virtio 9p crc32c_generic dm-mod dm-snapshot dm-thin-pool dm-flakey dm-delay dm-log-writes dm-zero nbd loop ext4)
for module in "${modules[@]}"; do
  { modprobe -d kernel -S "$release" --show-depends "$module" 2>/dev/null || true; } | awk '$1 == "insmod" { print $2 }' |
    while read -r file; do
      target=root/lib/modules/$release${file#*"$release"}
      mkdir -p "${target%/*}"
      cp -n "$file" "$target"
    done
done
cp kernel/lib/modules/"$release"/modules.{order,builtin,builtin.modinfo} "root/lib/modules/$release/"
depmod -b root "$release"

# The guest answers each line "ID" on its second serial port by running /job/ID.sh (a folder of the host, over 9p), with
# everything printed going to /job/ID.out, and sends back "ID STATUS". It says "ready" first; "off" ends it.
cat >root/init <<INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/ DM_DISABLE_UDEV=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; ln -s /proc/self/fd /dev/fd
mount -t tmpfs -o size=80% tmp /tmp; mount -t tmpfs run /run
mkdir -p /run/lock/lvm /dev/shm /etc/lvm
for module in ${modules[*]}; do /usr/sbin/modprobe \$module; done
ip link set lo up; ip link set eth0 up 2>/dev/null && ip addr add 10.0.2.15/24 dev eth0
stty -F /dev/ttyS1 raw -echo
exec bash /serve
INIT
cat >root/serve <<'SERVE'
exec 3<>/dev/ttyS1
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 job /job || { echo "no job folder" >&3; }
cd /job
echo ready >&3
while read -r id <&3 && [ "$id" != off ]; do
  bash "/job/$id.sh" >"/job/$id.out" 2>&1 </dev/null
  echo "$id $?" >&3
done
sync
echo 1 >/proc/sys/kernel/sysrq
echo o >/proc/sysrq-trigger
sleep 60
SERVE
chmod +x root/init

(cd root && find . | cpio -o -H newc -R 0:0 --quiet | zstd -3 -q) >"$folder/initrd.img.new"
cp kernel/boot/vmlinuz-* "$folder/vmlinuz"
mv "$folder/initrd.img.new" "$folder/initrd.img"
echo "$stamp" >"$folder/stamp"
echo "$folder"
