/** A thin pool and its devices over disks that obey, for tests of the targets. */
import { expect, onTestFinished } from 'vitest';
import { type CheckReport, checkMetadata } from '../../src/stores/thin/check.ts';
import type { ScriptedDevice } from '../../src/testing/scripted-device.ts';
import { Rig } from './rig.ts';

/** Sectors of a data block. */
export const BLOCK = 128;

export interface PoolOptions {
  /** Blocks of the metadata device. */
  metadata?: number;
  lowWater?: number;
  /** `skip_block_zeroing`, … */
  features?: string[];
  /** Sectors of a block. */
  block?: number;
  /** Of the data device, at first. */
  content?: Uint8Array;
}

export class ThinRig extends Rig {
  readonly meta: ScriptedDevice;
  readonly data: ScriptedDevice;
  #options: Required<Omit<PoolOptions, 'content'>>;

  /** Disks for a pool with `blocks` blocks of data; the data disk has room for twice as many. */
  constructor(
    blocks: number,
    { metadata = 1024, lowWater = 0, features = [], block = BLOCK, content }: PoolOptions = {},
  ) {
    super();
    this.#options = { metadata, lowWater, features, block };
    this.meta = this.disk(0, metadata * 8);
    this.data = this.disk(1, 2 * blocks * block, { content });
    onTestFinished(() => this.mapper.removeAll().catch(() => {}));
  }

  line(blocks: number, options: PoolOptions = {}): string {
    const { lowWater, features, block } = { ...this.#options, ...options };
    const words = features.length > 0 ? ` ${features.length} ${features.join(' ')}` : '';
    return `0 ${blocks * block} thin-pool /dev/ram0 /dev/ram1 ${block} ${lowWater}${words}`;
  }

  /** Another table for the pool, and a resume. */
  async reload(blocks: number, options?: PoolOptions): Promise<void> {
    await this.load('pool', this.line(blocks, options));
    await this.resume('pool');
  }

  message(text: string): Promise<string> {
    return this.mapper.message({ name: 'pool' }, 0, text);
  }

  /** Makes thin device `id` and activates it as `tID`, with so many sectors. */
  async thin(id: number, sectors: number, origin = ''): Promise<string> {
    await this.message(`create_thin ${id}`);
    return this.activate(id, sectors, origin);
  }

  async activate(id: number, sectors: number, origin = ''): Promise<string> {
    await this.create(`t${id}`, `0 ${sectors} thin /dev/mapper/pool ${id} ${origin}`.trim());
    return `t${id}`;
  }

  /** As a volume manager takes a snapshot: the origin is suspended meanwhile. */
  async snapshot(id: number, of: number, sectors: number): Promise<string> {
    await this.suspend(`t${of}`);
    await this.message(`create_snap ${id} ${of}`);
    await this.resume(`t${of}`);
    return this.activate(id, sectors);
  }
}

/** A pool with so many blocks. */
export async function poolOf(blocks: number, options?: PoolOptions): Promise<ThinRig> {
  const rig = new ThinRig(blocks, options);
  await rig.create('pool', rig.line(blocks));
  return rig;
}

export const errno = (errno: string) => ({ errno });
export const zeroes = (count: number) => Buffer.alloc(count * 512);

/** After a commit, which a status is, a check finds nothing. */
export async function whole(rig: ThinRig): Promise<void> {
  await rig.status('pool');
  expect((await checkMetadata(rig.meta)).findings).toEqual([]);
}

const LEAK = /^data block \d+ is referred to 0 times, and 1 are counted$/;

/**
 * All that a power cut may leave, as the kernel's does: data blocks that were allocated for a write under way when somebody else
 * committed. Metadata never leaks, no count is too low, and everything else is whole.
 */
export function expectLeaksOnly({ findings }: CheckReport, when: string): void {
  const other = findings.filter(({ severity, message }) => severity !== 'leak' || !LEAK.test(message));
  expect(other, when).toEqual([]);
}
