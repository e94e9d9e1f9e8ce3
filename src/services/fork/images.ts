/** What the devices of one image have in common: the records, the origin device, who is suspended for a moment. */

import { DmError } from '../../errors.ts';
import type { DeviceInfo } from '../../mapper/control.ts';
import type { Mapper } from '../../mapper/mapper.ts';
import { splitWords } from '../../targets/arguments.ts';
import { SECTOR } from '../../units.ts';
import { deleteCowFile } from './cow-file.ts';
import type { Dropped } from './fork-control.ts';
import type { ForkRecord, ForksState } from './records.ts';

export class Images {
  readonly mapper: Mapper;
  /** The records have changed; settles when they are durable, rejects when they cannot be. */
  readonly save: () => Promise<void>;
  records: ForkRecord[];
  /** Names of origins that are suspended while a fork comes or goes. */
  readonly #held = new Set<string>();

  constructor(mapper: Mapper, records: ForkRecord[], save: () => Promise<void>) {
    this.mapper = mapper;
    this.records = records;
    this.save = save;
  }

  /**
   * To be kept over a restart. An origin that is suspended only while a fork comes or goes is not kept as suspended:
   * nobody would resume it.
   */
  async state(): Promise<ForksState> {
    const devices = (await this.mapper.list()).map(({ name }) => {
      const saved = this.mapper.save({ name });
      return this.#held.has(name) ? { ...saved, suspended: false } : saved;
    });
    const uuids = new Set(devices.map(({ uuid }) => uuid));
    const forks = this.records.filter(({ uuid, dropping }) => dropping !== undefined || uuids.has(uuid));
    return { devices, forks };
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
        if (await deleteCowFile(cow)) forgotten.deleted = cow;
      } else forgotten.kept = cow;
    } finally {
      this.remove(record);
      if (role === 'fork') forgotten.originRemoved = await this.removeOrigin(image);
    }
    return forgotten;
  }

  /** Removes the origin device that a fork made, when no snapshot of the image is left and nobody has it open. */
  async removeOrigin(image: string): Promise<string | undefined> {
    const list = await this.mapper.list();
    for (const info of list) if ((await this.isOver(info, 'snapshot', image)) !== false) return undefined;
    if (
      this.records.some(
        ({ role, image: other, uuid }) => role === 'fork' && other === image && list.some((info) => info.uuid === uuid),
      )
    )
      return undefined;
    const record = this.records.find((entry) => entry.role === 'origin' && entry.image === image);
    const info = record && list.find(({ uuid }) => uuid === record.uuid);
    if (!info || info.openCount > 0) return undefined;
    await this.mapper.remove({ name: info.name });
    this.remove(record);
    return info.name;
  }

  /** Every mapped device through which the image is written. */
  async originsOf(image: string): Promise<DeviceInfo[]> {
    const origins: DeviceInfo[] = [];
    for (const info of await this.mapper.list())
      if (await this.isOver(info, 'snapshot-origin', image)) origins.push(info);
    return origins;
  }

  /** The device has a live target of this type whose first argument is the image. */
  async isOver(info: DeviceInfo, type: string, image: string): Promise<boolean> {
    const targets = await this.mapper.table({ name: info.name });
    return targets.some((target) => target.type === type && splitWords(target.text)[0] === image);
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
  async snapshot(name: string): Promise<{ origin: string; cow: string; chunkSize: number }> {
    const targets = await this.mapper.table({ name });
    const words = splitWords(targets[0]?.text ?? '');
    if (targets.length !== 1 || targets[0].type !== 'snapshot')
      throw new DmError('NO_SNAPSHOT', 'EINVAL', `${name} is no snapshot: ${targets[0]?.type ?? 'it has no table'}`, {
        hint: 'look at: dmkit ls',
      });
    return { origin: words[0], cow: words[1], chunkSize: Number(words[3]) * SECTOR };
  }
}
