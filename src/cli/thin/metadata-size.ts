import { thinMetadataSize } from '../../api/index.ts';
import { define, UsageError } from '../short/command.ts';
import { required } from './options.ts';

/** Bytes, and the name, as thin_metadata_size has them: small letters are powers of 1024. */
const UNITS: Record<string, readonly [bytes: number, name: string]> = {
  b: [1, 'bytes'],
  s: [512, 'sectors'],
  k: [2 ** 10, 'kibibytes'],
  m: [2 ** 20, 'mebibytes'],
  g: [2 ** 30, 'gibibytes'],
  t: [2 ** 40, 'tebibytes'],
  p: [2 ** 50, 'pebibytes'],
  K: [1e3, 'kilobytes'],
  M: [1e6, 'megabytes'],
  G: [1e9, 'gigabytes'],
  T: [1e12, 'terabytes'],
  P: [1e15, 'petabytes'],
};

export const command = define({
  name: 'thin metadata-size',
  operands: '',
  summary: 'Says how large the metadata of a thin pool has to be, as thin_metadata_size 1.x does.',
  help: `A size is a number of sectors, or has a unit: ${Object.keys(UNITS).join(' ')}; small letters are powers of 1024.
(thin_metadata_size 0.9 rounds down, and says 8 sectors less.)`,
  options: {
    'block-size': { value: 'SIZE', short: 'b', help: 'data block size of the pool: 64k to 1g' },
    'pool-size': { value: 'SIZE', short: 's', help: 'size of the data device' },
    'max-thins': { value: 'N', short: 'm', help: 'thin devices and snapshots, at most' },
    unit: { value: 'UNIT', short: 'u', help: 'what to print it in; s unless given' },
    'numeric-only': { short: 'n', help: 'print only the number' },
  },
  async run({ options, io }) {
    const blockSize = sizeOf(required(options['block-size'], '--block-size'), '--block-size');
    const poolSize = sizeOf(required(options['pool-size'], '--pool-size'), '--pool-size');
    const thins = sizeOf(required(options['max-thins'], '--max-thins'), '--max-thins', 'b');
    if (blockSize < 2 ** 16 || blockSize > 2 ** 30 || blockSize % 2 ** 16 !== 0)
      throw new UsageError(`--block-size is ${blockSize} bytes, no multiple of 64k from 64k to 1g`);
    const unit = options.unit ?? 's';
    if (!Object.hasOwn(UNITS, unit)) throw new UsageError(`--unit is ${JSON.stringify(unit)}, not one of its letters`);
    const [bytes, name] = UNITS[unit];
    const value = (thinMetadataSize(Math.floor(poolSize / blockSize), thins) * 512) / bytes;
    const text = Number.isInteger(value) ? `${value}` : value.toFixed(2);
    io.stdout.write(options['numeric-only'] === undefined ? `${text} ${name}\n` : `${text}\n`);
  },
});

/** Of what has no unit, it is `usual`. */
function sizeOf(text: string, option: string, usual = 's'): number {
  const match = /^(\d+)([a-zA-Z]*)$/.exec(text);
  const unit = match?.[2] || usual;
  // `64k`, `64kibi` and `64kibibytes` are the same.
  const [bytes] = Object.hasOwn(UNITS, unit)
    ? UNITS[unit]
    : (Object.values(UNITS).find(([, name]) => unit.length > 3 && name.startsWith(unit)) ?? [Number.NaN]);
  const value = match ? Number(match[1]) * bytes : Number.NaN;
  if (!Number.isSafeInteger(value))
    throw new UsageError(`${option} is ${JSON.stringify(text)}, not a size such as 64k`);
  return value;
}
