import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { type DaemonControl, DmError, type Volume, type VolumeSource } from '../../api/index.ts';
import { printVolume } from '../pool/options.ts';
import { define, printJson, UsageError } from './command.ts';
import { parseSize, printSize } from './sizes.ts';
import { findVolume, noVolume, splitVolume } from './volume-name.ts';

export const command = define({
  name: 'fork',
  operands: 'IMAGE NAME',
  summary:
    'Makes a writable copy of a raw image, a block device or a volume. Nothing is copied: only what changes takes space.',
  help: `IMAGE is a raw image file, a block device, or the nbd:// or nbd+unix:// URI of one.
Changes go to a COW file, NAME.cow beside the image, in the format of the Linux kernel's
snapshot target. The image stays as it is for every fork, and may itself be written through
the origin device that is served with it.

With POOL/NAME for NAME changes go to a pool instead, and the image must not change any more.
IMAGE may also be a volume of a pool, POOL/VOLUME: its fork is in the same pool, and may be
forked in turn, however often.`,
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
    const target = splitVolume(name);
    const daemon = await io.control();
    const volume = await volumeOf(daemon, image, io.cwd);
    if (volume || target) {
      for (const option of ['chunk', 'cow', 'size', 'autoextend', 'transient'] as const)
        if (options[option] !== undefined) throw new UsageError(`--${option} is for forks with a COW file`);
      if (volume && target && target.pool !== volume.pool)
        throw new UsageError(`${volume.name} is in the pool ${volume.pool}, and so is its fork`);
      const raw = options.raw !== undefined;
      const source: VolumeSource = volume ? { volume: volume.name } : { image, raw, directory: io.cwd };
      const made = await daemon.createVolume((volume ?? target)!.pool!, target?.name ?? name, source);
      if (options.json !== undefined) printJson(io, made);
      else printVolume(made, io);
      return;
    }
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

/** The volume of a pool that is to be forked. Throws FORK_AMBIGUOUS (EINVAL) if it could be a file as well. */
async function volumeOf(daemon: DaemonControl, word: string, cwd: string): Promise<Volume | undefined> {
  const volumes = await daemon.volumes();
  const volume = findVolume(volumes, word);
  const isFile = existsSync(resolve(cwd, word));
  const pool = splitVolume(word)?.pool;
  if (!volume && !isFile && volumes.some(({ name, type }) => name === pool && type === 'thin-pool'))
    throw noVolume(word);
  if (!volume || word.startsWith('/') || !isFile) return volume;
  throw new DmError('FORK_AMBIGUOUS', 'EINVAL', `Cannot fork ${word}: it is a file, and a volume of ${volume.pool}`, {
    hint: `for the file: ./${word}; for the volume: /dev/mapper/${volume.name}`,
  });
}

/** `70:20` or `70:20:10G`. Throws UsageError. */
export function parseAutoextend(text: string) {
  const [, threshold, percent, limit] = /^(\d+):(\d+)(?::(.+))?$/.exec(text) ?? [];
  if (threshold === undefined)
    throw new UsageError(`--autoextend is ${JSON.stringify(text)}, not such as 70:20 or 70:20:10G`);
  return {
    threshold: Number(threshold),
    percent: Number(percent),
    limit: limit === undefined ? undefined : parseSize(limit, 'the limit of --autoextend'),
  };
}
