import { DmError } from '../../api/index.ts';
import { define } from './command.ts';

export const command = define({
  name: 'uri',
  operands: 'NAME',
  summary: 'Prints the NBD URI of a device, for qemu, nbdcopy, nbdinfo, libguestfs and nbdfuse.',
  async run({ operands: [name], io }) {
    const volumes = (await (await io.existing())?.volumes()) ?? [];
    const volume = volumes.find((entry) => entry.name === name);
    if (!volume)
      throw new DmError('NO_DEVICE', 'ENXIO', `There is no device ${JSON.stringify(name)}`, {
        hint: 'look at: dmkit ls',
      });
    if (!volume.uri)
      throw new DmError('NO_TABLE', 'ENXIO', `${name} is not served: ${volume.note ?? 'it has no live table'}`, {
        hint: `load one and resume it: dmkit dmsetup load ${name} --table '…'`,
      });
    io.stdout.write(`${volume.uri}\n`);
  },
});
