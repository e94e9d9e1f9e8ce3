import { define } from './command.ts';

export const command = define({
  name: 'detach',
  operands: 'NAME|PATH',
  summary: 'Writes what the block device holds back to the device and takes the block device away.',
  async run({ operands: [name], io }) {
    const { name: device, path, alive } = await (await io.control()).detach(name);
    if (!alive) io.stderr.write(`dmkit: ${path} was dead: what it had not written back to ${device} is lost\n`);
  },
});
