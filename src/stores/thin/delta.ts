/** What differs between two thin devices of a pool: where their blocks lead, whenever they were mapped. */
import type { Write } from './dump.ts';
import type { MetadataReader, NodeSet, Run, ThinDevice } from './reader.ts';

export interface DeltaRange {
  readonly kind: 'same' | 'different' | 'left_only' | 'right_only';
  /** Virtual blocks. */
  readonly begin: number;
  readonly length: number;
  /** Data blocks; each is there where the device has something mapped. */
  readonly left?: number;
  readonly right?: number;
}

/** What is not the same, in order, as `delta` tells it. What both devices share of their trees is not even read. */
export async function* changes(
  reader: MetadataReader,
  left: ThinDevice,
  right: ThinDevice,
): AsyncGenerator<DeltaRange> {
  const shared = await reader.sharedNodes(left, right);
  for await (const range of delta(reader, left, right, shared)) if (range.kind !== 'same') yield range;
}

/**
 * In order. Neighbours of a kind that lead elsewhere are ranges of their own; where neither has anything there is none. What lies
 * in `except`, which both devices have, is left out.
 */
export async function* delta(
  reader: MetadataReader,
  left: ThinDevice,
  right: ThinDevice,
  except?: NodeSet,
): AsyncGenerator<DeltaRange> {
  const [a, b] = [new Cursor(reader, left, except), new Cursor(reader, right, except)];
  for (;;) {
    if (a.length === 0 && !(await a.next()) && b.length === 0 && !(await b.next())) return;
    if (b.length === 0) await b.next();
    if (b.length === 0 || (a.length > 0 && a.virtual < b.virtual)) {
      const length = b.length === 0 ? a.length : Math.min(a.length, b.virtual - a.virtual);
      yield { kind: 'left_only', begin: a.virtual, length, left: a.data };
      a.advance(length);
    } else if (a.length === 0 || b.virtual < a.virtual) {
      const length = a.length === 0 ? b.length : Math.min(b.length, a.virtual - b.virtual);
      yield { kind: 'right_only', begin: b.virtual, length, right: b.data };
      b.advance(length);
    } else {
      const length = Math.min(a.length, b.length);
      const kind = a.data === b.data ? 'same' : 'different';
      yield { kind, begin: a.virtual, length, left: a.data, right: b.data };
      a.advance(length);
      b.advance(length);
    }
  }
}

/** What is left of the run that a device is at; its length is 0 before `next` and at the end. */
class Cursor {
  virtual = 0;
  data = 0;
  length = 0;
  readonly #batches: AsyncGenerator<Run[]>;
  #batch: readonly Run[] = [];
  #index = 0;

  constructor(reader: MetadataReader, device: ThinDevice, except: NodeSet | undefined) {
    this.#batches = reader.runs(device, { anyTime: true, except });
  }

  async next(): Promise<boolean> {
    if (this.#index === this.#batch.length) {
      const { value } = await this.#batches.next();
      if (!value) return false;
      this.#batch = value;
      this.#index = 0;
    }
    const { virtual, data, length } = this.#batch[this.#index++];
    this.virtual = virtual;
    this.data = data;
    this.length = length;
    return true;
  }

  advance(count: number): void {
    this.virtual += count;
    this.data += count;
    this.length -= count;
  }
}

/** The XML that `thin_delta` prints, with data blocks if `verbose`. */
export async function printDelta(
  reader: MetadataReader,
  left: ThinDevice,
  right: ThinDevice,
  verbose: boolean,
  write: Write,
): Promise<void> {
  const { time, transId, dataBlockSize, dataSpaceMap, heldRoot } = reader.superblock;
  const held = heldRoot === 0 ? '' : ` metadata_snap="${heldRoot}"`;
  write(
    `<superblock uuid="" time="${time}" transaction="${transId}" data_block_size="${dataBlockSize}" nr_data_blocks="${dataSpaceMap.nrBlocks}"${held}>\n`,
  );
  write(`  <diff left="${left.id}" right="${right.id}">\n`);
  if (verbose) await printRanges(delta(reader, left, right), write);
  else
    for await (const { kind, begin, length } of joined(delta(reader, left, right)))
      write(`    <${kind} begin="${begin}" length="${length}"/>\n`);
  write('  </diff>\n</superblock>\n');
}

/** Neighbours of a kind are one range. */
async function* joined(ranges: AsyncGenerator<DeltaRange>): AsyncGenerator<DeltaRange> {
  let open: DeltaRange | undefined;
  for await (const range of ranges) {
    if (open && open.kind === range.kind && open.begin + open.length === range.begin)
      open = { ...open, length: open.length + range.length };
    else {
      if (open) yield open;
      open = range;
    }
  }
  if (open) yield open;
}

async function printRanges(ranges: AsyncGenerator<DeltaRange>, write: Write): Promise<void> {
  let group = '';
  for await (const { kind, begin, length, left, right } of ranges) {
    if (kind !== group) write(`${group && `    </${group}>\n`}    <${kind}>\n`);
    group = kind;
    const data =
      kind === 'different' ? `left_data_begin="${left}" right_data_begin="${right}"` : `data_begin="${left ?? right}"`;
    write(`      <range begin="${begin}" ${data} length="${length}"/>\n`);
  }
  if (group) write(`    </${group}>\n`);
}
