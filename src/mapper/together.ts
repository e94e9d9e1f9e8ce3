/** Devices that go together: upper ones first, as their tables name those below. */
import { DmError } from '../errors.ts';
import type { MappedDevice } from './mapped-device.ts';

/** All of them, or none: rejects with what one could not flush, or when `signal` fires before it had. */
export async function suspendAll(devices: readonly MappedDevice[], signal?: AbortSignal): Promise<void> {
  const suspended: MappedDevice[] = [];
  try {
    for (const device of topDown(devices)) {
      suspended.push(device);
      await device.suspend({ signal });
    }
  } catch (error) {
    for (const device of suspended.reverse()) if (device.suspended) await device.resume().catch(() => {});
    throw error;
  }
}

/** Resolves with what has failed. Nobody finds the devices any more; requests that are held fail with ESHUTDOWN. */
export async function destroyAll(devices: readonly MappedDevice[], options: { flush: boolean }): Promise<unknown[]> {
  const failures: unknown[] = [];
  for (const device of devices) {
    device.deleting = true;
    device.wake();
    device.abandon();
  }
  for (const device of topDown(devices)) {
    await device.destroy(options).catch((error) => {
      // A flush that a suspended device below holds back; what lies below was flushed when that was suspended.
      if (!(error instanceof DmError && error.errno === 'ESHUTDOWN')) failures.push(error);
    });
  }
  return failures;
}

/** Each after those whose tables name it. A generator, as the users go while they are closed. */
function* topDown(devices: readonly MappedDevice[]): Generator<MappedDevice> {
  const left = new Set(devices);
  while (left.size > 0) {
    const top = [...left].filter((device) => ![...device.users].some((user) => left.has(user)));
    for (const device of top) {
      yield device;
      left.delete(device);
    }
  }
}
