import { define, printJson } from './command.ts';
import { deviceName } from './volume-name.ts';

export const command = define({
  name: 'drop',
  operands: 'NAME',
  summary: 'Removes a fork and its COW file, a volume and its thin device, or a pool and its files. The image stays.',
  help: 'A pool is dropped when it has no volumes any more. What dmkit did not make for it stays.',
  options: {
    keep: { help: 'keep the COW file, the thin device, or the files: they can be opened again' },
    json: { help: 'print the result as JSON' },
  },
  async run({ operands: [word], options, io }) {
    const daemon = await io.control();
    const name = await deviceName(daemon, word);
    const dropped = await daemon.drop(name, { keepCow: options.keep !== undefined });
    if (options.json !== undefined) return void printJson(io, dropped);
    io.stdout.write(`${name} is gone${dropped.deleted ? `, and ${dropped.deleted} with it` : ''}\n`);
    for (const { path, deleted } of dropped.files ?? []) io.stdout.write(`${deleted ? 'deleted' : 'kept'} ${path}\n`);
    const { thin } = dropped;
    if (thin && !thin.deleted)
      io.stdout.write(
        `kept thin device ${thin.id} of ${thin.pool}: dmkit pool volume ${thin.pool}/VOLUME --id ${thin.id} --size ${thin.size}\n`,
      );
    if (dropped.kept) io.stdout.write(`kept ${dropped.kept}\n`);
    if (dropped.halfMerged)
      io.stdout.write(
        `${dropped.halfMerged} is a mix of old and new; to merge the rest: dmkit merge ${dropped.halfMerged} ${dropped.kept}\n`,
      );
    if (dropped.originRemoved)
      io.stdout.write(`it was the last fork: the origin device ${dropped.originRemoved} is gone too\n`);
  },
});
