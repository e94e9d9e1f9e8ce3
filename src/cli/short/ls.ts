import { define, printJson } from './command.ts';
import { printSize, printTable } from './sizes.ts';

export const command = define({
  name: 'ls',
  operands: '',
  summary: 'Lists forks, volumes, pools, origins and every other mapped device.',
  help: `USED is what a fork keeps in its COW file: bytes of chunks that were written on either side; what a
volume has mapped, shared or not; or what a pool has given out.`,
  options: {
    all: { short: 'a', help: 'list the parts of pools, too' },
    json: { help: 'print the list as JSON' },
  },
  async run({ options, io }) {
    const daemon = await io.existing();
    const all = options.all !== undefined;
    const volumes = ((await daemon?.volumes()) ?? []).filter(({ internal }) => all || !internal);
    if (options.json !== undefined) printJson(io, volumes);
    else if (volumes.length === 0) io.stdout.write('No devices found\n');
    else {
      const rows = volumes.map((volume) => [
        volume.pool === undefined ? volume.name : `${volume.pool}/${volume.name}`,
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
