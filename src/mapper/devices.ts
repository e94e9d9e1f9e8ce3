/**
 * The disks below the tables. One disk is one object, however many tables use it and whatever they call it, so that
 * identity of the object is identity of the disk; it is opened for the first user and closed after the last.
 */
import type { BlockDevice, Mode } from '../device/block-device.ts';
import { Lock } from '../lib/lock.ts';

/** Finds and opens disks that are not mapped devices. */
export interface DeviceOpener {
  /** The same text for every argument that leads to the same disk. Relative paths start from `directory`. */
  identify(argument: string, directory?: string): Promise<string>;
  /** Opens what `identify` named. A disk that cannot be written is opened for reading, and says so (`readOnly`). */
  open(identity: string, mode: Mode): Promise<BlockDevice>;
}

/** A table's claim on a device below it. */
export interface Lease {
  readonly device: BlockDevice;
  readonly mode: Mode;
  /** From `r` to `rw`. */
  upgrade(): Promise<void>;
  release(): Promise<void>;
}

interface SharedDevice {
  readonly identity: string;
  /** Held while the disk is opened, made writable or closed. */
  readonly lock: Lock;
  holders: number;
  device: BlockDevice | undefined;
  writable: boolean;
}

export class Devices {
  #opener: DeviceOpener;
  #shared = new Map<string, SharedDevice>();

  constructor(opener: DeviceOpener) {
    this.#opener = opener;
  }

  identify(argument: string, directory?: string): Promise<string> {
    return this.#opener.identify(argument, directory);
  }

  /** Somebody has it open, or is about to. */
  has(identity: string): boolean {
    return this.#shared.has(identity);
  }

  /** The name of a disk that is open still leads to it. */
  async isFound(device: BlockDevice): Promise<boolean> {
    for (const shared of this.#shared.values())
      if (shared.device === device)
        return (await this.#opener.identify(device.name).catch(() => undefined)) === shared.identity;
    return false;
  }

  async lease(identity: string, mode: Mode): Promise<Lease> {
    let shared = this.#shared.get(identity);
    if (!shared) {
      shared = { identity, lock: new Lock(), holders: 0, device: undefined, writable: false };
      this.#shared.set(identity, shared);
    }
    const held = shared;
    held.holders++;
    try {
      await this.#open(held, mode);
    } catch (error) {
      await this.#release(held);
      throw error;
    }
    let granted = mode;
    return {
      device: held.device!,
      get mode() {
        return granted;
      },
      upgrade: async () => {
        await this.#open(held, 'rw');
        granted = 'rw';
      },
      release: () => this.#release(held),
    };
  }

  #open(shared: SharedDevice, mode: Mode): Promise<void> {
    return shared.lock.run(async () => {
      if (!shared.device) {
        shared.device = await this.#opener.open(shared.identity, mode);
        shared.writable = mode === 'rw';
      } else if (mode === 'rw' && !shared.writable) {
        await shared.device.allowWrites?.();
        shared.writable = true;
      }
    });
  }

  #release(shared: SharedDevice): Promise<void> {
    shared.holders--;
    return shared.lock.run(async () => {
      if (shared.holders > 0) return;
      const { device } = shared;
      shared.device = undefined;
      try {
        await device?.close();
      } finally {
        // Someone may have asked for the disk while it closed; then it opens again under the same entry.
        if (shared.holders === 0) this.#shared.delete(shared.identity);
      }
    });
  }
}
