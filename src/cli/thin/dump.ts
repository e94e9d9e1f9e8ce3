import { closeSync, openSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { openThinMetadata } from '../../api/index.ts';
import { fromSystem } from '../../errors.ts';
import { define, type ShortIo, UsageError } from '../short/command.ts';
import { numberOf, required, SNAPSHOT } from './options.ts';

const FORMATS = ['xml', 'human_readable'] as const;

export const command = define({
  name: 'thin dump',
  operands: 'METADATA',
  summary: 'Prints the metadata of a thin pool as XML, as thin_dump 0.9 does. Reads only.',
  help: `METADATA is a file or block device. What is printed is what dmkit thin restore and thin_restore read.
Metadata that is damaged is not guessed at: it ends with what is wrong, and status 1.`,
  options: {
    format: { value: 'FORMAT', short: 'f', help: `${FORMATS.join(' or ')}; xml unless given` },
    output: { value: 'FILE', short: 'o', help: 'print to a file' },
    repair: { short: 'r', help: 'leave out what is damaged, and tell it' },
    'dev-id': { value: 'ID', many: true, help: 'that thin device; may be given several times' },
    'skip-mappings': { help: 'devices without what they have mapped' },
    'metadata-snap': SNAPSHOT,
  },
  async run({ operands: [path], options, io }) {
    const format = FORMATS.find((each) => each === (options.format ?? 'xml'));
    if (!format) throw new UsageError(`--format is ${JSON.stringify(options.format)}, not ${FORMATS.join(' or ')}`);
    const devices = options['dev-id']?.split(',').map((id) => required(numberOf(id, '--dev-id'), '--dev-id'));
    const skipMappings = options['skip-mappings'] !== undefined;
    const snapshot = options['metadata-snap'] !== undefined;
    const lost = options.repair === undefined ? undefined : (what: string) => void io.stderr.write(`lost: ${what}\n`);
    const metadata = await openThinMetadata(path, { directory: io.cwd, snapshot });
    try {
      const output = openOutput(options.output, io);
      try {
        await metadata.dump(format, output.write, { devices, skipMappings, lost });
      } finally {
        output.close();
      }
    } finally {
      await metadata.close();
    }
  },
});

/** A file that is made or cut off, or what is printed. */
function openOutput(path: string | undefined, io: ShortIo): { write(text: string): void; close(): void } {
  if (path === undefined) return { write: (text) => void io.stdout.write(text), close() {} };
  const file = resolve(io.cwd, path);
  const trying = <T>(work: () => T): T => {
    try {
      return work();
    } catch (error) {
      throw fromSystem(error, `Cannot write ${file}`);
    }
  };
  const fd = trying(() => openSync(file, 'w'));
  return { write: (text) => void trying(() => writeFileSync(fd, text)), close: () => closeSync(fd) };
}
