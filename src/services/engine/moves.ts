/**
 * Devices on their way from one engine to another.
 *
 *     leave  flushed, closed, forgotten      join  opened again
 *
 * At every moment what is saved tells of each device, once: as it was, until it has arrived with its table. Should the disk stop to
 * answer in the middle the move goes on whenever it does; until then nobody calls the devices.
 */
import { DmError } from '../../errors.ts';
import type { ForksState } from '../fork/records.ts';
import type { DiskKeys, Engine } from './engine.ts';
import { meet } from './placement.ts';
import type { Placed, Registry } from './registry.ts';

/** What moves, and what it names. */
export interface Part {
  state: ForksState;
  disks: DiskKeys;
}

export class Moves {
  readonly #registry: Registry;
  readonly #under = new Set<Part>();

  constructor(registry: Registry) {
    this.#registry = registry;
  }

  /**
   * What a restart must find again, of what each engine tells. The registry knows of names and removals before the engines tell
   * of them.
   */
  async stateOf(engines: readonly Engine[]): Promise<ForksState> {
    const under = [...this.#under].map(({ state }) => state);
    const states = await Promise.all(engines.map((engine) => engine.state()));
    const devices = under.flatMap((state) => state.devices);
    const forks = under.flatMap((state) => state.forks);
    const [minors, uuids] = [new Set(devices.map(({ minor }) => minor)), new Set(forks.map(({ uuid }) => uuid))];
    for (const [engine, state] of states.entries()) {
      for (const device of state.devices) {
        const placed = this.#registry.placed(device.minor);
        if (minors.has(device.minor) || placed?.engine !== engine || placed.deleting) continue;
        devices.push({ ...device, name: placed.storedName });
      }
      forks.push(...state.forks.filter(({ uuid }) => !uuids.has(uuid)));
    }
    return { devices, forks };
  }

  /** While `work` brings it back what is saved is `state`: without its table a restart would take a fork for one that was never finished. */
  async restoring(state: ForksState, work: () => Promise<unknown>): Promise<void> {
    const part: Part = { state, disks: { identities: [], words: [] } };
    this.#under.add(part);
    await work();
    this.#under.delete(part);
  }

  /** Throws ENGINES_MOVING (EBUSY) if the device, or any where none is given, is on its way. */
  check(placed?: Placed): void {
    if (placed?.movesTo !== undefined) throw moving(placed.storedName);
    if (!placed) for (const part of this.#under) throw moving(nameOf(part));
  }

  /** Throws ENGINES_MOVING (EBUSY) if one of the disks is that of a device on its way. */
  checkDisks(disks: DiskKeys): void {
    for (const part of this.#under) if (meet(part.disks, disks)) throw moving(nameOf(part));
  }

  /**
   * Moves it from one engine to another. Rejects with nothing changed when it cannot be flushed, or `soon` fires before it is; with
   * ENGINES_LOST (EIO) when a table cannot be loaded again: that is saved, and the next restart tries again.
   */
  async move(part: Part, from: Engine, to: Engine, toNumber: number, soon: AbortSignal): Promise<void> {
    const { devices, forks } = part.state;
    // One that is gone by now does not leave.
    const placed = devices.flatMap(({ minor }) => this.#registry.placed(minor) ?? []);
    const [names, uuids] = [devices.map(({ name }) => name), forks.map(({ uuid }) => uuid)];
    const arrived = () => {
      this.#under.delete(part);
      for (const device of placed) device.movesTo = undefined;
    };
    this.#under.add(part);
    for (const device of placed) device.movesTo = toNumber;
    try {
      part.state = await from.call<ForksState>('leave', [names, uuids], soon);
    } catch (error) {
      arrived();
      throw error;
    }
    // Rejected, it stays under way: the next restart finds it.
    const lost = await to.call<string[]>('join', [part.state]);
    arrived();
    if (lost.length > 0)
      throw new DmError('ENGINES_LOST', 'EIO', `Cannot go on: ${lost.join('; ')}`, {
        hint: 'its table is kept: repair what is wrong, then: dmkit down; dmkit up',
      });
  }
}

const nameOf = ({ state: { devices } }: Part) => devices.map(({ name }) => name).join(' ');

const moving = (name: string) =>
  new DmError('ENGINES_MOVING', 'EBUSY', `Cannot use ${name}: it is moving to another thread, and waits for a disk`, {
    hint: 'try again; if the disk has stopped for good, end the daemon (kill -9), and nothing that was flushed is lost',
  });
