import { define, printJson } from './command.ts';
import { deviceName } from './volume-name.ts';

export const command = define({
  name: 'attach',
  operands: 'NAME',
  summary: 'Makes a real block device of a device and prints its path, to be mounted, checked or partitioned.',
  help: `Needs root, and either the kernel's nbd with nbd-client, or FUSE and loop devices with
nbdfuse (Debian packages nbd-client; libnbd-bin and fuse3).`,
  options: { json: { help: 'print the result as JSON' } },
  async run({ operands: [word], options, io }) {
    const daemon = await io.control();
    const attachment = await daemon.attach(await deviceName(daemon, word));
    if (options.json !== undefined) printJson(io, attachment);
    else io.stdout.write(`${attachment.path}\n`);
  },
});
