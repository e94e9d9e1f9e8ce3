/** Disks that exist only here, for a mapper under test: the path `/dev/ram0` leads to the disk numbered `1:0`. */
import type { BlockDevice, Mode } from '../device/block-device.ts';
import { MemoryDevice } from '../device/memory.ts';
import { DmError } from '../errors.ts';
import type { DeviceOpener } from '../mapper/devices.ts';
import { SECTOR } from '../units.ts';

export class FakeDisks implements DeviceOpener {
  /** By name, as `dmsetup table` prints it. */
  readonly disks = new Map<string, BlockDevice>();
  /** Names of the disks that are open now, and how. */
  readonly opened = new Map<string, Mode>();
  readonly #paths = new Map<string, string>();

  /** Makes a disk of `sectors`, numbered `1:N` with the path `/dev/ramN`. */
  ram(index: number, sectors = 131_072): MemoryDevice {
    const disk = new MemoryDevice(sectors * SECTOR, { name: `1:${index}` });
    this.add(disk, `/dev/ram${index}`);
    return disk;
  }

  add(disk: BlockDevice, ...paths: string[]): void {
    this.disks.set(disk.name, disk);
    for (const path of paths) this.#paths.set(path, disk.name);
  }

  async identify(argument: string): Promise<string> {
    const name = this.#paths.get(argument) ?? argument;
    if (this.disks.has(name)) return name;
    const numbered = /^\d+:\d+$/.test(argument);
    throw new DmError('NO_DISK', numbered ? 'ENXIO' : 'ENODEV', `Cannot open ${argument}: no such disk`);
  }

  async open(name: string, mode: Mode): Promise<BlockDevice> {
    const disk = this.disks.get(name)!;
    this.opened.set(name, mode);
    const path = [...this.#paths].find(([, found]) => found === name)?.[0];
    return new Opened(disk, path, this.opened, mode);
  }
}

/** One opening of a disk: closing it leaves the disk as it is. */
class Opened implements BlockDevice {
  readonly name: string;
  readonly path: string | undefined;
  #disk: BlockDevice;
  #opened: Map<string, Mode>;
  #writable: boolean;

  constructor(disk: BlockDevice, path: string | undefined, opened: Map<string, Mode>, mode: Mode) {
    this.name = disk.name;
    this.path = path;
    this.#disk = disk;
    this.#opened = opened;
    this.#writable = mode === 'rw';
  }

  get size() {
    return this.#disk.size;
  }

  get blockSize() {
    return this.#disk.blockSize;
  }

  get readOnly() {
    return this.#disk.readOnly || !this.#writable;
  }

  get canDiscard() {
    return this.#disk.canDiscard;
  }

  async allowWrites(): Promise<void> {
    this.#writable = true;
    this.#opened.set(this.name, 'rw');
  }

  read: BlockDevice['read'] = (...request) => this.#disk.read(...request);

  write: BlockDevice['write'] = (...request) => {
    this.#checkMode();
    return this.#disk.write(...request);
  };

  flush: BlockDevice['flush'] = () => this.#disk.flush();

  discard: BlockDevice['discard'] = (...request) => {
    this.#checkMode();
    return this.#disk.discard(...request);
  };

  writeZeroes: BlockDevice['writeZeroes'] = (...request) => {
    this.#checkMode();
    return this.#disk.writeZeroes(...request);
  };

  extents: BlockDevice['extents'] = (...request) => this.#disk.extents(...request);

  async close(): Promise<void> {
    this.#opened.delete(this.name);
  }

  #checkMode(): void {
    if (this.readOnly)
      throw new DmError('READ_ONLY', 'EPERM', `Cannot write to ${this.name}: it was opened for reading`);
  }
}
