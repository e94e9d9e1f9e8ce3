/** Metadata of a thin pool as text: the XML that `thin_dump` prints and `thin_restore` reads, and a list for people. */
import type { MetadataReader, Run, ThinDevice } from './reader.ts';

/** Prints parts as they come: what there is to print may be larger than memory. */
export type Write = (text: string) => void;

interface Printer {
  begin(reader: MetadataReader): string;
  device(device: ThinDevice): string;
  run(run: Run): string;
  deviceEnd: string;
  end: string;
}

export const FORMATS = ['xml', 'human_readable'] as const;
export type DumpFormat = (typeof FORMATS)[number];

export interface DumpOptions {
  /** All unless given. */
  devices?: readonly number[];
  /** Devices without what they have mapped. */
  skipMappings?: boolean;
}

/** Rejects with FormatError where the metadata is damaged; what was printed until then is not complete. */
export async function dump(
  reader: MetadataReader,
  format: DumpFormat,
  write: Write,
  options?: DumpOptions,
): Promise<void> {
  for await (const part of dumpParts(reader, format, options)) write(part);
}

export async function* dumpParts(
  reader: MetadataReader,
  format: DumpFormat,
  { devices, skipMappings = false }: DumpOptions = {},
): AsyncGenerator<string> {
  const printer = PRINTERS[format];
  yield printer.begin(reader);
  for await (const device of reader.devices()) {
    if (devices && !devices.includes(device.id)) continue;
    yield printer.device(device);
    if (!skipMappings) yield* mappings(reader, printer, device);
    yield printer.deviceEnd;
  }
  yield printer.end;
}

async function* mappings(reader: MetadataReader, printer: Printer, device: ThinDevice): AsyncGenerator<string> {
  for await (const runs of reader.runs(device)) {
    let text = '';
    for (const run of runs) text += printer.run(run);
    yield text;
  }
}

const xml: Printer = {
  begin: ({ superblock: { time, transId, flags, version, dataBlockSize, dataSpaceMap } }) =>
    `<superblock uuid="" time="${time}" transaction="${transId}" flags="${flags}" version="${version}" data_block_size="${dataBlockSize}" nr_data_blocks="${dataSpaceMap.nrBlocks}">\n`,
  device: ({ id, mappedBlocks, transactionId, creationTime, snapshottedTime }) =>
    `  <device dev_id="${id}" mapped_blocks="${mappedBlocks}" transaction="${transactionId}" creation_time="${creationTime}" snap_time="${snapshottedTime}">\n`,
  run: ({ virtual, data, length, time }) =>
    length === 1
      ? `    <single_mapping origin_block="${virtual}" data_block="${data}" time="${time}"/>\n`
      : `    <range_mapping origin_begin="${virtual}" data_begin="${data}" length="${length}" time="${time}"/>\n`,
  deviceEnd: '  </device>\n',
  end: '</superblock>\n',
};

const humanReadable: Printer = {
  begin({ superblock: { time, transId, flags, version, dataBlockSize, dataSpaceMap } }) {
    return `begin superblock: "", ${time}, ${transId}, ${flags}, ${version}, ${dataBlockSize}, ${dataSpaceMap.nrBlocks}\n`;
  },
  device: ({ id, mappedBlocks, transactionId, creationTime, snapshottedTime }) =>
    `device: ${id}\nmapped_blocks: ${mappedBlocks}\ntransaction: ${transactionId}\ncreation time: ${creationTime}\nsnap time: ${snapshottedTime}\n`,
  run: ({ virtual, data, length, time }) =>
    length === 1
      ? `    ${virtual} -> ${data}, ${time}\n`
      : `    (${virtual}..${virtual + length - 1}) -> (${data}..${data + length - 1}), ${time}\n`,
  deviceEnd: '\n',
  end: 'end superblock\n',
};

const PRINTERS: Record<DumpFormat, Printer> = { xml, human_readable: humanReadable };
