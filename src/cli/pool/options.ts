/** What commands on pools have in common. */
import type { OpenPoolOptions, Pool, ThinVolume } from '../../api/index.ts';
import type { ShortIo } from '../short/command.ts';
import { parseAutoextend } from '../short/fork.ts';
import { printSize } from '../short/sizes.ts';

export const POOL_OPTIONS = {
  name: { value: 'NAME', help: 'of the pool; the name of the file without its ending unless given' },
  metadata: { value: 'FILE', help: 'the file or disk of the metadata; before the data in the same file unless given' },
  autoextend: {
    value: 'PERCENT:BY[:LIMIT]',
    help: 'at 80:20, the pool grows by 20% whenever 80% of it are used, at most to LIMIT (16 times its size)',
  },
} as const;

export const poolOptions = (
  options: { name?: string; metadata?: string; autoextend?: string },
  io: ShortIo,
): OpenPoolOptions => ({
  name: options.name,
  metadata: options.metadata,
  autoextend: options.autoextend === undefined ? undefined : parseAutoextend(options.autoextend),
  directory: io.cwd,
});

export function printPool({ name, data, metadata, size, blockSize, thins }: Pool, io: ShortIo): void {
  const where = metadata === undefined ? data : `${data}, metadata in ${metadata}`;
  io.stdout.write(`${name}: pool of ${printSize(size)} in blocks of ${printSize(blockSize)}, in ${where}\n`);
  for (const { id, mapped } of thins)
    io.stdout.write(
      `  thin device ${id}, ${printSize(mapped)}: dmkit pool volume ${name}/VOLUME --id ${id} --size SIZE\n`,
    );
}

export function printVolume({ name, pool, size, origin, uri, note }: ThinVolume, io: ShortIo): void {
  io.stdout.write(`${name}: ${origin ? `fork of ${origin}` : 'volume'}, ${printSize(size)}, in the pool ${pool}\n`);
  if (uri) io.stdout.write(`  volume  ${uri}\n`);
  if (note) io.stderr.write(`dmkit: ${note}\n`);
}
