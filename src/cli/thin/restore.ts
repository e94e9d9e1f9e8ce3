import { restoreThinMetadata } from '../../api/index.ts';
import { define } from '../short/command.ts';
import { numberOf, required } from './options.ts';

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
    'transaction-id': { value: 'N', help: 'in place of that in the XML' },
    'data-block-size': { value: 'SECTORS', help: 'in place of that in the XML' },
    'nr-data-blocks': { value: 'N', help: 'in place of that in the XML; a dump of a metadata snapshot has none' },
    quiet: { short: 'q', help: 'print nothing' },
  },
  async run({ options, io }) {
    const transaction = numberOf(options['transaction-id'], '--transaction-id');
    const done = await restoreThinMetadata(required(options.input, '--input'), required(options.output, '--output'), {
      directory: io.cwd,
      overwrite: options.overwrite !== undefined,
      transactionId: transaction === undefined ? undefined : BigInt(transaction),
      dataBlockSize: numberOf(options['data-block-size'], '--data-block-size'),
      nrDataBlocks: numberOf(options['nr-data-blocks'], '--nr-data-blocks'),
    });
    if (options.quiet !== undefined) return;
    const { devices, mappedBlocks, metadataBlocks, metadataBlocksTotal } = done;
    io.stdout.write(
      `restored ${devices} thin devices with ${mappedBlocks} blocks; ${metadataBlocks} of ${metadataBlocksTotal} blocks of metadata are used\n`,
    );
  },
});
