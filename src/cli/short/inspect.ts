import { type Inspection, inspectFile } from '../../api/index.ts';
import { define, printJson } from './command.ts';
import { parseSize, printSize } from './sizes.ts';

export const command = define({
  name: 'inspect',
  operands: 'FILE',
  summary: 'Says what a file or block device holds, and checks it if it is a COW store. Reads only.',
  help: 'Exit status 1 if the store has a PROBLEM.',
  options: {
    origin: { value: 'SIZE', help: 'of the origin: finds exceptions that lie beyond it' },
    json: { help: 'print the result as JSON' },
  },
  async run({ operands: [file], options, io }) {
    const originSize = options.origin === undefined ? undefined : parseSize(options.origin, '--origin');
    const found = await inspectFile(`${file.startsWith('/') ? '' : `${io.cwd}/`}${file}`, { originSize });
    if (options.json !== undefined) printJson(io, found);
    else io.stdout.write(describe(found));
    return found.cow?.problems.length ? 1 : 0;
  },
});

function describe({ path, size, kind, format, blank, cow }: Inspection): string {
  const nothing = blank ? 'nothing at its beginning but zeroes' : 'nothing that is known by a signature';
  const article = /^[aeioxLN]/.test(format ?? '') ? 'an' : 'a';
  const what =
    kind === 'image' ? `${article} ${format} file, not a raw disk` : format ? `${article} ${format}` : nothing;
  const lines = [`${path}: ${what}, ${printSize(size)}`];
  if (cow) {
    lines.push(`  state       ${cow.valid ? 'valid' : 'invalid'}, version ${cow.version}`);
    lines.push(`  chunk size  ${printSize(cow.chunkSize)}`);
    lines.push(`  exceptions  ${cow.exceptions}, ${printSize(cow.exceptions * cow.chunkSize)} of changed chunks`);
    lines.push(`  allocated   ${printSize(cow.allocated)} of ${printSize(cow.size)}`);
    if (cow.exceptions > 0) lines.push(`  origin      at least ${cow.originReach} bytes, rounded up to a chunk`);
    if (cow.leftovers) lines.push('  note        entries behind the end of the list, left by a power cut: harmless');
    for (const { message, count } of cow.problems)
      lines.push(`  PROBLEM     ${message}${count > 1 ? ` (and ${count - 1} more like it)` : ''}`);
  }
  return `${lines.join('\n')}\n`;
}
