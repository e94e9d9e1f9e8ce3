/**
 * A pool that grows: by command, or by itself when so much of it is used. The file first, then the parts that lie in it, then what a
 * restart is to find, last the table of the pool: cut off anywhere, there is room that nobody uses yet.
 */
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError, ioError } from '../../errors.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import { bytes } from '../../units.ts';
import type { Emit } from '../events/event.ts';
import { grown } from '../fork/autoextend.ts';
import { type Book, PARTS } from './book.ts';
import { type Layout, linear, poolTable, wholeBlocks } from './layout.ts';
import { type PoolStatus, percent, statusOf } from './pool-status.ts';
import { lowWaterOf } from './pools.ts';
import type { PoolRecord } from './records.ts';

export interface GrowthOptions {
  book: Book;
  emit: Emit;
  log: (line: string) => void;
}

export class PoolGrowth {
  readonly #book: Book;
  readonly #emit: Emit;
  readonly #log: (line: string) => void;
  /** Those that are about to grow. */
  readonly #growing = new Set<string>();
  /** What was last told of a pool that did not grow, by uuid. */
  readonly #told = new Map<string, string>();

  constructor({ book, emit, log }: GrowthOptions) {
    this.#book = book;
    this.#emit = emit;
    this.#log = log;
  }

  /** When no pool grows any more. */
  async settled(): Promise<void> {
    do await this.#book.steady.run(async () => {});
    while (this.#growing.size > 0);
  }

  /** There is a pool to be looked at. */
  get needed(): boolean {
    return this.#book.pools.length > 0;
  }

  /** Percent that have passed a step of 5 and call for a word in the log. */
  warn(device: MappedDevice, part: string, reached: number): void {
    this.#log(`${device.storedName}: its ${part} is ${reached}% full`);
  }

  /** To be told at every look. Grows the pool in the background. */
  filled(device: MappedDevice, status: PoolStatus): void {
    const record = this.#book.poolRecord(device);
    const policy = record?.autoextend;
    if (!policy || this.#growing.has(record.uuid) || status.needsCheck || status.mode === 'ro') return;
    const { dataUsed, dataSize, metadataUsed, metadataSize } = status;
    const data = percent(dataUsed, dataSize) >= policy.threshold;
    const metadata = record.metadata !== undefined && percent(metadataUsed, metadataSize) >= policy.threshold;
    if (!data && !metadata) return;
    if (!metadata && dataSize >= policy.limit) {
      this.#failed(device, 'LIMIT', `its limit of ${policy.limit} bytes is reached`);
      return;
    }
    this.#growing.add(record.uuid);
    void this.#book.steady
      .run(() => this.#growBy(record))
      .catch((error: DmError) => this.#failed(device, error.code, error.message))
      .then((grew) => {
        this.#growing.delete(record.uuid);
        // What waited may have filled it again, and told of that while it grew.
        const now = grew ? statusOf(device) : undefined;
        if (now) this.filled(device, now);
      });
  }

  /** As the policy has it, by what is used by now. False: there was no need. */
  async #growBy(record: PoolRecord): Promise<boolean> {
    const device = this.#book.device({ uuid: record.uuid });
    const status = device && statusOf(device);
    if (!status || !record.autoextend) return false;
    const { threshold, limit } = record.autoextend;
    const sizes = { data: status.dataSize, metadata: status.metadataSize };
    if (percent(status.dataUsed, sizes.data) >= threshold && sizes.data < limit)
      sizes.data = grown(sizes.data, status.dataUsed, { ...record.autoextend, chunkSize: status.blockSize }, limit);
    if (record.metadata !== undefined && percent(status.metadataUsed, sizes.metadata) >= threshold)
      sizes.metadata = grown(
        sizes.metadata,
        status.metadataUsed,
        { ...record.autoextend, chunkSize: METADATA_STEP },
        METADATA_MAX,
      );
    if (sizes.data <= status.dataSize && sizes.metadata <= status.metadataSize) return false;
    await this.#grow(device, record, status, sizes);
    return true;
  }

  /** See `PoolControl.extendPool`. */
  extend(name: string, size: number): Promise<void> {
    return this.#book.steady.run(async () => {
      const device = this.#book.pool(name, `extend ${name}`);
      const record = this.#book.poolRecord(device);
      const status = statusOf(device);
      if (!record || !status)
        throw new DmError(
          'POOL_STATE',
          'EINVAL',
          `Cannot extend ${name}: ${record ? 'it has failed' : 'it was made with dmsetup'}`,
          {
            hint: record ? 'look at: dmkit ls' : `load a longer table: dmkit dmsetup load ${name}`,
          },
        );
      const data = wholeBlocks(size, status.blockSize);
      if (!(data >= status.dataSize) || !Number.isSafeInteger(data))
        throw new DmError('POOL_SIZE', 'EINVAL', `Cannot extend ${name} to ${size} bytes: it has ${status.dataSize}`, {
          hint: 'a pool does not shrink',
        });
      if (data > status.dataSize) await this.#grow(device, record, status, { data, metadata: status.metadataSize });
    });
  }

  async #grow(
    device: MappedDevice,
    record: PoolRecord,
    status: PoolStatus,
    sizes: { data: number; metadata: number },
  ): Promise<void> {
    const { mapper, images } = this.#book;
    const { storedName: name } = device;
    const inOne = record.metadata === undefined;
    const dataStart = inOne ? wholeBlocks(status.metadataSize, status.blockSize) : 0;
    const layout: Layout = {
      blockSize: status.blockSize,
      metadataSize: sizes.metadata,
      dataStart,
      dataSize: sizes.data,
    };
    const [metadata, data] = device.liveTable!.devices.map((lease) => lease.device);
    const file = await mapper.lease(record.data);
    try {
      await enlarge(file.device, dataStart + sizes.data);
      const parts = PARTS.map((part) => this.#book.device({ uuid: `${record.uuid}-${part}` }));
      if (inOne) {
        const ref = { name: parts[1]!.storedName };
        await mapper.load(ref, [linear(file.device, dataStart, sizes.data)]);
        await mapper.resume(ref);
      }
      if (sizes.metadata > status.metadataSize) await enlarge(metadata, sizes.metadata);
      const lowWater = record.autoextend ? lowWaterOf(layout, record.autoextend.threshold) : 0;
      const table = poolTable(metadata, data, layout, lowWater);
      // Metadata that has grown is refused by a table that has not.
      await images.intending(device, table, undefined, async () => {
        await images.save();
        await mapper.load({ name }, [table]);
        await mapper.resume({ name });
      });
    } finally {
      await images.save().catch(() => {});
      await file.release();
    }
    this.#told.delete(record.uuid);
    for (const part of ['data', 'metadata'] as const) {
      const from = part === 'data' ? status.dataSize : status.metadataSize;
      if (sizes[part] > from) this.#emit(device, { event: 'pool-extend', part, from, size: sizes[part] });
    }
  }

  /** Once for each reason: it is tried again every second. */
  #failed(device: MappedDevice, code: string, message: string): void {
    if (this.#told.get(device.uuid) === message) return;
    this.#told.set(device.uuid, message);
    this.#log(`${device.storedName} did not grow: ${message}`);
    this.#emit(device, { event: 'pool-extend-failed', code, message });
  }
}

/** Bytes. */
const METADATA_STEP = 2 ** 20;
const METADATA_MAX = 2 ** 34;

/** A file becomes so long, durably; a disk has to be. */
async function enlarge(device: BlockDevice, size: number): Promise<void> {
  if (device.size >= size) return;
  if (!device.extend) throw ioError(`Cannot extend ${device.name}: its size is not ours to choose`);
  device.extend(bytes(size));
  await device.flush();
}
