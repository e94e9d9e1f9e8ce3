import { define, printJson, UsageError } from './command.ts';
import { parseSize, printSize } from './sizes.ts';

export const command = define({
  name: 'fork',
  operands: 'IMAGE NAME',
  summary: 'Makes a writable copy of a raw image or block device. Nothing is copied: only what changes takes space.',
  help: `IMAGE is a raw image file, a block device, or the nbd:// or nbd+unix:// URI of one.
Changes go to a COW file, NAME.cow beside the image, in the format of the Linux kernel's
snapshot target. The image stays as it is for every fork, and may itself be written through
the origin device that is served with it.`,
  options: {
    chunk: { value: 'SIZE', help: 'unit of copying, a power of two from 4k on (default 16k)' },
    cow: { value: 'FILE', help: 'the COW file; a valid store of this image is opened again' },
    size: { value: 'SIZE', help: 'what the COW file may grow to (default: enough for everything to change)' },
    autoextend: {
      value: 'PERCENT:BY[:LIMIT]',
      help: 'at 70:20, a COW file of --size grows by 20% whenever 70% of it is used, at most to LIMIT',
    },
    transient: { help: 'forget the changes when the daemon ends; leaves no file behind' },
    raw: { help: 'take the image as it is, though it looks like qcow2 or another format' },
    json: { help: 'print the result as JSON' },
  },
  async run({ operands: [image, name], options, io }) {
    const chunkSize = options.chunk === undefined ? undefined : parseSize(options.chunk, '--chunk');
    const cowSize = options.size === undefined ? undefined : parseSize(options.size, '--size');
    const autoextend = options.autoextend === undefined ? undefined : parseAutoextend(options.autoextend);
    if (autoextend && cowSize === undefined)
      throw new UsageError('--autoextend needs --size: what the file begins with');
    const daemon = await io.control();
    const fork = await daemon.fork(image, name, {
      chunkSize,
      cowSize,
      autoextend,
      cow: options.cow,
      transient: options.transient !== undefined,
      raw: options.raw !== undefined,
      directory: io.cwd,
    });
    if (options.json !== undefined) return void printJson(io, fork);
    const again = fork.reopened ? `, from ${fork.cow}, which was there already with its changes` : '';
    io.stdout.write(`${fork.name}: fork of ${fork.image}, ${printSize(fork.size)}${again}\n`);
    io.stdout.write(`  fork    ${fork.uri}\n`);
    io.stdout.write(`  origin  ${fork.originUri}${fork.originReadOnly ? ' (read-only)' : ''}\n`);
    if (fork.cow && !fork.reopened) io.stdout.write(`  COW     ${fork.cow}\n`);
  },
});

function parseAutoextend(text: string) {
  const [, threshold, percent, limit] = /^(\d+):(\d+)(?::(.+))?$/.exec(text) ?? [];
  if (threshold === undefined)
    throw new UsageError(`--autoextend is ${JSON.stringify(text)}, not such as 70:20 or 70:20:10G`);
  return {
    threshold: Number(threshold),
    percent: Number(percent),
    limit: limit === undefined ? undefined : parseSize(limit, 'the limit of --autoextend'),
  };
}
