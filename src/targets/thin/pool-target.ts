/**
 * `thin-pool <metadata dev> <data dev> <block sectors> <low water blocks> [<#features> <feature>…]` (Linux `dm-thin.c`). Requests
 * to the pool itself go straight to its data device.
 */
import type { BlockDevice, Extent, Maybe } from '../../device/block-device.ts';
import { DmError, TableError } from '../../errors.ts';

import { type Bytes, sector, toBytes } from '../../units.ts';
import { deviceWord, openArgument } from '../arguments.ts';
import type { StatusKind, TableLine, Target, TargetType } from '../target.ts';
import { FEATURE_WORDS, type Features, parseDevice, readFeatures, readSizes } from './arguments.ts';
import type { Control, Mode, Pool } from './pool.ts';
import { join, leave } from './pools.ts';

const TYPE = 'thin-pool';

export const thinPool: TargetType = {
  name: TYPE,
  version: [1, 22, 0],
  immutable: true,
  singleton: true,
  writes: true,
  async create(line) {
    const features = readFeatures(line.args);
    const mode = features.readOnly ? 'r' : 'rw';
    const metadata = await openArgument(line, TYPE, line.args[0], mode, 'Error opening metadata block device');
    const data = await openArgument(line, TYPE, line.args[1], 'rw', 'Error getting data device');
    const { blockSize, lowWater } = readSizes(line.args);
    const refuse = (errno: 'EBUSY' | 'EINVAL', text: string) =>
      new TableError('TABLE_ARGUMENT', errno, `${TYPE}: ${text}`);
    let pool: Pool;
    try {
      pool = await join(line.owner, { metadata, data }, blockSize, features, refuse);
    } catch (error) {
      if (!(error instanceof DmError) || error instanceof TableError) throw error;
      const text = `${TYPE}: Error creating metadata object: ${error.message}`;
      throw new TableError('TABLE_DEVICE', error.errno, text, { cause: error, hint: error.hint });
    }
    return new PoolTarget(line, pool, features, lowWater);
  },
};

class PoolTarget implements Target, Control {
  readonly features: Features;
  readonly lowWater: number;
  mode: Mode;
  readonly ranges: Target['ranges'];
  readonly #pool: Pool;
  readonly #length: Bytes;
  readonly #event: () => void;

  constructor(line: TableLine, pool: Pool, features: Features, lowWater: number) {
    this.features = features;
    this.lowWater = lowWater;
    this.mode = features.readOnly ? 'readOnly' : 'write';
    this.#pool = pool;
    this.#length = toBytes(line.length);
    this.#event = line.event;
    this.ranges = [{ device: pool.data, start: sector(0), length: line.length }];
  }

  event(): void {
    this.#event();
  }

  get hints() {
    const size = this.#pool.blockBytes as Bytes;
    return { minimumIo: size, optimalIo: size };
  }

  get #data(): BlockDevice {
    return this.#pool.data;
  }

  get canDiscard(): boolean {
    return this.#data.canDiscard;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    return this.#data.read(at, into, start, length);
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    return this.#data.write(at, from, start, length);
  }

  flush(): Maybe {
    return this.#data.flush();
  }

  discard(at: Bytes, length: number): Maybe {
    return this.#data.discard(at, length);
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    return this.#data.writeZeroes(at, length, mayUnmap);
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    return this.#data.extents(at, length);
  }

  async prestatus(): Promise<void> {
    // What goes wrong shows in the status.
    if (!this.#pool.suspended) await this.#pool.commit().catch(() => {});
  }

  status(kind: StatusKind): string {
    return kind === 'info' ? this.#info() : this.#table(kind);
  }

  #info(): string {
    const { metadata, mode, errorIfNoSpace } = this.#pool;
    if (mode === 'fail') return 'Fail';
    const { metadataBlocks, freeMetadataBlocks, dataBlocks, freeDataBlocks, heldRoot, needsCheck } = metadata;
    const words = [
      `${metadata.transId} ${metadataBlocks - freeMetadataBlocks}/${metadataBlocks} ${dataBlocks - freeDataBlocks}/${dataBlocks}`,
      heldRoot === 0 ? '-' : heldRoot,
      mode === 'write' ? 'rw' : mode === 'outOfDataSpace' ? 'out_of_data_space' : 'ro',
      !this.features.discard ? 'ignore_discard' : this.#passesDown ? 'discard_passdown' : 'no_discard_passdown',
      errorIfNoSpace ? 'error_if_no_space' : 'queue_if_no_space',
      needsCheck ? 'needs_check' : '-',
      this.#pool.metadataLowWater,
    ];
    return `${words.join(' ')} `;
  }

  get #passesDown(): boolean {
    return this.features.passDown && this.#data.canDiscard;
  }

  #table(kind: StatusKind): string {
    const words = FEATURE_WORDS.filter(([, on]) => on(this.features)).map(([word]) => `${word} `);
    const size = this.#pool.blockBytes / toBytes(sector(1));
    const devices = [this.#pool.metadataDevice, this.#data].map(deviceWord);
    if (kind === 'table') return `${devices.join(' ')} ${size} ${this.lowWater} ${words.length} ${words.join('')}`;
    return '';
  }

  async message(words: readonly string[]): Promise<string> {
    if (this.#pool.isAtLeast('outOfMetadataSpace'))
      throw new DmError(
        'POOL_READ_ONLY',
        'EOPNOTSUPP',
        'Cannot carry out a message: the pool is read-only or has failed',
      );
    const { metadata } = this.#pool;
    const [name = '', ...args] = words;
    const device = (i: number): number => {
      const id = parseDevice(args[i]);
      if (id === undefined) throw messageFault(`Message received with invalid device id: ${args[i]}`);
      return id;
    };
    const work = {
      create_thin: [1, () => metadata.createThin(device(0))],
      create_snap: [2, () => metadata.createSnapshot(device(0), device(1))],
      delete: [1, () => metadata.delete(device(0))],
      set_transaction_id: [2, () => metadata.setTransactionId(transactionId(args[0]), transactionId(args[1]))],
      reserve_metadata_snap: [0, () => metadata.reserveSnapshot()],
      release_metadata_snap: [0, () => metadata.releaseSnapshot()],
    } satisfies Record<string, [number, () => Maybe]>;
    const found = Object.hasOwn(work, name.toLowerCase()) ? work[name.toLowerCase() as keyof typeof work] : undefined;
    if (!found) throw messageFault(`Unrecognised thin pool target message received: ${name}`);
    const [count, run] = found;
    if (args.length !== count)
      throw messageFault(`Message received with ${words.length} arguments instead of ${count + 1}.`);
    await this.#pool.change(run);
    return '';
  }

  presuspend(): void {
    this.#holding = this.#pool.hold();
  }

  #holding: Promise<void> = Promise.resolve();

  presuspendUndo(): void {
    this.#pool.resume();
  }

  /** All requests to its thin devices. */
  drained(): Promise<void> {
    return this.#holding;
  }

  async postsuspend(): Promise<void> {
    await this.#pool.postsuspend();
  }

  preresume(): Promise<void> {
    return this.#pool.prepare(this, this.#length);
  }

  resume(): void {
    this.#pool.resume();
  }

  close(): Promise<void> {
    return leave(this.#pool);
  }
}

function transactionId(word: string): bigint {
  if (!/^\+?[0-9]+$/.test(word) || BigInt(word.replace('+', '')) >= 2n ** 64n)
    throw messageFault(`set_transaction_id: not a number of 64 bits: ${word}`);
  return BigInt(word.replace('+', ''));
}

const messageFault = (text: string) => new DmError('POOL_MESSAGE', 'EINVAL', text);
