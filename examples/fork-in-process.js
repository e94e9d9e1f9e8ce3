// Forks a disk image in this process, without a daemon: node examples/fork-in-process.js [IMAGE]
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceMapper } from 'dmkit';

const directory = mkdtempSync(join(tmpdir(), 'fork-in-process-'));
const image = process.argv[2] ?? join(directory, 'disk.img');
if (process.argv[2] === undefined) writeFileSync(image, Buffer.alloc(1024 * 1024, 'original '));

const dm = await DeviceMapper.open();
try {
  // The changes go to a COW file, in the format of the Linux kernel's snapshot target.
  await dm.fork(image, 'dev', { cow: join(directory, 'dev.cow') });

  const fork = await dm.device('dev');
  await fork.write(1000, Buffer.from('changed'));
  await fork.flush();
  console.log('the fork has ', JSON.stringify((await fork.read(996, 15)).toString('latin1')));
  await fork.close();

  const { differingBytes, ranges } = await dm.diff('dev');
  console.log(`${differingBytes} bytes differ:`, ranges);

  // Anyone who speaks NBD can use it as long as this process runs: qemu, nbdcopy, nbdinfo, libguestfs.
  const served = await dm.serve({ socket: join(directory, 'nbd.sock') });
  console.log('served as', served.uri('dev'));

  await dm.drop('dev');
} finally {
  await dm.close();
  rmSync(directory, { recursive: true });
}
