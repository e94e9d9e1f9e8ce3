import { define, printJson, UsageError } from '../short/command.ts';
import { parseSize } from '../short/sizes.ts';
import { printPool } from './options.ts';

export const command = define({
  name: 'pool extend',
  operands: 'POOL',
  summary: 'Gives a pool more space, while its volumes are in use.',
  options: {
    size: { value: 'SIZE', help: 'what its data is to come to' },
    json: { help: 'print the result as JSON' },
  },
  async run({ operands: [name], options, io }) {
    if (options.size === undefined) throw new UsageError('--size is missing');
    const pool = await (await io.control()).extendPool(name, parseSize(options.size, '--size'));
    if (options.json !== undefined) printJson(io, pool);
    else printPool(pool, io);
  },
});
