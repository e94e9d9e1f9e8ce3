// Volumes of a pool in this process, without a daemon: node examples/pool-in-process.js
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DeviceMapper } from 'dmkit';

const directory = mkdtempSync(join(tmpdir(), 'pool-in-process-'));
const image = join(directory, 'golden.img');
writeFileSync(image, Buffer.alloc(1024 * 1024, 'original '));

const dm = await DeviceMapper.open();
try {
  // Space that all volumes take from, in the format of the Linux kernel's thin pools. It grows by 20% whenever 80% of it are used.
  const file = join(directory, 'pool.img');
  await dm.createPool(file, { size: 64 * 1024 * 1024, autoextend: { threshold: 80, percent: 20 } });

  // Empty, over an image that it shows where it was not written, and a fork of that.
  await dm.createVolume('pool', 'empty', { size: 10 * 2 ** 30 });
  await dm.createVolume('pool', 'vm', { image });
  const volume = await dm.device('vm');
  await volume.write(1000, Buffer.from('changed'));
  await volume.flush();
  await volume.close();
  await dm.createVolume('pool', 'fork', { volume: 'vm' });

  const fork = await dm.device('fork');
  console.log('the fork has ', JSON.stringify((await fork.read(996, 15)).toString('latin1')));
  await fork.write(0, Buffer.from('its own'));
  await fork.close();
  const { origin, differingBytes } = await dm.diff('fork');
  console.log(`${differingBytes} bytes differ from ${origin}`);

  for (const { name, size, used } of (await dm.volumes()).filter(({ internal }) => !internal))
    console.log(`${name}: ${size} bytes, ${used} of them taken`);

  for (const name of ['fork', 'vm', 'empty', 'pool']) await dm.drop(name);
  console.log('the file of the pool is', statSync(file, { throwIfNoEntry: false }) ? 'there' : 'gone');
} finally {
  await dm.close();
  rmSync(directory, { recursive: true });
}
