import { restoreThinMetadata } from '../../api/index.ts';
import { define } from '../short/command.ts';
import { OVERRIDES, overrides, required } from './options.ts';

export const command = define({
  name: 'thin restore',
  operands: '',
  summary: 'Makes the metadata of a thin pool from XML, as thin_restore does.',
  help: `METADATA is a block device, or a file that is there already, as large as the metadata is to be. All of the XML is
checked before the first byte is written, and the superblock is written last. How many blocks a device
has mapped is counted, whatever the XML says; flags are cleared.`,
  options: {
    input: { value: 'XML', short: 'i', help: 'what to restore' },
    output: { value: 'METADATA', short: 'o', help: 'where to' },
    overwrite: { help: 'write over what METADATA holds' },
    ...OVERRIDES,
    quiet: { short: 'q', help: 'print nothing' },
  },
  async run({ options, io }) {
    const done = await restoreThinMetadata(required(options.input, '--input'), required(options.output, '--output'), {
      directory: io.cwd,
      overwrite: options.overwrite !== undefined,
      ...overrides(options),
    });
    if (options.quiet !== undefined) return;
    const { devices, mappedBlocks, metadataBlocks, metadataBlocksTotal } = done;
    io.stdout.write(
      `restored ${devices} thin devices with ${mappedBlocks} blocks; ${metadataBlocks} of ${metadataBlocksTotal} blocks of metadata are used\n`,
    );
  },
});
