/**
 * What thin volumes cost the disks below, those of metadata and of data together: I/Os and flushes, counted. dmkit (here) and the
 * kernel (test/kernel/thin-io-counts.ts) carry out the same lines:
 *
 *     message TEXT                  to the pool
 *     activate ID, deactivate ID, suspend ID, resume ID
 *     writes ID FROM COUNT DEPTH    4 KiB to the start of each of some blocks, which lie scattered, `DEPTH` at a time; a flush
 *     flushed ID FROM COUNT         one at a time, a flush after each
 *     reads ID FROM COUNT DEPTH
 */
import { Mapper } from '../../src/mapper/mapper.ts';
import { FakeDisks } from '../../src/testing/fake-disks.ts';
import { SlowDevice } from '../../src/testing/slow-device.ts';
import { bytes, SECTOR } from '../../src/units.ts';
import { CHUNK, type Counts, ORIGIN, placeOf, WRITE_BYTES, WRITES } from './io-counts.ts';

/** Sectors of the devices of the pool. */
export const METADATA = 16_384;
export const DATA = 1024 * CHUNK;
export const POOL = (metadata: string, data: string) => `0 ${DATA} thin-pool ${metadata} ${data} ${CHUNK} 0`;
export const VOLUME = (pool: string, id: number | string) => `0 ${ORIGIN} thin ${pool} ${id}`;
/** Blocks that are ever touched. */
export const PLACES = 3 * WRITES;

export interface ThinCounts {
  operation: string;
  /** How many of it were counted together. */
  times: number;
  counts: Counts;
}

interface Line {
  text: string;
  /** The name of what is counted, if it is. */
  operation?: string;
}

const DEPTH = 20;
const FLUSHED = 16;
const line = (text: string): Line => ({ text });
const counted = (operation: string, text: string): Line => ({ operation, text });
const written = (what: string, from: number, depth: number) =>
  counted(`${what}, QD ${depth}`, `writes 1 ${from} ${WRITES} ${depth}`);
const read = (id: number, depth: number) => counted(`read of a snapshot, ${depth} deep`, `reads ${id} 0 ${WRITES} 1`);

/** A snapshot of the one before, which is volume 1 for the first; three of the blocks that are read are its own. */
const level = (i: number): Line[] => [
  line(`message create_snap ${10 + i} ${i === 1 ? 1 : 9 + i}`),
  line(`activate ${10 + i}`),
  line(`writes ${10 + i} ${3 * i} 3 1`),
  ...(i === 1 || i === DEPTH ? [read(10 + i, i)] : []),
  line(`deactivate ${10 + i}`),
];

export const lines: readonly Line[] = [
  line('message create_thin 1'),
  line('activate 1'),
  written('provisioning write', 0, 1),
  written('provisioning write', WRITES, 16),
  counted('provisioning write, then flush', `flushed 1 ${2 * WRITES} ${FLUSHED}`),
  written('write to provisioned', 0, 1),
  written('write to provisioned', WRITES, 16),
  line('suspend 1'),
  counted('snapshot', 'message create_snap 2 1'),
  line('resume 1'),
  written('break-sharing write', 0, 1),
  written('break-sharing write', WRITES, 16),
  line('deactivate 1'),
  ...Array.from({ length: DEPTH }, (_, i) => level(i + 1)).flat(),
  counted('delete of a snapshot', `message delete ${10 + DEPTH}`),
  counted('delete of a volume', 'message delete 1'),
];

/** How often what a line does is done. */
const timesOf = ({ text }: Line) => (text.startsWith('message') ? 1 : Number(text.split(' ')[3]));

/** From what each line that is counted asked of the disks. */
export const thinCounts = (found: readonly Counts[]): ThinCounts[] =>
  lines
    .filter(({ operation }) => operation !== undefined)
    .map((line, i) => ({ operation: line.operation!, times: timesOf(line), counts: found[i] }));

/** On disks that answer in a later turn, as real ones do. */
export async function countThinHere(): Promise<ThinCounts[]> {
  const opener = new FakeDisks();
  const below = [METADATA, DATA].map((sectors, i) => {
    const disk = new SlowDevice(opener.ram(i, sectors));
    opener.add(disk, `/dev/ram${i}`);
    return disk;
  });
  const mapper = new Mapper({ opener });
  const create = async (name: string, table: string) => {
    const [start, length, type, ...args] = table.split(' ');
    await mapper.create(name);
    await mapper.load({ name }, [{ start: Number(start), length: Number(length), type, args: args.join(' ') }]);
    await mapper.resume({ name });
  };
  await create('pool', POOL('/dev/ram0', '/dev/ram1'));

  const data = new Uint8Array(WRITE_BYTES).fill(1);
  const play = async (text: string): Promise<void> => {
    const [word, ...rest] = text.split(' ');
    if (word === 'message') return void (await mapper.message({ name: 'pool' }, 0, rest.join(' ')));
    const [id, from, count, depth = 1] = rest.map(Number);
    const name = `t${id}`;
    if (word === 'activate') return create(name, VOLUME('/dev/mapper/pool', id));
    if (word === 'deactivate') return void (await mapper.remove({ name }));
    if (word === 'suspend' || word === 'resume') return void (await mapper[word]({ name }));
    const device = mapper.device({ name });
    const request = word === 'reads' ? device.read.bind(device) : device.write.bind(device);
    for (let i = from; i < from + count; i += depth) {
      const places = Array.from({ length: Math.min(depth, from + count - i) }, (_, k) => placeOf(i + k));
      await Promise.all(places.map((place) => request(bytes(place * SECTOR), data, 0, WRITE_BYTES)));
      if (word === 'flushed') await device.flush();
    }
    if (word === 'writes') await device.flush();
  };
  const found: Counts[] = [];
  for (const { text, operation } of lines) {
    for (const disk of below) disk.seen.length = 0;
    await play(text);
    if (operation === undefined) continue;
    // To ask where holes are is no I/O.
    const asked = below.flatMap(({ seen }) => seen.map(({ operation }) => operation)).filter((o) => o !== 'extents');
    const reads = asked.filter((operation) => operation === 'read').length;
    const flushes = asked.filter((operation) => operation === 'flush').length;
    found.push({ reads, writes: asked.length - reads - flushes, flushes });
  }
  await mapper.removeAll();
  return thinCounts(found);
}
