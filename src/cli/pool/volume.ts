import type { VolumeSource } from '../../api/index.ts';
import { define, printJson, UsageError } from '../short/command.ts';
import { parseSize } from '../short/sizes.ts';
import { splitVolume } from '../short/volume-name.ts';
import { numberOf } from '../thin/options.ts';
import { printVolume } from './options.ts';

export const command = define({
  name: 'pool volume',
  operands: 'POOL/VOLUME',
  summary: 'Makes a volume in a pool. It takes space when it is written.',
  help: 'To fork a volume, or an image into a pool: dmkit fork.',
  options: {
    size: { value: 'SIZE', help: 'of the volume; may be more than the pool has' },
    image: { value: 'IMAGE', help: 'what it shows where it was not written; --size may be more than that has' },
    raw: { help: 'take the image as it is, though it looks like qcow2 or another format' },
    id: { value: 'N', help: 'show thin device N, which the pool has already' },
    json: { help: 'print the result as JSON' },
  },
  async run({ operands: [word], options, io }) {
    const target = splitVolume(word);
    if (!target) throw new UsageError(`${JSON.stringify(word)} is not POOL/VOLUME`);
    const size = options.size === undefined ? undefined : parseSize(options.size, '--size');
    const id = numberOf(options.id, '--id');
    if (options.image !== undefined && id !== undefined) throw new UsageError('--image and --id exclude each other');
    let source: VolumeSource;
    if (options.image !== undefined)
      source = { image: options.image, raw: options.raw !== undefined, size, directory: io.cwd };
    else if (size === undefined) throw new UsageError('--size is missing');
    else source = id === undefined ? { size } : { id, size };
    const volume = await (await io.control()).createVolume(target.pool, target.name, source);
    if (options.json !== undefined) printJson(io, volume);
    else printVolume(volume, io);
  },
});
