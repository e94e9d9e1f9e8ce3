/** Pools and volumes, as tables and records tell of them. */
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import { Lock } from '../../lib/lock.ts';
import type { DeviceInfo } from '../../mapper/control.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { Mapper } from '../../mapper/mapper.ts';
import type { SavedDevice } from '../../mapper/saved-device.ts';
import { parseNumber, splitWords } from '../../targets/arguments.ts';
import type { Images } from '../fork/images.ts';
import { statusOf, warningOf } from './pool-status.ts';
import type { PoolRecord, VolumeRecord } from './records.ts';

/** What the live table of a thin device says. */
export interface Thin {
  readonly pool: MappedDevice;
  readonly id: number;
  /** Path, URI or number of the external origin. */
  readonly origin?: string;
}

export class Book {
  readonly images: Images;
  /**
   * Held while a pool grows, and by who needs it to stay as it is. Not while all who come and go wait for each other: a volume that is to
   * be forked waits for its writes, and they may wait for their pool to grow.
   */
  readonly steady = new Lock();
  records: (PoolRecord | VolumeRecord)[];

  constructor(images: Images, records: (PoolRecord | VolumeRecord)[]) {
    this.images = images;
    this.records = records;
  }

  get mapper(): Mapper {
    return this.images.mapper;
  }

  /** To be kept over a restart that finds these devices. */
  state(devices: readonly SavedDevice[]): (PoolRecord | VolumeRecord)[] {
    const uuids = new Set(devices.map(({ uuid }) => uuid));
    return this.records.filter(({ uuid, dropping }) => dropping !== undefined || uuids.has(uuid));
  }

  get pools(): PoolRecord[] {
    return this.records.filter((record) => record.role === 'pool');
  }

  get volumes(): VolumeRecord[] {
    return this.records.filter((record) => record.role === 'volume');
  }

  poolRecord({ uuid }: Pick<DeviceInfo, 'uuid'>): PoolRecord | undefined {
    return uuid === '' ? undefined : this.pools.find((record) => record.uuid === uuid);
  }

  volumeRecord({ uuid }: Pick<DeviceInfo, 'uuid'>): VolumeRecord | undefined {
    return uuid === '' ? undefined : this.volumes.find((record) => record.uuid === uuid);
  }

  remove(record: PoolRecord | VolumeRecord): void {
    this.records = this.records.filter((other) => other !== record);
  }

  /** The device with that uuid or minor number. */
  device(wanted: { uuid: string } | { minor: number }): MappedDevice | undefined {
    const { mapper } = this;
    const ref = 'uuid' in wanted ? { uuid: wanted.uuid } : { major: mapper.major, minor: wanted.minor };
    try {
      return mapper.device(ref);
    } catch (error) {
      if (error instanceof DmError && error.code === 'NO_DEVICE') return undefined;
      throw error;
    }
  }

  /** Throws NO_POOL (EINVAL) unless the device is a pool that runs, ENXIO if there is none. */
  pool(name: string, attempted: string): MappedDevice {
    const device = this.mapper.device({ name });
    if (isPool(device)) return device;
    throw new DmError(
      'NO_POOL',
      'EINVAL',
      `Cannot ${attempted}: ${name} is no pool${device.note ? `: ${device.note}` : ''}`,
      {
        hint: device.lostTable ? 'once what it lies on is there again: dmkit down; dmkit up' : 'look at: dmkit ls',
      },
    );
  }

  /** What users of the pool should know; undefined if there is nothing. */
  warningOf(pool: MappedDevice): string | undefined {
    const record = this.poolRecord(pool);
    const path = record?.metadata ?? record?.data ?? pool.liveTable?.devices[0].device.name ?? 'METADATA';
    return warningOf(pool.storedName, statusOf(pool), path);
  }

  /** Undefined: its live table is not that of one thin device. */
  thin(device: MappedDevice): Thin | undefined {
    const lines = device.liveTable?.text('table') ?? [];
    if (lines.length !== 1 || lines[0].type !== 'thin') return undefined;
    const [word, id, origin] = splitWords(lines[0].text);
    const pool = this.device({ minor: Number(word.split(':')[1]) });
    return pool && { pool, id: parseNumber(id)!, origin };
  }

  /** Those whose live table names the pool, and volumes that are there without a table. */
  thinsOf(pool: MappedDevice): { device: MappedDevice; id: number }[] {
    const found: { device: MappedDevice; id: number }[] = [];
    for (const name of this.mapper.names()) {
      const device = this.mapper.device({ name });
      const record = device.liveTable ? undefined : this.volumeRecord(device);
      const thin = record ? { pool: this.poolOf(record), id: record.id } : this.thin(device);
      if (thin?.pool === pool) found.push({ device, id: thin.id });
    }
    return found;
  }

  /** Undefined: it is gone, and perhaps another device has its number. */
  poolOf({ pool: minor, poolUuid }: VolumeRecord): MappedDevice | undefined {
    const device = this.device({ minor });
    return device?.uuid === poolUuid ? device : undefined;
  }

  /** What a volume was made from, as `POOL/VOLUME`, or an image. */
  originOf(device: MappedDevice): string | undefined {
    const thin = this.thin(device);
    const { origin } = this.volumeRecord(device) ?? {};
    const parent = origin === undefined ? undefined : this.device({ uuid: origin });
    return parent && thin ? `${thin.pool.storedName}/${parent.storedName}` : thin?.origin;
  }

  /** Throws POOL_IN_USE (EBUSY): two that write to one disk would know nothing of each other. */
  checkUnused(disk: BlockDevice): void {
    for (const name of this.mapper.names()) {
      const { liveTable, inactiveTable, storedName } = this.mapper.device({ name });
      const below = [...(liveTable?.devices ?? []), ...(inactiveTable?.devices ?? [])];
      if (below.some(({ device }) => device === disk))
        throw new DmError('POOL_IN_USE', 'EBUSY', `Cannot have a pool on ${disk.name}: ${storedName} uses it`, {
          hint: `look at: dmkit ls; if its pool was removed: dmkit dmsetup remove ${storedName}`,
        });
    }
  }

  /** A part of a pool that lies in one file: nobody has to see it, unless the pool was removed from above it. */
  isPart({ uuid }: Pick<DeviceInfo, 'uuid'>): boolean {
    const pool = this.pools.find((record) => PARTS.some((part) => uuid === `${record.uuid}-${part}`));
    return pool !== undefined && this.device(pool) !== undefined;
  }

  /** Why the file of a pool in one file could not be opened. */
  noteOf({ uuid }: PoolRecord): string | undefined {
    for (const part of PARTS) {
      const note = this.device({ uuid: `${uuid}-${part}` })?.note;
      if (note !== undefined) return note;
    }
  }
}

/** Of a pool in one file, as LVM calls them. */
export const PARTS = ['tmeta', 'tdata'] as const;

const isPool = ({ liveTable }: MappedDevice) => liveTable?.text('table')[0]?.type === 'thin-pool';
