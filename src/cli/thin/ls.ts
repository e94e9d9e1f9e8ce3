import { openThinMetadata, type ThinDevice, type ThinUsage } from '../../api/index.ts';
import { define, printJson, UsageError } from '../short/command.ts';
import { SNAPSHOT } from './options.ts';

/** Of blocks of so many bytes. */
type Column = (device: ThinUsage, blockBytes: number) => number | bigint | string;

const mapped = ({ mappedBlocks }: ThinDevice) => mappedBlocks;
const exclusive = ({ exclusiveBlocks }: ThinUsage) => exclusiveBlocks;
const shared = ({ mappedBlocks, exclusiveBlocks }: ThinUsage) => mappedBlocks - exclusiveBlocks;
const inUnits = (name: string, blocks: (device: ThinUsage) => number): Record<string, Column> => ({
  [`${name}_BLOCKS`]: blocks,
  [`${name}_SECTORS`]: (device, blockBytes) => (blocks(device) * blockBytes) / 512,
  [`${name}_BYTES`]: (device, blockBytes) => blocks(device) * blockBytes,
  [name]: (device, blockBytes) => printUnits(blocks(device) * blockBytes),
});

const COLUMNS: Record<string, Column> = {
  DEV: ({ id }) => id,
  ...inUnits('MAPPED', mapped),
  ...inUnits('EXCLUSIVE', exclusive),
  ...inUnits('SHARED', shared),
  TRANSACTION: ({ transactionId }) => transactionId,
  CREATE_TIME: ({ creationTime }) => creationTime,
  SNAP_TIME: ({ snapshottedTime }) => snapshottedTime,
};

export const command = define({
  name: 'thin ls',
  operands: 'METADATA',
  summary: 'Lists the thin devices of a pool, with the columns of thin_ls. Reads only.',
  help: `Columns: ${Object.keys(COLUMNS).slice(0, 9).join(', ')},
${Object.keys(COLUMNS).slice(9).join(', ')}; DEV, MAPPED, CREATE_TIME and SNAP_TIME unless given.
EXCLUSIVE is what no other thin device has mapped, and what deleting the device would free.`,
  options: {
    format: { value: 'COLUMNS', short: 'o', help: 'columns, separated by commas' },
    'no-headers': { help: 'print no line of names' },
    json: { help: 'print the devices as JSON, with numbers of blocks' },
    'metadata-snap': SNAPSHOT,
  },
  async run({ operands: [path], options, io }) {
    const names = (options.format ?? 'DEV,MAPPED,CREATE_TIME,SNAP_TIME').split(',');
    for (const name of names)
      if (!Object.hasOwn(COLUMNS, name)) throw new UsageError(`there is no column ${JSON.stringify(name)}`);
    const json = options.json !== undefined;
    const counts = json || names.some((name) => /^(EXCLUSIVE|SHARED)/.test(name));
    const snapshot = options['metadata-snap'] !== undefined;
    const metadata = await openThinMetadata(path, { directory: io.cwd, snapshot });
    try {
      const blockBytes = (await metadata.superblock()).dataBlockSize * 512;
      const devices = counts
        ? await metadata.usage()
        : (await metadata.devices()).map((device) => ({ ...device, exclusiveBlocks: 0 }));
      if (json) {
        const rows = devices.map(({ root, transactionId, ...device }) => ({
          ...device,
          transactionId: Number(transactionId),
        }));
        printJson(io, { dataBlockSize: blockBytes / 512, devices: rows });
        return;
      }
      const rows = devices.map((device) => names.map((name) => String(COLUMNS[name](device, blockBytes))));
      io.stdout.write(print(options['no-headers'] === undefined ? [names, ...rows] : rows));
    } finally {
      await metadata.close();
    }
  },
});

/** As thin_ls: to the right, and a blank after each. */
function print(rows: readonly (readonly string[])[]): string {
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column].length))) ?? [];
  return rows.map((row) => `${row.map((text, column) => `${text.padStart(widths[column])} `).join('')}\n`).join('');
}

/** As thin_ls: the next unit only above 8192 of one; rounded below 1024 and cut off above. */
function printUnits(bytes: number): string {
  let value = bytes;
  let unit = 0;
  for (; Math.floor(value) > 8192; unit++) value /= 1024;
  return `${value < 1024 ? Math.round(value) : Math.floor(value)}${['', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'][unit]}`;
}
