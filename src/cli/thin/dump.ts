import { openThinMetadata } from '../../api/index.ts';
import { define, UsageError } from '../short/command.ts';
import { SNAPSHOT } from './options.ts';

const FORMATS = ['xml', 'human_readable'] as const;

export const command = define({
  name: 'thin dump',
  operands: 'METADATA',
  summary: 'Prints the metadata of a thin pool as XML, as thin_dump 0.9 does. Reads only.',
  help: `METADATA is a file or block device. What is printed is what dmkit thin restore and thin_restore read.
Metadata that is damaged is not guessed at: it ends with what is wrong, and status 1.`,
  options: {
    format: { value: 'FORMAT', short: 'f', help: `${FORMATS.join(' or ')}; xml unless given` },
    'metadata-snap': SNAPSHOT,
  },
  async run({ operands: [path], options, io }) {
    const format = FORMATS.find((each) => each === (options.format ?? 'xml'));
    if (!format) throw new UsageError(`--format is ${JSON.stringify(options.format)}, not ${FORMATS.join(' or ')}`);
    const snapshot = options['metadata-snap'] !== undefined;
    const metadata = await openThinMetadata(path, { directory: io.cwd, snapshot });
    try {
      await metadata.dump(format, (text) => io.stdout.write(text));
    } finally {
      await metadata.close();
    }
  },
});
