import { define } from './command.ts';
import { deviceName } from './volume-name.ts';

export const command = define({
  name: 'detach',
  operands: 'NAME|PATH',
  summary: 'Writes what the block device holds back to the device and takes the block device away.',
  async run({ operands: [word], io }) {
    const daemon = await io.control();
    const { name: device, path, alive } = await daemon.detach(await deviceName(daemon, word));
    if (!alive) io.stderr.write(`dmkit: ${path} was dead: what it had not written back to ${device} is lost\n`);
  },
});
