import { define, printJson } from './command.ts';

export const command = define({
  name: 'drop',
  operands: 'NAME',
  summary: 'Removes a fork and deletes the COW file that was made for it. The image stays.',
  options: {
    keep: { help: 'keep the COW file: forking the same image with it brings the fork back' },
    json: { help: 'print the result as JSON' },
  },
  async run({ operands: [name], options, io }) {
    const dropped = await (await io.control()).drop(name, { keepCow: options.keep !== undefined });
    if (options.json !== undefined) return void printJson(io, dropped);
    io.stdout.write(`${name} is gone${dropped.deleted ? `, and ${dropped.deleted} with it` : ''}\n`);
    if (dropped.kept) io.stdout.write(`kept ${dropped.kept}\n`);
    if (dropped.halfMerged)
      io.stdout.write(
        `${dropped.halfMerged} is a mix of old and new; to merge the rest: dmkit merge ${dropped.halfMerged} ${dropped.kept}\n`,
      );
    if (dropped.originRemoved)
      io.stdout.write(`it was the last fork: the origin device ${dropped.originRemoved} is gone too\n`);
  },
});
