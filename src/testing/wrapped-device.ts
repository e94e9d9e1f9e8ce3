import type { BlockDevice, Extent, Maybe } from '../device/block-device.ts';
import type { Bytes } from '../units.ts';

export type Operation = 'read' | 'write' | 'flush' | 'discard' | 'writeZeroes' | 'extents';

/** A disk behind another one: every request passes `perform`. */
export abstract class WrappedDevice implements BlockDevice {
  readonly disk: BlockDevice;

  constructor(disk: BlockDevice) {
    this.disk = disk;
  }

  /** `flush` has neither a place nor a length. */
  protected abstract perform<T>(operation: Operation, at: number, length: number, pass: () => Maybe<T>): Maybe<T>;

  get name() {
    return this.disk.name;
  }

  get size() {
    return this.disk.size;
  }

  get blockSize() {
    return this.disk.blockSize;
  }

  get readOnly() {
    return this.disk.readOnly;
  }

  get canDiscard() {
    return this.disk.canDiscard;
  }

  read(at: Bytes, into: Uint8Array, start: number, length: number): Maybe {
    return this.perform('read', at, length, () => this.disk.read(at, into, start, length));
  }

  write(at: Bytes, from: Uint8Array, start: number, length: number): Maybe {
    return this.perform('write', at, length, () => this.disk.write(at, from, start, length));
  }

  flush(): Maybe {
    return this.perform('flush', 0, 0, () => this.disk.flush());
  }

  discard(at: Bytes, length: number): Maybe {
    return this.perform('discard', at, length, () => this.disk.discard(at, length));
  }

  writeZeroes(at: Bytes, length: number, mayUnmap: boolean): Maybe {
    return this.perform('writeZeroes', at, length, () => this.disk.writeZeroes(at, length, mayUnmap));
  }

  extents(at: Bytes, length: number): Maybe<Extent[]> {
    return this.perform('extents', at, length, () => this.disk.extents(at, length));
  }

  close(): Promise<void> {
    return this.disk.close();
  }
}
