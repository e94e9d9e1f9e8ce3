/** What the devices of one image have in common: the records, the origin device, who is suspended for a moment. */
import { randomUUID } from 'node:crypto';
import type { BlockDevice } from '../../device/block-device.ts';
import { DmError } from '../../errors.ts';
import type { DeviceInfo, TargetSpec } from '../../mapper/control.ts';
import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { Mapper } from '../../mapper/mapper.ts';
import type { SavedDevice } from '../../mapper/saved-device.ts';
import { splitWords } from '../../targets/arguments.ts';
import { SECTOR } from '../../units.ts';
import { POOL_UUID } from '../pool/records.ts';
import { deleteFile } from '../sparse-file.ts';
import { COW_FILE } from './cow-file.ts';
import type { Dropped } from './fork-control.ts';
import { originNames } from './names.ts';
import type { ForkRecord, Merging } from './records.ts';

export class Images {
  readonly mapper: Mapper;
  /** The records have changed; settles when they are durable, rejects when they cannot be. */
  readonly save: () => Promise<void>;
  records: ForkRecord[];
  /** Names of origins that are suspended while a fork comes or goes. */
  readonly #held = new Set<string>();
  /** Origin devices that a restart must find with another table than they have yet, or for a moment. */
  readonly #intended = new Map<MappedDevice, TargetSpec>();
  /** Forks that a restart must not find: their exceptions go to another table. */
  readonly #leaving = new WeakSet<MappedDevice>();

  constructor(mapper: Mapper, records: ForkRecord[], save: () => Promise<void>) {
    this.mapper = mapper;
    this.records = records;
    this.save = save;
  }

  /**
   * To be kept over a restart. An origin that is suspended only while a fork comes or goes is not kept as suspended:
   * nobody would resume it.
   */
  state(): { devices: SavedDevice[]; forks: ForkRecord[] } {
    const devices: SavedDevice[] = [];
    for (const name of this.mapper.names()) {
      const device = this.mapper.device({ name });
      if (this.#leaving.has(device)) continue;
      const saved = this.mapper.save({ name });
      if (this.#held.has(name)) saved.suspended = false;
      const intended = this.#intended.get(device);
      if (intended) Object.assign(saved, { table: [intended], suspended: false });
      devices.push(saved);
    }
    const uuids = new Set(devices.map(({ uuid }) => uuid));
    const forks = this.records.filter(
      ({ uuid, dropping, merging }) => dropping !== undefined || merging !== undefined || uuids.has(uuid),
    );
    return { devices, forks };
  }

  /**
   * While `work` runs, a restart finds `origin` with `table`, whatever it has then; and `fork` not at all, for good unless
   * `work` fails.
   */
  async intending(
    origin: MappedDevice,
    table: TargetSpec,
    fork: MappedDevice | undefined,
    work: () => Promise<void>,
  ): Promise<void> {
    this.#intended.set(origin, table);
    if (fork) this.#leaving.add(fork);
    try {
      await work();
    } catch (error) {
      if (fork) this.#leaving.delete(fork);
      throw error;
    } finally {
      this.#intended.delete(origin);
    }
  }

  /** Every mapped device but those that are to be gone. */
  *devices(): Generator<MappedDevice> {
    for (const name of this.mapper.names()) {
      const device = this.mapper.device({ name });
      if (!this.#leaving.has(device)) yield device;
    }
  }

  /** Throws MERGING (EBUSY) if a merge into the image runs: until it ends nobody else may look at it from below. */
  checkNotMerging(image: string, attempted: string): void {
    const merging = this.mergingInto(image);
    const device = [...this.devices()].find((each) => isMergeOver(each, image));
    if (!merging && !device) return;
    const [what, hint] = merging
      ? [merging.name, `wait for it: dmkit merge ${merging.name}`]
      : [device!.storedName, `look at: dmkit dmsetup status ${device!.storedName}`];
    throw new DmError('MERGING', 'EBUSY', `Cannot ${attempted}: ${what} is being merged into ${image}`, { hint });
  }

  /** Throws MERGE_OTHERS (EBUSY) if a snapshot of the image could not be loaded: it would miss the copies of a merge. */
  checkAllThere(image: string, attempted: string): void {
    for (const { lostTable, storedName } of this.devices()) {
      if (!lostTable?.some(({ type, args }) => type === 'snapshot' && splitWords(args)[0] === image)) continue;
      throw new DmError(
        'MERGE_OTHERS',
        'EBUSY',
        `Cannot ${attempted}: ${storedName}, of the same image, could not be loaded, and would show the changes too`,
        {
          hint: `see why: dmkit ls; then drop it: dmkit drop ${storedName}; or, once it is there again: dmkit down; dmkit up`,
        },
      );
    }
  }

  /** Throws POOL_IN_USE (EBUSY) if a pool lies there: it changes without anybody being told. */
  checkNoPool(disk: BlockDevice): void {
    for (const { uuid, liveTable, storedName } of this.devices())
      if (uuid.startsWith(POOL_UUID) && liveTable?.devices.some(({ device }) => device === disk))
        throw new DmError('POOL_IN_USE', 'EBUSY', `Cannot fork ${disk.name}: a pool lies there, ${storedName}`, {
          hint: 'fork one of its volumes: dmkit ls',
        });
  }

  /** The volume whose external origin the image is, if there is one. */
  async shownBy(image: string): Promise<string | undefined> {
    for (const { name } of await this.mapper.list())
      for (const { type, text } of await this.mapper.table({ name }))
        if (type === 'thin' && splitWords(text)[2] === image) return name;
  }

  /** Throws IMAGE_CHANGES (EBUSY) if the image may be written through dmkit. */
  async checkUnchanging(image: string, attempted: string): Promise<void> {
    this.checkNotMerging(image, attempted);
    const origin = (await this.originsOf(image)).find(({ readOnly }) => !readOnly);
    if (origin)
      throw new DmError(
        'IMAGE_CHANGES',
        'EBUSY',
        `Cannot ${attempted}: the image may be written through ${origin.name}`,
        {
          hint: 'drop its forks first, or fork a copy of it',
        },
      );
  }

  /** The merge into this image, if there is one. */
  mergingInto(image: string): Merging | undefined {
    return this.records.find((record) => record.merging && record.image === image)?.merging;
  }

  mergingOf(name: string): Merging | undefined {
    return this.records.find(({ merging }) => merging?.name === name)?.merging;
  }

  recordOf(info: DeviceInfo, role: ForkRecord['role']): ForkRecord | undefined {
    return info.uuid === ''
      ? undefined
      : this.records.find((record) => record.uuid === info.uuid && record.role === role);
  }

  remove(record: ForkRecord): void {
    this.records = this.records.filter((other) => other !== record);
  }

  /** What is left to do when the device is gone. The record goes whatever fails: another drop could not find it. */
  async forget(record: ForkRecord, deleteCow: boolean): Promise<Omit<Dropped, 'name'>> {
    const { role, cow, owned, image } = record;
    const forgotten: Omit<Dropped, 'name'> = {};
    try {
      if (cow !== undefined && owned && deleteCow) {
        if (await deleteFile(cow, COW_FILE)) forgotten.deleted = cow;
      } else forgotten.kept = cow;
    } finally {
      this.remove(record);
      if (role === 'fork') forgotten.originRemoved = await this.removeOrigin(image);
    }
    return forgotten;
  }

  /** Removes the origin device that a fork made, when no snapshot of the image is left and nobody has it open. */
  async removeOrigin(image: string): Promise<string | undefined> {
    if (this.mergingInto(image)) return undefined;
    const list = await this.mapper.list();
    for (const info of list) if ((await this.isOver(info, 'snapshot', image)) !== false) return undefined;
    if (
      this.records.some(
        ({ role, image: other, uuid }) => role === 'fork' && other === image && list.some((info) => info.uuid === uuid),
      )
    )
      return undefined;
    for (const record of this.records) {
      if (record.role !== 'origin' || record.image !== image) continue;
      const info = list.find(({ uuid }) => uuid === record.uuid);
      if (!info || info.openCount > 0) continue;
      await this.mapper.remove({ name: info.name });
      this.remove(record);
      return info.name;
    }
  }

  /** Every mapped device through which the image is written. */
  async originsOf(image: string): Promise<DeviceInfo[]> {
    const origins: DeviceInfo[] = [];
    for (const info of await this.mapper.list())
      if ((await this.isOver(info, 'snapshot-origin', image)) || (await this.isOver(info, 'snapshot-merge', image)))
        origins.push(info);
    return origins;
  }

  /** The device has a live target of this type whose first argument is the image. */
  async isOver(info: DeviceInfo, type: string, image: string): Promise<boolean> {
    const targets = await this.mapper.table({ name: info.name });
    return targets.some((target) => target.type === type && splitWords(target.text)[0] === image);
  }

  /** An origin device without a table, named after `path`. */
  async makeOriginDevice(image: string, path = image): Promise<MappedDevice> {
    const uuid = `dmkit-origin-${randomUUID()}`;
    const record: ForkRecord = { uuid, role: 'origin', image };
    this.records.push(record);
    for (const names = originNames(path); ; ) {
      const name = names.next().value;
      try {
        await this.mapper.create(name, { uuid });
        return this.mapper.device({ name });
      } catch (error) {
        if (error instanceof DmError && error.code === 'NAME_IN_USE') continue;
        this.remove(record);
        throw error;
      }
    }
  }

  /** Takes that back, whatever was in the way of its table. Never rejects. */
  async unmakeOriginDevice({ storedName: name, uuid }: MappedDevice): Promise<void> {
    this.records = this.records.filter((record) => record.uuid !== uuid);
    await this.mapper.remove({ name }).catch(() => {});
  }

  /** While `work` runs, the device is saved as if it were not suspended. */
  async holding(name: string, work: () => Promise<void>): Promise<void> {
    this.#held.add(name);
    try {
      await work();
    } finally {
      this.#held.delete(name);
    }
  }

  async whileSuspended(origins: readonly DeviceInfo[], work: () => Promise<void>): Promise<void> {
    const suspended: string[] = [];
    try {
      for (const { name, suspended: already } of origins) {
        if (already) continue;
        this.#held.add(name);
        suspended.push(name);
        await this.mapper.suspend({ name });
      }
      await work();
    } finally {
      for (const name of suspended) {
        this.#held.delete(name);
        await this.mapper.resume({ name });
      }
    }
  }

  /** Throws NO_SNAPSHOT unless the device is one snapshot and nothing else. */
  async snapshot(name: string): Promise<{ origin: string; cow: string; store: string; chunkSize: number }> {
    const targets = await this.mapper.table({ name });
    const words = splitWords(targets[0]?.text ?? '');
    if (targets.length !== 1 || targets[0].type !== 'snapshot')
      throw new DmError('NO_SNAPSHOT', 'EINVAL', `${name} is no snapshot: ${targets[0]?.type ?? 'it has no table'}`, {
        hint: 'look at: dmkit ls',
      });
    return { origin: words[0], cow: words[1], store: words[2], chunkSize: Number(words[3]) * SECTOR };
  }
}

const isMergeOver = (device: MappedDevice, image: string) =>
  device.liveTable
    ?.text('table')
    .some(({ type, text }) => type === 'snapshot-merge' && splitWords(text)[0] === image) ?? false;
