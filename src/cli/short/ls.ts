import { define, printJson } from './command.ts';
import { printSize, printTable } from './sizes.ts';

export const command = define({
  name: 'ls',
  operands: '',
  summary: 'Lists forks, origins and every other mapped device.',
  help: 'USED is what a fork keeps in its COW file: bytes of chunks that were written on either side.',
  options: { json: { help: 'print the list as JSON' } },
  async run({ options, io }) {
    const daemon = await io.existing();
    const volumes = (await daemon?.volumes()) ?? [];
    if (options.json !== undefined) printJson(io, volumes);
    else if (volumes.length === 0) io.stdout.write('No devices found\n');
    else {
      const rows = volumes.map((volume) => [
        volume.name,
        volume.origin ?? '-',
        printSize(volume.size),
        volume.used === undefined ? '-' : printSize(volume.used),
        volume.state + (volume.readOnly ? ', read-only' : '') + (volume.attached ? `, ${volume.attached}` : ''),
        volume.uri ?? '-',
      ]);
      io.stdout.write(printTable(['NAME', 'ORIGIN', 'SIZE', 'USED', 'STATE', 'URI'], rows, [2, 3]));
      for (const { name, note } of volumes) if (note) io.stdout.write(`${name}: ${note}\n`);
    }
    const fault = (await daemon?.daemon())?.fault;
    if (fault) io.stderr.write(`dmkit: ${fault}\n`);
  },
});
