/**
 * An engine: mapped devices and forks that share nothing with those of other engines, and all that can be asked of them as plain
 * data, so that it does not matter on which thread they are.
 */
import type { DeviceRef } from '../../mapper/control.ts';
import type { SavedDevice } from '../../mapper/saved-device.ts';
import type { Assembly } from '../assembly.ts';
import { CALLS } from '../daemon/calls.ts';
import type { ForksState } from '../fork/records.ts';
import type { PeerHandlers } from './peer.ts';

/** How the rest of the daemon sees it, wherever it runs. */
export interface Engine {
  /** A call of `engineCalls`. Rejects with a DmError. */
  call<T>(call: string, args: readonly unknown[], signal?: AbortSignal): Promise<T>;
  /** What a restart must find again of it. */
  state(): Promise<ForksState>;
}

/** Names of disks: identities as `Disks` gives them, and the words of tables and records that may mean the same. */
export interface DiskKeys {
  identities: string[];
  words: string[];
}

/** Every call of the mapper and the forks by its name, and what the daemon asks beyond that. */
export function engineCalls({ mapper, forks, monitor }: Assembly): PeerHandlers {
  const direct = mapper as unknown as Record<string, (...args: unknown[]) => Promise<unknown>>;
  const ofMapper = Object.keys(CALLS).filter((call) => typeof direct[call] === 'function');
  return {
    ...Object.fromEntries(ofMapper.map((call) => [call, (args: readonly unknown[]) => direct[call](...args)])),
    wait: ([device, event], signal) => mapper.wait(device, event, signal),
    suspend: ([device, options], signal) => mapper.suspend(device, { ...(options as object), signal }),
    resume: ([device, options], signal) => mapper.resume(device, { ...(options as object), signal }),
    revert: ([device]) => forks.revert(device),
    fork: ([image, name, options]) => forks.fork(image, name, options),
    createPool: ([data, options]) => forks.createPool(data, options),
    openPool: ([data, options]) => forks.openPool(data, options),
    extendPool: ([name, size]) => forks.extendPool(name, size),
    createVolume: ([pool, name, source]) => forks.createVolume(pool, name, source),
    volumes: () => forks.volumes(),
    diff: ([name, options]) => forks.diff(name, options),
    drop: ([name, options]) => forks.drop(name, options),
    merge: ([name, options]) => forks.merge(name, options),
    mergeProgress: ([name, options], signal) => forks.mergeProgress(name, options, signal),

    /** Brings back what there was before a restart. */
    restore: ([part]) => forks.restore(part),
    /** Goes on with what the restart cut short. Resolves with what is to be logged. */
    recover: async ([devices]: readonly [SavedDevice[]] | readonly never[]) => {
      const lines = await forks.recover(devices);
      for (const { name, note } of await mapper.list()) if (note) lines.push(`${name}: ${note}`);
      return lines;
    },
    begin: () => monitor.begin(),
    taken: () => monitor.taken(),
    /** Whether a table or a fork uses one of these disks. */
    holds: ([keys]: readonly [DiskKeys] | readonly never[]) =>
      mapper.holds(keys.identities, keys.words) || forks.holds(keys.words),
    /** Whether the device has a table, or has lost one: without it shares nothing with anybody. */
    isBound: ([ref]: readonly [DeviceRef] | readonly never[]) => {
      const { liveTable, inactiveTable, lostTable, openCount } = mapper.device(ref);
      return liveTable !== undefined || inactiveTable !== undefined || lostTable !== undefined || openCount > 0;
    },
    /** Why these devices and records cannot go to another engine. */
    bound: async ([names, uuids]) => forks.bound(uuids) ?? (await mapper.bound(names)),
    /** What a restart must find again, at this moment. */
    state: () => forks.state(),
    /** Resolves with what has left, as `state` told of it. */
    leave: async ([names, uuids], signal) => {
      const left = await forks.leave(names, uuids, signal);
      monitor.begin();
      return left;
    },
    /** Resolves with what could not be opened again, in words. */
    join: async ([state]) => {
      const lost = await forks.join(state);
      monitor.begin();
      return lost;
    },
    mergeOf: ([name]) => forks.mergeOf(name),
    named: ([name]) => forks.named(name),
    stop: async () => {
      await forks.stop();
      monitor.close();
    },
    close: () => mapper.close(),
  };
}
