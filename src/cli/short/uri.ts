import { DmError } from '../../api/index.ts';
import { define } from './command.ts';
import { findVolume, splitVolume } from './volume-name.ts';

export const command = define({
  name: 'uri',
  operands: 'NAME',
  summary: 'Prints the NBD URI of a device, for qemu, nbdcopy, nbdinfo, libguestfs and nbdfuse.',
  async run({ operands: [word], io }) {
    const volumes = (await (await io.existing())?.volumes()) ?? [];
    const volume = splitVolume(word) ? findVolume(volumes, word) : volumes.find((entry) => entry.name === word);
    if (!volume)
      throw new DmError('NO_DEVICE', 'ENXIO', `There is no device ${JSON.stringify(word)}`, {
        hint: 'look at: dmkit ls',
      });
    if (!volume.uri)
      throw new DmError('NO_TABLE', 'ENXIO', `${volume.name} is not served: ${volume.note ?? 'it has no live table'}`, {
        hint: `load one and resume it: dmkit dmsetup load ${volume.name} --table '…'`,
      });
    io.stdout.write(`${volume.uri}\n`);
  },
});
