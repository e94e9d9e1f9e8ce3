import { define, printJson } from '../short/command.ts';
import { parseSize } from '../short/sizes.ts';
import { POOL_OPTIONS, poolOptions, printPool } from './options.ts';

export const command = define({
  name: 'pool create',
  operands: 'FILE',
  summary: 'Makes a pool, from which volumes get their space when they are written.',
  help: `FILE is made, sparse, in the format of the Linux kernel's thin pools: metadata, and the data
behind it. It may also be a block device that holds nothing; then --size may be left out.`,
  options: {
    size: { value: 'SIZE', help: 'data that all volumes may take together' },
    block: { value: 'SIZE', help: 'unit of space, a multiple of 64k (default 64k)' },
    ...POOL_OPTIONS,
    json: { help: 'print the result as JSON' },
  },
  async run({ operands: [file], options, io }) {
    const size = options.size === undefined ? undefined : parseSize(options.size, '--size');
    const blockSize = options.block === undefined ? undefined : parseSize(options.block, '--block');
    const given = { ...poolOptions(options, io), size, blockSize };
    const pool = await (await io.control()).createPool(file, given);
    if (options.json !== undefined) printJson(io, pool);
    else printPool(pool, io);
  },
});
