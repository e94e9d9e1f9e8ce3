import { repairThinMetadata } from '../../api/index.ts';
import { define, printJson } from '../short/command.ts';
import { OVERRIDES, overrides, required } from './options.ts';

export const command = define({
  name: 'thin repair',
  operands: '',
  summary: 'Makes the metadata of a thin pool from what can be read of damaged metadata.',
  help: `METADATA is a file or block device whose pool is not active. The damaged one is only read; the other one is there
already, as large as the metadata is to be. What is lost is told, each part in a line. Wrong counts, totals and unused
space are made anew. The superblock has to be whole: where it is not, try thin_repair.`,
  options: {
    input: { value: 'METADATA', short: 'i', help: 'what is damaged' },
    output: { value: 'METADATA', short: 'o', help: 'where to' },
    overwrite: { help: 'write over what the output holds' },
    ...OVERRIDES,
    json: { help: 'print the result as JSON' },
  },
  async run({ options, io }) {
    const [input, output] = [required(options.input, '--input'), required(options.output, '--output')];
    const overwrite = options.overwrite !== undefined;
    const done = await repairThinMetadata(input, output, { directory: io.cwd, overwrite, ...overrides(options) });
    if (options.json !== undefined) {
      printJson(io, done);
      return;
    }
    const { devices, mappedBlocks, lost, truncated } = done;
    for (const what of lost) io.stderr.write(`lost: ${what}\n`);
    if (truncated) io.stderr.write('and more\n');
    const parts = lost.length === 0 ? 'nothing is lost' : 'what is lost is listed';
    io.stdout.write(`${devices} thin devices with ${mappedBlocks} blocks; ${parts}\n`);
  },
});
