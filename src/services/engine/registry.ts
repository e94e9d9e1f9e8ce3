/** Which engine has which device: names, uuids and numbers are unique over all of them. */

import type { DeviceRef } from '../../mapper/control.ts';
import { type Claims, DeviceIndex, type Indexed } from '../../mapper/device-index.ts';
import { nameTaken } from '../fork/make-fork.ts';

/** A device as the daemon knows it before it asks the engine that has it. */
export interface Placed extends Indexed {
  deleting: boolean;
  engine: number;
  /** It is on its way to this engine, which will claim it. Until it has arrived nobody calls it. */
  movesTo: number | undefined;
  /** NBD connections that have it open. */
  connections: number;
}

export class Registry {
  readonly #index: DeviceIndex<Placed>;
  readonly #all = new Map<number, Placed>();
  readonly #named: (name: string, engine: number) => void;

  /** `named`: told of every name that a device of `engine` gets. */
  constructor(major: number, named: (name: string, engine: number) => void) {
    this.#index = new DeviceIndex(major);
    this.#named = named;
  }

  find(ref: DeviceRef): Placed | undefined {
    return this.#index.find(ref);
  }

  /** Also one that is being removed: it has its number until it is gone. */
  placed(minor: number): Placed | undefined {
    return this.#all.get(minor);
  }

  /** Throws NAME_IN_USE (EBUSY) if a device has the name. */
  checkFree(name: string): void {
    try {
      this.#index.checkName(name);
    } catch (error) {
      throw nameTaken(error, name, this.#index.find({ name })?.uuid ?? '');
    }
  }

  /** Devices of an engine. */
  count(engine: number): number {
    let count = 0;
    for (const placed of this.#all.values()) if (placed.engine === engine) count++;
    return count;
  }

  /** For the mapper of this engine. */
  claimsOf(engine: number): Claims {
    const get = (minor: number) => this.#all.get(minor)!;
    return {
      add: async (name, uuid, asked) => {
        const moved = asked === undefined ? undefined : this.#all.get(asked);
        if (moved?.movesTo === engine && moved.storedName === name) {
          moved.engine = engine;
          return moved.minor;
        }
        const minor = this.#index.freeMinor(asked);
        this.checkFree(name);
        this.#index.checkUuid(uuid);
        const placed = {
          minor,
          storedName: name,
          uuid,
          unfinished: false,
          deleting: false,
          engine,
          movesTo: undefined,
          connections: 0,
        };
        this.#index.add(placed);
        this.#all.set(minor, placed);
        this.#named(name, engine);
        return minor;
      },
      rename: async (minor, name) => {
        this.#index.checkName(name);
        const placed = get(minor);
        // Its engine will find it gone.
        if (placed.deleting) return;
        this.#index.rename(placed, name);
        this.#named(name, engine);
      },
      setUuid: async (minor, uuid) => {
        this.#index.checkUuid(uuid);
        const placed = get(minor);
        if (!placed.deleting) this.#index.setUuid(placed, uuid);
      },
      hide: (minor) => {
        const placed = get(minor);
        placed.deleting = true;
        this.#index.hide(placed);
      },
      free: (minor) => {
        this.#index.freeMinorOf(get(minor));
        this.#all.delete(minor);
      },
    };
  }
}
