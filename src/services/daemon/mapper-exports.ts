import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { Mapper } from '../../mapper/mapper.ts';
import type { ExportEntry, Exports, OpenExport } from '../nbd/exports.ts';

/** Every mapped device with a live table, as the NBD export of its name at the moment of the handshake. */
export class MapperExports implements Exports {
  readonly #mapper: Mapper;
  readonly #connections = new Map<MappedDevice, number>();

  constructor(mapper: Mapper) {
    this.#mapper = mapper;
  }

  async list(): Promise<ExportEntry[]> {
    const live = (await this.#mapper.list()).filter((info) => info.live);
    return live.map(({ name, uuid }) => ({ name, description: uuid || undefined }));
  }

  async open(name: string): Promise<OpenExport> {
    const open = this.#mapper.open({ name });
    const { device } = open;
    this.#connections.set(device, this.connectionsOf(device) + 1);
    return {
      device,
      readOnly: device.readOnly,
      changed: device.hasOrigin ? (at, length) => device.changed(at, length) : undefined,
      close: () => {
        const left = this.connectionsOf(device) - 1;
        if (left > 0) this.#connections.set(device, left);
        else this.#connections.delete(device);
        return open.close();
      },
    };
  }

  /** NBD connections that have the device open. */
  connectionsOf(device: MappedDevice): number {
    return this.#connections.get(device) ?? 0;
  }
}
