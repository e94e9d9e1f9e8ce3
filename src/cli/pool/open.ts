import { define, printJson } from '../short/command.ts';
import { POOL_OPTIONS, poolOptions, printPool } from './options.ts';

export const command = define({
  name: 'pool open',
  operands: 'FILE',
  summary: 'Opens a pool that was dropped with --keep, or comes from elsewhere, and lists its thin devices.',
  options: { ...POOL_OPTIONS, json: { help: 'print the result as JSON' } },
  async run({ operands: [file], options, io }) {
    const pool = await (await io.control()).openPool(file, poolOptions(options, io));
    if (options.json !== undefined) printJson(io, pool);
    else printPool(pool, io);
  },
});
