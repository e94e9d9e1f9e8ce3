import { expect, test } from 'vitest';
import { Mapper } from '../mapper/mapper.ts';
import { FakeDisks } from '../testing/fake-disks.ts';
import { targetSuite } from '../testing/target-suite.ts';
import { linear } from './linear.ts';

targetSuite(test, {
  type: linear,
  sectors: 100,
  args: ([disk]) => `${disk} 28`,
  disks: 1,
  diskSectors: 128,
  data: 'keep',
  refused: [
    { args: '', text: 'Invalid argument count' },
    { args: '1:0', text: 'Invalid argument count' },
    { args: '1:0 0 0', text: 'Invalid argument count' },
    { args: '1:0 0x10', text: 'Invalid device sector' },
    { args: '1:0 -8', text: 'Invalid device sector' },
    { args: '1:0 8s', text: 'Invalid device sector' },
    { args: '1:7 0', text: 'Device lookup failed: Cannot open 1:7: no such disk' },
  ],
});

test('prints its device and start, nothing as status, and the IMA text', async () => {
  const disks = new FakeDisks();
  disks.ram(0);
  const mapper = new Mapper({ opener: disks });
  await mapper.create('a');
  await mapper.load({ name: 'a' }, [{ start: 0, length: 8, type: 'linear', args: '/dev/ram0 +16' }]);
  await mapper.resume({ name: 'a' });
  expect((await mapper.table({ name: 'a' }))[0].text).toBe('1:0 16');
  expect((await mapper.status({ name: 'a' }))[0].text).toBe('');
  expect((await mapper.measure({ name: 'a' }))[0].text).toBe(
    'target_name=linear,target_version=1.4.0,device_name=1:0,start=16;',
  );
});
