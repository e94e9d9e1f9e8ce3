import type { BlockDevice, Mode } from '../../src/device/block-device.ts';
import { Disks } from '../../src/device/open.ts';
import { ioError } from '../../src/errors.ts';

/** Files of which each can be made to wait, to fail or to refuse writes. */
export class Obstacles extends Disks {
  readOnly = '';
  failing = '';
  #stopped = '';
  #waiting: (() => void)[] = [];
  #awaited = () => {};

  /** Writes to `path` wait until `go`. */
  stop(path: string): void {
    this.#stopped = path;
  }

  /** Resolves when a write waits. */
  async blocked(): Promise<void> {
    if (this.#waiting.length === 0) await new Promise<void>((resolve) => (this.#awaited = resolve));
  }

  go(): void {
    this.#stopped = '';
    for (const proceed of this.#waiting.splice(0)) proceed();
  }

  override async open(identity: string, mode: Mode): Promise<BlockDevice> {
    const device = await super.open(identity, mode);
    const { name } = device;
    if (this.readOnly === name) Object.defineProperty(device, 'readOnly', { value: true });
    // Everything that is written comes by `write`.
    Object.defineProperty(device, 'copyFrom', { value: undefined });
    const write = device.write.bind(device);
    device.write = (...request) => {
      if (this.failing === name) throw ioError(`Cannot write to ${name}: injected`);
      if (this.#stopped !== name) return write(...request);
      return new Promise<void>((proceed) => {
        this.#waiting.push(proceed);
        this.#awaited();
      }).then(() => device.write(...request));
    };
    return device;
  }
}
