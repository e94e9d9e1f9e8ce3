import { openThinMetadata, type ThinDeltaRange } from '../../api/index.ts';
import { define, type ShortIo } from '../short/command.ts';
import { numberOf, required, SNAPSHOT } from './options.ts';

export const command = define({
  name: 'thin delta',
  operands: 'METADATA',
  summary: 'Prints what differs between two thin devices of a pool, as thin_delta does. Reads only.',
  help: `Numbers are of blocks of the pool, whose size in sectors is data_block_size. What is the same or differs is
told by where the blocks are mapped, not by what they hold: a block written again in place is the same.
With --json, each range says which data blocks it leads to, and what is the same is left out, and not even read
where both devices share it.`,
  options: {
    snap1: { value: 'ID', help: 'number of the one device' },
    snap2: { value: 'ID', help: 'number of the other' },
    thin1: { value: 'ID', help: 'the same as --snap1' },
    thin2: { value: 'ID', help: 'the same as --snap2' },
    verbose: { help: 'print the data blocks too' },
    json: { help: 'print only what differs, as JSON' },
    'metadata-snap': SNAPSHOT,
  },
  async run({ operands: [path], options, io }) {
    const left = required(numberOf(options.snap1 ?? options.thin1, '--snap1'), '--snap1');
    const right = required(numberOf(options.snap2 ?? options.thin2, '--snap2'), '--snap2');
    const snapshot = options['metadata-snap'] !== undefined;
    const metadata = await openThinMetadata(path, { directory: io.cwd, snapshot });
    try {
      if (options.json === undefined)
        await metadata.printDelta(left, right, options.verbose !== undefined, (text) => io.stdout.write(text));
      else {
        const { dataBlockSize } = await metadata.superblock();
        await printRanges(metadata.delta(left, right), { left, right, dataBlockSize }, io);
      }
    } finally {
      await metadata.close();
    }
  },
});

/** Range by range: there may be millions. */
async function printRanges(ranges: AsyncIterable<ThinDeltaRange>, head: object, io: ShortIo): Promise<void> {
  io.stdout.write(`${JSON.stringify(head, undefined, 2).slice(0, -2)},\n  "ranges": [`);
  let separator = '';
  for await (const range of ranges) {
    io.stdout.write(`${separator}\n    ${JSON.stringify(range)}`);
    separator = ',';
  }
  io.stdout.write('\n  ]\n}\n');
}
