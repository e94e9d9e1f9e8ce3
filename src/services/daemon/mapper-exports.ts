import type { MappedDevice } from '../../mapper/mapped-device.ts';
import type { Mapper } from '../../mapper/mapper.ts';
import type { ExportEntry, Exports, OpenExport } from '../nbd/exports.ts';

/** Every mapped device with a live table, as the NBD export of its name at the moment of the handshake. */
export class MapperExports implements Exports {
  readonly #mapper: Mapper;

  constructor(mapper: Mapper) {
    this.#mapper = mapper;
  }

  async list(): Promise<ExportEntry[]> {
    const live = (await this.#mapper.list()).filter((info) => info.live);
    return live.map(({ name, uuid }) => ({ name, description: uuid || undefined }));
  }

  async open(name: string): Promise<OpenExport & { device: MappedDevice }> {
    const open = this.#mapper.open({ name });
    const { device } = open;
    return {
      device,
      readOnly: device.readOnly,
      changed: device.hasOrigin ? (at, length) => device.changed(at, length) : undefined,
      close: () => open.close(),
    };
  }
}
