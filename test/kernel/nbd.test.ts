/** Forks that dmkit serves are disks of a real Linux kernel: over its own nbd driver with device-mapper on top, and as a virtual machine's disk. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { NbdServer } from '../../src/services/nbd/server.ts';
import { Session } from '../support/session.ts';
import { pattern, sha256 } from '../unit/golden.ts';
import { Kernel } from './vm/vm.ts';

const SECTORS = 128 * 1024;
const image = pattern('a', 0, SECTORS);

let folder: string;
let session: Session;
let server: NbdServer;
let port: number;
let kernel: Kernel;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'dmkit-nbd-'));
  session = new Session();
  session.loop(0, SECTORS, image);
  const create = (name: string, words: string) => session.dmsetup(['create', name, '--table', `0 ${SECTORS} ${words}`]);
  for (const [i, name] of ['first', 'second'].entries()) {
    session.loop(i + 1, SECTORS + 4096);
    await create(name, `snapshot /dev/loop0 /dev/loop${i + 1} P 8`);
  }
  await create('origin', 'snapshot-origin /dev/loop0');
  const { mapper } = session;
  server = new NbdServer({
    list: async () => (await mapper.list()).map(({ name }) => ({ name })),
    async open(name) {
      const { device, close } = mapper.open({ name });
      return { device, readOnly: false, close };
    },
  });
  const socket = join(folder, 'nbd.sock');
  await server.listenUnix(socket);
  port = await server.listenTcp({ port: 0 });
  const drive = `file=nbd+unix:///second?socket=${socket},format=raw,if=virtio,cache=none`;
  // The guest reaches this machine's loopback as 10.0.2.2.
  kernel = await Kernel.boot({
    qemu: ['-drive', drive, '-netdev', 'user,id=net', '-device', 'virtio-net-pci,netdev=net,romfile='],
  });
});

afterAll(async () => {
  await kernel?.close();
  await server?.stop();
  if (folder) rmSync(folder, { recursive: true, force: true });
});

/** Makes a filesystem on a device, fills it, checks it, and prints the checksum of what is in it. */
const useFilesystem = (device: string, content: string) => `
set -e
mkfs.ext4 -q -F ${device}
mount ${device} /mnt
mkdir /mnt/files
for i in $(seq 1 40); do echo "${content} $i" >/mnt/files/$i; done
head -c 3000000 /dev/urandom >/mnt/random
cp /bin/busybox /mnt/files/busybox
rm /mnt/files/7
sync
umount /mnt
e2fsck -f -n ${device}
`;

const sumOf = (device: string) => `
set -e
mount -o ro ${device} /mnt
(cd /mnt && find . -type f | sort | while read -r file; do sha256sum "$file"; done | sha256sum | cut -d' ' -f1)
umount /mnt
`;

const attach = () => `
set -e
nbd-client -N first 10.0.2.2 ${port} /dev/nbd0 -b 512 >/dev/null
dmsetup create stacked --table "0 ${SECTORS} linear /dev/nbd0 0"
`;
const detach = 'set -e; dmsetup remove stacked; nbd-client -d /dev/nbd0 >/dev/null';

it("a fork attached by the kernel's nbd driver, under device-mapper, carries a filesystem", async () => {
  expect(Number(await kernel.run(`${attach()}\nblockdev --getsz /dev/mapper/stacked`))).toBe(SECTORS);
  const checked = await kernel.run(useFilesystem('/dev/mapper/stacked', 'first'));
  expect(checked).toContain('Pass 5: Checking group summary information');
  const sum = (await kernel.run(sumOf('/dev/mapper/stacked'))).trim();
  expect(sum).toMatch(/^[0-9a-f]{64}$/);
  await kernel.run(detach);

  // The other fork takes another filesystem, as a disk of the machine, and the first one keeps its own.
  await kernel.run(useFilesystem('/dev/vdb', 'second'));
  const other = (await kernel.run(sumOf('/dev/vdb'))).trim();
  expect(other).not.toBe(sum);
  await kernel.run(attach());
  expect((await kernel.run(sumOf('/dev/mapper/stacked'))).trim()).toBe(sum);
  await kernel.run(detach);
  expect(sha256(await session.content(0))).toBe(sha256(image));
});

it('a filesystem goes on while its origin is overwritten', async () => {
  await kernel.run(attach());
  const sum = (await kernel.run(sumOf('/dev/mapper/stacked'))).trim();
  for (let at = 0; at < SECTORS; at += 4096)
    await session.put('origin', at, pattern('c', at, Math.min(4096, SECTORS - at)));
  expect((await kernel.run(`echo 3 >/proc/sys/vm/drop_caches; ${sumOf('/dev/mapper/stacked')}`)).trim()).toBe(sum);
  expect(await kernel.run('e2fsck -f -n /dev/mapper/stacked && e2fsck -f -n /dev/vdb')).toContain('Pass 5');
  await kernel.run(detach);
});
